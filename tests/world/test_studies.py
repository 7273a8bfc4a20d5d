"""The published studies can be carried out: every file defines studies of concepts that the world has."""

import importlib
import json
from pathlib import Path

import pytest
from PIL import Image

from immunity.cli.study import _studies_of

from tests import synthetic

pytestmark = pytest.mark.world

STUDIES = Path(__file__).parents[2] / "studies"
FILES = sorted(path for path in STUDIES.glob("*.py") if "Study(" in path.read_text())


@pytest.fixture
def publishing(monkeypatch):
    """The module of that name in the folder of the studies."""
    monkeypatch.syspath_prepend(str(STUDIES))
    return importlib.import_module


@pytest.mark.parametrize("file", FILES, ids=lambda path: path.stem)
def test_its_concepts_are_the_worlds_and_its_docstring_tells_how(world, file):
    text = file.read_text(encoding="utf-8")
    assert f"immunity run studies/{file.name}" in text
    for study in _studies_of(file).values():
        assert len(study.seeds) >= 3
        for name in (*study.concepts, *study.benign):
            assert world.examples(name)


def test_the_strip_shows_each_concept_from_every_model(publishing, tmp_path):
    made = synthetic.plan(concepts=("church", "castle"))
    records = synthetic.write_study(tmp_path / "records", made).read()
    assert publishing("drawn").strip(records, tmp_path / "strip.png")
    with Image.open(tmp_path / "strip.png") as image:
        wide = image.size
    alone = synthetic.write_study(tmp_path / "alone").read()
    assert publishing("drawn").strip(alone, tmp_path / "alone.png")
    with Image.open(tmp_path / "alone.png") as image:
        assert image.height == wide[1]
        assert image.width < wide[0]
    for file in (tmp_path / "alone").rglob("*.png"):
        file.unlink()
    for without in (alone, synthetic.study(tmp_path / "nowhere")):
        assert not publishing("drawn").strip(without, tmp_path / "none.png")
    assert not (tmp_path / "none.png").exists()


def test_attacks_are_drawn_side_by_side(publishing, tmp_path):
    drawn = publishing("drawn")
    studies = {name: synthetic.write_study(tmp_path / name).read() for name in ("lora", "dreambooth", "full")}
    assert drawn.across(studies, tmp_path / "across.png")
    assert drawn.strip(studies["lora"], tmp_path / "one.png")
    sizes = []
    for name in ("one", "across"):
        with Image.open(tmp_path / f"{name}.png") as image:
            sizes.append(image.size)
    assert sizes[1][0] > sizes[0][0]
    for file in (tmp_path / "full").rglob("*.png"):
        file.unlink()
    assert not drawn.across(studies, tmp_path / "none.png")


def test_curves_and_choices_are_drawn_from_the_records_alone(publishing, tmp_path):
    drawn = publishing("drawn")
    studies = {name: synthetic.study(tmp_path / name) for name in ("as-expected", "steps-x10")}
    drawn.curves(studies, tmp_path / "curves.png")
    drawn.choices(
        {"steps": ("as-expected", "steps-x10"), "rank": ("as-expected", "rank-64")}, studies, tmp_path / "axes.png"
    )
    for name in ("curves", "axes"):
        with Image.open(tmp_path / f"{name}.png") as image:
            assert image.width > 200
            assert len(image.convert("RGB").getcolors(2**20)) > 10


def test_what_was_learned_is_measured_from_never_seen_to_real(publishing, tmp_path):
    scores = dict.fromkeys(("clip", "dino", "lpips", "accuracy"), 0.2)
    low, high, real = scores, scores | {"clip": 0.56}, dict.fromkeys(scores, 0.8)
    objects = {
        "koala": {"curve": {0: low, 10: high}, "real": real, "lessons": 4},
        "anchor": {"curve": {0: low, 10: low}, "real": real, "lessons": 4},
    }
    learned = {"attack": "dreambooth-lora", "config": {"steps": 10, "lr": 1e-3}, "base_hash": "a", "objects": objects}
    (tmp_path / "dreambooth-lora.json").write_text(json.dumps(learned))
    table = publishing("learning").table
    row = table("a", tmp_path).splitlines()[-1]
    assert row == "| dreambooth-lora, 10 steps at 0.001 | 30% | 0% | 0% | 0% | 1, 0, 0 of 2 |"
    assert "at 0.001 † | 30%" in table("b", tmp_path)
    assert "an earlier version" in table("b", tmp_path)
    assert table("a", tmp_path / "nothing") == ""
