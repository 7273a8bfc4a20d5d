import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from immunity import ImmunityError
from immunity.metrics import PerceptualJudge, PerceptualSimilarity

from tests import tiny_judges


@pytest.fixture
def folder(tmp_path):
    return tiny_judges.perceptual(tmp_path)


def test_the_distance_is_the_formula(folder, images, references):
    from transformers import ResNetModel

    judge = PerceptualJudge.load(folder, batch=2)
    plain = ResNetModel.from_pretrained(folder, dtype=torch.float32).eval()
    weights = load_file(folder / "weights.safetensors")

    def layers(x):
        with torch.no_grad():
            return plain(judge.preprocessing(x), output_hidden_states=True).hidden_states

    wanted = torch.zeros(5, 3)
    for number, (ours, theirs) in enumerate(zip(layers(images), layers(references), strict=True)):
        difference = F.normalize(ours, dim=1)[:, None] - F.normalize(theirs, dim=1)[None]
        weighed = difference.square() * weights[f"layer.{number}"].view(-1, 1, 1)
        wanted += weighed.sum(2).mean((2, 3))
    torch.testing.assert_close(judge.distances(images, references), wanted, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(PerceptualSimilarity(judge)(images, references), 1 - wanted.mean(1))


def test_it_is_a_distance(folder, images):
    distances = PerceptualJudge.load(folder).distances(images, images)
    assert torch.equal(distances.diagonal(), torch.zeros(5))
    torch.testing.assert_close(distances, distances.T)
    assert (distances + torch.eye(5) > 0).all()


@pytest.mark.parametrize(
    "weights", [{"layer.0": torch.tensor([-1.0])}, {"layer.1": torch.ones(8)}, {"other": torch.ones(8)}]
)
def test_weights_that_make_no_distance_are_refused(folder, weights):
    save_file(weights, folder / "weights.safetensors")
    with pytest.raises(ImmunityError, match="none negative"):
        PerceptualJudge.load(folder)


def test_missing_weights_are_said(folder):
    (folder / "weights.safetensors").unlink()
    with pytest.raises(ImmunityError, match="the channels' weights"):
        PerceptualJudge.load(folder)
