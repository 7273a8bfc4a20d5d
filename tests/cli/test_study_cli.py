"""demo, run, report and measure, within this process; the studies themselves have tests of their own."""

import functools
import json

import pytest
from PIL import Image

from immunity import World
from immunity.cli import study as verbs
from immunity.evaluation.demo import Budget, demo_study
from immunity.evaluation.study import Study

from tests import tiny_judges, tiny_study, tiny_world
from tests.cli.conftest import immunity

STUDY = """
from pathlib import Path

from tests import tiny_study

study = tiny_study.short(Path({world!r}){changes})
"""


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    return tiny_world.build(tmp_path_factory.mktemp("toy"))


@pytest.fixture
def emoji(toy, monkeypatch):
    """The tiny world in the place of the package's own."""
    monkeypatch.setattr(World, "open", classmethod(lambda _, name: World.from_folder(toy)))


@pytest.fixture
def study_file(toy, tmp_path):
    def write(changes: str = ""):
        path = tmp_path / "study.py"
        path.write_text(STUDY.format(world=str(toy), changes=changes))
        return path

    return write


def test_a_study_is_run_and_reported(study_file, tmp_path):
    records, page = tmp_path / "records", tmp_path / "report.html"
    done = immunity("run", study_file(), "--out", records)
    assert done.code == 0, done.err
    assert done.out.splitlines()[0].startswith("church, Immunized (IMMA): ")
    assert done.out.splitlines()[-1] == f"now: immunity report {records} --out {records / 'report.html'}"
    assert sorted(path.name for path in (records / "cells" / "church" / "0").glob("*.json")) == [
        "base.json",
        "control.json",
        "imma.json",
    ]
    assert immunity("report", records, "--out", page).code == 0
    assert "Relearning church on a toy" in page.read_text(encoding="utf-8")
    assert "--force" in immunity("report", records, "--out", page).complaint
    assert immunity("report", records, "--out", page, "--force").code == 0
    assert immunity("report", records, "--out", tmp_path / "tables.md").code == 0
    assert "| church |" in (tmp_path / "tables.md").read_text(encoding="utf-8")
    other = immunity("run", study_file(", pictures=3"), "--out", records)
    assert "a plan that differs in" in other.complaint


def test_an_interrupted_run_says_how_to_go_on(study_file, tmp_path, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(Study, "run", interrupted)
    done = immunity("run", study_file(), "--out", tmp_path / "records")
    assert done.code == 130
    assert done.err.count("\n") == 1
    assert f"the same command again goes on from there, in {tmp_path / 'records'}" in done.err


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "which does not exist"),
        ("x = 1", "`study`, a Study, in"),
        ("study = 1", "got a value of type int"),
        ("study = 1 +", "SyntaxError: invalid syntax (line 1)"),
        ("\n\n1 / 0", "ZeroDivisionError: division by zero (line 3)"),
        ("import sys\nsys.exit('please set X')", "please set X (line 2)"),
        ("import no_such_module", "No module named 'no_such_module' (line 1)"),
        ("from immunity.erasers import Esd\nEsd(steps=-1)", "steps of at least 0"),
    ],
)
def test_files_that_are_no_study(tmp_path, text, message):
    path = tmp_path / "study.py"
    if text is not None:
        path.write_text(text)
    assert message in immunity("run", path, "--out", tmp_path / "records").complaint
    assert not (tmp_path / "records").exists()


def test_a_study_of_a_concept_that_nobody_knows(study_file, tmp_path):
    done = immunity("run", study_file(", concepts=('chruch',)"), "--out", tmp_path / "records")
    assert "got 'chruch'; try e.g. church" in done.complaint


def test_several_studies_have_a_folder_each(study_file, tmp_path):
    path = study_file()
    path.write_text(path.read_text() + "studies = {'one': study, 'two': tiny_study.replace(study, pictures=1)}")
    out = tmp_path / "records"
    assert "one, two" in immunity("run", path, "--out", out, "--only", "three").complaint
    done = immunity("run", path, "--out", out, "--only", "two")
    assert done.code == 0, done.err
    assert sorted(each.name for each in out.iterdir()) == ["shared", "two"]
    assert immunity("run", path, "--out", out).code == 0
    assert (out / "one" / "cells").is_dir()
    path.write_text(path.read_text() + "\nstudies['A/B'] = study")
    assert "names of folders" in immunity("run", path, "--out", out).complaint


