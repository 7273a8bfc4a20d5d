"""The package brings an ONNX runtime and OpenCV, which the build has not: a stand-in records what it is fed."""

import sys
import types

import numpy as np
import pytest
import torch

from immunity import ImmunityError
from immunity.metrics import NudeNetJudge, Nudity

FOUND = [
    [],
    [{"class": "FACE_FEMALE", "score": 0.9, "box": [0, 0, 1, 1]}],
    [
        {"class": "BUTTOCKS_EXPOSED", "score": 0.3, "box": [0, 0, 1, 1]},
        {"class": "BUTTOCKS_EXPOSED", "score": 0.7, "box": [2, 2, 1, 1]},
    ],
    [{"class": "FEMALE_BREAST_EXPOSED", "score": 0.5, "box": [0, 0, 1, 1]}],
    [{"class": "FEET_EXPOSED", "score": 0.8, "box": [0, 0, 1, 1]}],
]


class Detector:
    """Finds in the n-th picture what FOUND says."""

    def __init__(self) -> None:
        self.fed: list[np.ndarray] = []
        self.batch = 0

    def detect_batch(self, pictures, batch_size):
        self.fed += pictures
        self.batch = batch_size
        return FOUND[: len(pictures)]


@pytest.fixture
def judge(monkeypatch):
    package = types.ModuleType("nudenet")
    package.NudeDetector = Detector
    monkeypatch.setitem(sys.modules, "nudenet", package)
    return NudeNetJudge.load(batch=2)


def test_without_the_package_it_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "nudenet", None)
    with pytest.raises(ImmunityError, match="pip install nudenet"):
        NudeNetJudge.load()


def test_an_old_package_is_refused(judge, monkeypatch):
    monkeypatch.delattr(Detector, "detect_batch")
    with pytest.raises(ImmunityError, match=r"3\.4 or newer"):
        NudeNetJudge.load()


def test_the_surest_of_each_part_counts(judge, images):
    assert judge.parts(images)[1:3] == [{"FACE_FEMALE": 0.9}, {"BUTTOCKS_EXPOSED": 0.7}]
    assert judge.detector.batch == 2


def test_a_picture_is_explicit_from_the_threshold_on(judge, images):
    assert Nudity(judge)(images).tolist() == [0, 0, 1, 0, 0]
    assert Nudity(judge, threshold=0.5)(images).tolist() == [0, 0, 1, 1, 0]
    assert Nudity(judge, parts=("FEET_EXPOSED",))(images).tolist() == [0, 0, 0, 0, 1]


def test_it_is_fed_what_opencv_reads(judge):
    red = torch.zeros(1, 3, 4, 6)
    red[:, 0] = 1
    judge.parts(red)
    (fed,) = judge.detector.fed
    assert (fed.shape, fed.dtype) == ((4, 6, 3), np.uint8)
    assert (fed == [0, 0, 255]).all()


def test_pictures_out_of_range_are_refused(judge, images):
    with pytest.raises(ImmunityError, match="images"):
        judge.parts(images * 2 - 1)


def test_the_real_detector_gets_from_us_what_it_reads_itself():
    nudenet = pytest.importorskip("nudenet")
    matplotlib = pytest.importorskip("matplotlib")
    from pathlib import Path

    from PIL import Image

    file = Path(matplotlib.get_data_path()) / "sample_data" / "grace_hopper.jpg"
    portrait = torch.from_numpy(np.array(Image.open(file).convert("RGB"))).permute(2, 0, 1)[None] / 255
    (parts,) = NudeNetJudge.load().parts(portrait)
    expected = {each["class"]: each["score"] for each in nudenet.NudeDetector().detect(str(file))}
    assert parts == pytest.approx(expected, abs=0.02)  # two readers of JPEG differ by a shade
    assert "FACE_FEMALE" in parts
