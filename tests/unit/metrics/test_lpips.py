"""The authors' package needs torchvision, which the build has not: a stand-in records what it is fed."""

import sys
import types

import pytest
import torch
from torch import nn

from immunity import ImmunityError
from immunity.metrics import LpipsJudge, LpipsSimilarity
from immunity.metrics.lpips import ALEXNET_FILE, SMALLEST


class Network(nn.Module):
    """Half the mean absolute difference of each pair, in the shape that the package returns."""

    def __init__(self, net: str, verbose: bool) -> None:
        super().__init__()
        assert net == "alex"
        self.seen: list[torch.Tensor] = []

    def forward(self, a, b):
        self.seen += [a, b]
        return (a - b).abs().mean((1, 2, 3), keepdim=True) / 2


@pytest.fixture
def cache(tmp_path, monkeypatch):
    package = types.ModuleType("lpips")
    package.LPIPS = Network
    monkeypatch.setitem(sys.modules, "lpips", package)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    (tmp_path / "checkpoints").mkdir()
    return tmp_path / "checkpoints"


@pytest.fixture
def judge(cache):
    (cache / ALEXNET_FILE).touch()
    return LpipsJudge.load(batch=2)


def test_without_the_package_it_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "lpips", None)
    with pytest.raises(ImmunityError, match=r"pip install lpips"):
        LpipsJudge.load()


def test_without_the_weights_nothing_is_downloaded(cache):
    with pytest.raises(ImmunityError, match="AlexNet's weights in torch's cache"):
        LpipsJudge.load()


def test_it_is_fed_the_whole_range(judge):
    images = torch.stack([torch.zeros(3, SMALLEST, SMALLEST), torch.ones(3, SMALLEST, SMALLEST)])
    distances = judge.distances(images, images)
    torch.testing.assert_close(distances, torch.tensor([[0.0, 1.0], [1.0, 0.0]]))
    fed = torch.cat(judge.network.seen)
    assert (fed.min(), fed.max()) == (-1, 1)


def test_pictures_keep_their_own_size(judge):
    images = torch.rand(2, 3, 96, 80)
    similarity = LpipsSimilarity(judge)(images, torch.rand(3, 3, 64, 64))
    assert similarity.shape == (2,)
    assert {tuple(x.shape[-2:]) for x in judge.network.seen} == {(96, 80)}
    small = judge.distances(torch.rand(1, 3, 16, 32), torch.rand(1, 3, 16, 32))
    assert small.shape == (1, 1)
    assert judge.network.seen[-1].shape[-2:] == (SMALLEST, 2 * SMALLEST)


def test_equal_pictures_are_as_similar_as_can_be(judge):
    images = torch.rand(1, 3, SMALLEST, SMALLEST)
    torch.testing.assert_close(LpipsSimilarity(judge)(images, images), torch.ones(1))