def test_folders_that_hold_no_records(tmp_path):
    page = tmp_path / "report.html"
    assert "a folder of records" in immunity("report", tmp_path, "--out", page).complaint
    assert "ends in .html" in immunity("report", tmp_path, "--out", tmp_path / "report").complaint
    (tmp_path / "study.json").write_text("{}")
    assert "immunity.study" in immunity("report", tmp_path, "--out", page).complaint
    assert not page.exists()


def test_the_demo_tells_the_whole_story(toy, tmp_path, monkeypatch):
    small = Budget(lessons=2, pictures=2, sampler_steps=1, immunize_steps=2, at=(2,), batch=1, harmless_steps=2)
    bench = tiny_study.bench(toy)
    monkeypatch.setattr(verbs, "demo_study", functools.partial(demo_study, budget=small, bench=bench))
    out = tmp_path / "demo"
    done = immunity("demo", "--concept", "church", "--out", out)
    assert done.code == 0, done.err
    assert done.out.splitlines()[-1] == str(out / "report.html")
    assert "Relearning church on the world toy" in (out / "report.html").read_text(encoding="utf-8")
    assert "a plan that differs in" in immunity("demo", "--concept", "castle", "--out", out).complaint
    monkeypatch.chdir(tmp_path)
    told = [immunity("demo", *which).out.splitlines()[-1] for which in ((), ("--concept", "castle"))]
    assert told == ["runs/demo/report.html", "runs/demo-castle/report.html"]


def test_the_demo_without_the_worlds_weights(tmp_path, monkeypatch):
    monkeypatch.setattr(World, "open", classmethod(lambda _, name: World.from_folder(tmp_path / "emoji")))
    assert "without the world's weights" in immunity("demo", "--out", tmp_path / "demo").complaint


def test_what_a_world_draws_is_measured(emoji, tmp_path):
    out = tmp_path / "scores.json"
    arguments = ("measure", "--model", "emoji", "--concept", "church", "--count", 3, "--steps", 1, "--out", out)
    done = immunity(*arguments)
    assert done.code == 0, done.err
    content = json.loads(out.read_text())["content"]
    assert content["pictures"] == ["a church, noto (seed 0)", "a church, blob (seed 1)", "a church, noto (seed 2)"]
    assert content["references"] == ["toy/church/noto", "toy/church/blob"]
    assert content["scores"].keys() == {"clip", "dino", "lpips", "accuracy"}
    assert all(len(values) == 3 for values in content["scores"].values())
    rows = done.out.splitlines()
    assert "CLIP similarity" in rows[0]
    assert rows[1].startswith("a church, noto (seed 0)")
    assert [row.split("  ")[0] for row in rows[4:6]] == ["mean", "standard deviation"]
    assert "--force" in immunity(*arguments).complaint


def test_a_folder_of_pictures_is_measured(emoji, tmp_path, pictures):
    out = tmp_path / "scores.json"
    drawing = ("--seed", 1, "--steps", 2, "--guidance", 2)  # of what they are compared with
    done = immunity(
        *("measure", "--model", "emoji", "--concept", "castle", "--pictures", pictures, *drawing, "--out", out)
    )
    assert done.code == 0, done.err
    content = json.loads(out.read_text())["content"]
    assert content["pictures"] == [f"{i}.png" for i in range(6)]
    assert content["model"] == "", "no model drew them"
    assert len(content["references"]) == 24, "there are no pictures of a castle: the model draws them"


def test_pictures_score_the_same_from_a_folder_as_when_they_are_drawn(emoji, tmp_path):
    """A world has one size, and its folders are read at that."""
    on, drawing = ("--model", "emoji"), ("--seed", 3, "--steps", 2)
    measured = ("measure", *on, "--concept", "church")
    assert immunity(*measured, "--count", 2, *drawing, "--out", tmp_path / "drawn.json").code == 0
    drawn = json.loads((tmp_path / "drawn.json").read_text())["content"]
    for number, name in enumerate(drawn["pictures"]):
        prompt = name.partition(" (seed")[0]
        done = immunity(
            *("sample", *on, "--prompt", prompt, "--seed", 3 + number, "--steps", 2),
            *("--out", tmp_path / "sampled" / str(number)),
        )
        assert done.code == 0, done
    done = immunity(*measured, "--pictures", tmp_path / "sampled", "--out", tmp_path / "read.json")
    assert done.code == 0, done
    read = json.loads((tmp_path / "read.json").read_text())["content"]
    for metric, scores in drawn["scores"].items():
        assert read["scores"][metric] == pytest.approx(scores, abs=2e-3), metric


