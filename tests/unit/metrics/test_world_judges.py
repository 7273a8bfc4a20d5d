import pytest
import torch

from immunity import ImmunityError, World
from immunity.metrics import WorldJudges
from immunity.worlds import Captions

from tests import tiny_judges


@pytest.fixture
def world(tmp_path):
    captions = Captions(object=("image of {phrase}",), style=("{style}",), both=("{phrase}, {style}",))
    folder = tiny_judges.world(tmp_path)
    return World(name="tiny", folder=folder, resolution=20, styles=(), objects=(), captions=captions)


def test_all_judges_are_opened_and_score(world, images, references):
    judges = WorldJudges.load(world)
    assert [metric.name for metric in judges.similarities] == ["clip", "dino", "lpips"]
    for metric in judges.similarities:
        assert metric.higher_is_better
        assert metric(images, references).shape == (5,)
    assert (judges.object.temperature, judges.style.temperature) == (0.5, 2.0)
    for metric in (judges.object_accuracy, judges.object_probability, judges.style_accuracy, judges.style_probability):
        scores = metric(images, ["church"])
        assert ((scores >= 0) & (scores <= 1)).all()
    assert judges.clip_score(images, ["image of a church"]).shape == (5,)


def test_scores_repeat_and_no_gradient_is_kept(world, images, references):
    judges = WorldJudges.load(world)
    for metric in judges.similarities:
        first = metric(images.requires_grad_(), references)
        assert not first.requires_grad
        assert torch.equal(first, metric(images, references))


def test_missing_temperatures_are_said(world):
    (world.folder / "judges" / "judges.json").unlink()
    with pytest.raises(ImmunityError, match="temperatures"):
        WorldJudges.load(world)