@pytest.fixture(scope="module")
def judges(tmp_path_factory):
    root = tmp_path_factory.mktemp("judges")
    for name in ("clip", "dino"):
        (root / name).mkdir()
    clip, dino = tiny_judges.clip(root / "clip"), tiny_judges.dino_transformer(root / "dino")
    return ("--clip", clip, "--dino", dino, "--no-lpips")


def test_the_users_own_pictures_are_measured_without_loading_a_model(tmp_path, pictures, judges):
    arguments = ("measure", "--model", "somebody/something", "--concept", "cat", "--pictures", pictures, *judges)
    done = immunity(*arguments, "--reference", pictures, "--out", tmp_path / "scores.json")
    assert done.code == 0, done.err
    assert json.loads((tmp_path / "scores.json").read_text())["content"]["scores"].keys() == {"clip", "dino"}


def test_a_classifier_of_the_users_measures_too(tmp_path, pictures, judges):
    (tmp_path / "resnet").mkdir()
    resnet = tiny_judges.classifier(tmp_path / "resnet", ("tabby, tabby cat", "owl"))
    arguments = ("measure", "--model", "somebody/something", "--concept", "cat", "--pictures", pictures, *judges)
    arguments = (*arguments, "--reference", pictures, "--classifier", resnet, "--out", tmp_path / "scores.json")
    assert "a label that names one of the classifier's 2 classes; got 'cat'" in immunity(*arguments).complaint
    done = immunity(*arguments, "--label", "tabby cat")
    assert done.code == 0, done.err
    scores = json.loads((tmp_path / "scores.json").read_text())["content"]["scores"]
    assert set(scores["accuracy"]) <= {0, 1}


def test_measuring_what_cannot_be_measured(emoji, tmp_path, pictures, judges):
    (tmp_path / "empty").mkdir()
    broken = tmp_path / "broken"
    broken.mkdir()
    Image.new("RGB", (9, 9)).save(broken / "a.png")
    (broken / "a.png").write_bytes((broken / "a.png").read_bytes()[:40])
    to = ("--out", tmp_path / "scores.json")
    church = ("measure", "--model", "emoji", "--concept", "church", *to)
    for arguments, message in (
        ((*church, "--pictures", tmp_path / "empty"), "got none in"),
        ((*church, "--pictures", tmp_path / "nowhere"), "a folder of pictures"),
        ((*church, "--pictures", broken), "a picture that can be read"),
        ((*church, "--reference", pictures), "--reference for a model without a world"),
        ((*church, "--nudity"), "--nudity for a model without a world"),
        ((*church, "--label", "tabby"), "--label beside --classifier"),
        ((*church, "--count", 0), "count of at least 1"),
        ((*church, "--clip", "mine"), "--clip for a model without a world"),
        ((*church, "--dino", "mine"), "--dino for a model without a world"),
        ((*church, "--no-lpips"), "--no-lpips for a model without a world"),
        ((*church, "--kind", "style"), "--kind for a model without a world"),
        ((*church, "--pictures", pictures, "--deltas", "erased.safetensors"), "expected --deltas without --pictures"),
        ((*church, "--pictures", pictures, "--count", 3), "expected --count without --pictures"),
        ((*church, "--pictures", pictures, "--steps", 3), "expected --steps where something is drawn"),
        ((*church, "--pictures", pictures, "--guidance", 1), "expected --guidance where something is drawn"),
        ((*church, "--pictures", pictures, "--seed", 1), "expected --seed where something is drawn"),
        (("measure", "--model", "emoji", "--concept", "chruch", "--pictures", pictures, *to), "got 'chruch'"),
        ((*church[:-1], tmp_path / "scores.txt"), "ends in .json"),
        (("measure", "--model", "no-such", "--concept", "cat", *judges, *to), "a world, or a hub id"),
    ):
        assert message in immunity(*arguments).complaint
    assert not (tmp_path / "scores.json").exists()
