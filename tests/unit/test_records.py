import dataclasses
import json

import pytest
import torch

from immunity import ImmunityError
from immunity.records import Cell, CellKey, MetricSpec, Plan, Point, RecordFolder

from tests import synthetic


@pytest.fixture
def small(tmp_path):
    """A study with one cell written."""
    folder = RecordFolder.create(tmp_path / "study", synthetic.plan())
    folder.write(synthetic.cell("control", count=2), {0: torch.rand(2, 3, 8, 8), 200: torch.rand(2, 3, 8, 8)})
    return folder


def the_file(folder):
    (file,) = (folder.path / "cells").glob("*/*/*.json")
    return file


def edit(file, change):
    document = json.loads(file.read_text())
    change(document)
    file.write_text(json.dumps(document))


def test_what_is_read_is_what_was_written(tmp_path):
    folder = RecordFolder.create(tmp_path, synthetic.plan())
    written = [folder.write(synthetic.cell(arm, seed=1)) for arm in ("base", "control", "imma")]
    read = folder.read()
    assert {cell.key: cell for cell in written} == dict(read.cells)
    assert read.plan == folder.plan()


def test_pictures_lie_beside_their_record(small):
    cell = small.read().finished[0]
    assert cell.points[0].pictures == ("control/step-000000-0.png", "control/step-000000-1.png")
    assert cell.points[1].pictures == ()
    assert all(small.read().picture(cell, name).is_file() for name in cell.points[0].pictures)


def test_only_the_first_pictures_are_kept_and_made_small(tmp_path):
    from PIL import Image

    folder = RecordFolder.create(tmp_path, synthetic.plan())
    cell = folder.write(synthetic.cell("base", count=3), {0: torch.rand(3, 3, 64, 64)}, kept=1, size=32)
    (name,) = cell.points[0].pictures
    with Image.open(folder.read().picture(cell, name)) as image:
        assert image.size == (32, 32)


def test_an_interrupted_study_knows_what_it_has(small):
    assert small.has(CellKey("church", 0, "control", "church"))
    assert not small.has(CellKey("church", 0, "control", "teapot"))
    assert len(small.read().missing()) == len(list(synthetic.plan().cells())) - 1


def test_a_finished_cell_is_not_overwritten(small):
    with pytest.raises(ImmunityError, match="does not exist yet"):
        small.write(synthetic.cell("control", count=2))


def test_a_kill_before_the_record_leaves_no_cell(small, monkeypatch):
    from immunity import typed_json

    monkeypatch.setattr(typed_json, "dumps", lambda *a, **k: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        small.write(synthetic.cell("imma", count=2), {0: torch.rand(2, 3, 8, 8)})
    monkeypatch.undo()
    assert not small.has(CellKey("church", 0, "imma", "church"))
    # The pictures that were left behind are replaced, not stumbled over.
    small.write(synthetic.cell("imma", count=2), {0: torch.rand(2, 3, 8, 8)})
    assert len(small.read().finished) == 2


@pytest.mark.parametrize("name", ["golf ball", "Ünïcode", "../../etc", "a/b", ".", "x" * 300, "Church"])
def test_any_name_makes_a_file_inside_the_study(tmp_path, name):
    folder = RecordFolder.create(tmp_path / "study", synthetic.plan(concepts=(name, "church")))
    folder.write(synthetic.cell("base", concept=name))
    assert [cell.concept for cell in folder.read().finished] == [name]
    assert the_file(folder).resolve().is_relative_to(folder.path.resolve())
    assert not folder.has(CellKey("church", 0, "base", "church"))


def test_a_diverged_loss_survives_as_nan(tmp_path):
    folder = RecordFolder.create(tmp_path, synthetic.plan())
    folder.write(synthetic.cell("control", losses=(0.5, float("inf"), float("nan"))))
    one, *others = folder.read().finished[0].losses
    assert one == 0.5
    assert [value != value for value in others] == [True, True]


def test_the_same_plan_resumes_and_a_wider_one_extends(small):
    assert RecordFolder.create(small.path, synthetic.plan()) == small
    wider = synthetic.plan(concepts=("church", "castle"), seeds=(0, 1, 2, 3))
    RecordFolder.create(small.path, wider)
    assert small.plan().seeds == (0, 1, 2, 3)
    assert len(small.read().finished) == 1


def test_a_plan_with_tuples_in_its_settings_resumes(tmp_path):
    plan = synthetic.plan(settings={"betas": (0.9, 0.999)})
    assert RecordFolder.create(tmp_path, plan) == RecordFolder.create(tmp_path, plan)


@pytest.mark.parametrize(
    "changes",
    [
        {"settings": {"guidance": 1.0}},
        {"seeds": (0, 1)},
        {"metrics": synthetic.METRICS[:1]},
        {"arms": (*synthetic.ARMS[:3], dataclasses.replace(synthetic.ARMS[3], config={"outer_lr": 1.0}))},
    ],
)
def test_a_different_plan_is_refused(small, changes):
    with pytest.raises(ImmunityError, match=f"differs in .*{next(iter(changes))}"):
        RecordFolder.create(small.path, synthetic.plan(**changes))


def test_a_study_of_the_base_model_does_not_become_one_of_an_erased_model(tmp_path):
    attacked = tuple(arm for arm in synthetic.ARMS if arm.role != "erased")
    RecordFolder.create(tmp_path, synthetic.plan(arms=attacked))
    with pytest.raises(ImmunityError, match="differs in arms"):
        RecordFolder.create(tmp_path, synthetic.plan())


@pytest.mark.parametrize("changes", [{"concepts": ()}, {"seeds": (1, 1)}, {"metrics": ()}])
def test_a_plan_with_nothing_or_with_doubles_is_refused(changes):
    with pytest.raises(ImmunityError, match="at least one"):
        synthetic.plan(**changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"concept": "castle", "subject": "castle"}, "concept among"),
        ({"seed": 9}, "seed among"),
        ({"arm": "other"}, "arm among"),
        ({"subject": "castle"}, "subject among"),
        ({"points": (Point(step=0, scores={"clip": (1.0,) * 2}),)}, "scores of"),
    ],
)
def test_a_cell_of_another_study_is_refused(small, changes, message):
    with pytest.raises(ImmunityError, match=message):
        small.write(dataclasses.replace(synthetic.cell("imma", count=2), **changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"picture_seeds": (1,)}, "one seed for each prompt"),
        ({"points": ()}, "rising steps"),
        ({"points": (Point(step=5, scores={}), Point(step=5, scores={}))}, "rising steps"),
        ({"points": (Point(step=0, scores={"clip": (1.0,)}),)}, "2 scores"),
        ({"points": (Point(step=0, scores={"clip": (1.0, float("nan"))}),)}, "finite"),
        ({"points": (Point(step=0, scores={"clip": (1.0, 1.0)}), Point(step=1, scores={}))}, "same metrics"),
        ({"points": (Point(step=0, scores={}, pictures=("../../secret.png",)),)}, "relative paths"),
        ({"points": (Point(step=0, scores={}, pictures=("/secret.png",)),)}, "relative paths"),
        ({"points": (Point(step=0, scores={}, pictures=("secret.key",)),)}, "relative paths"),
    ],
)
def test_a_cell_that_contradicts_itself_is_refused(changes, message):
    with pytest.raises(ImmunityError, match=message):
        synthetic.cell("control", count=2, **changes)


BREAKAGES = {
    "half a file": (lambda file: file.write_text(file.read_text()[:200]), "complete file"),
    "an empty file": (lambda file: file.write_text(""), "complete file"),
    "not text": (lambda file: file.write_bytes(b"\xff\xfe\x00\x01"), "complete file"),
    "other JSON": (lambda file: file.write_text("[1, 2]"), "some other JSON"),
    "another format": (lambda file: edit(file, lambda d: d.update(format="recipe")), "format 'recipe'"),
    "a newer version": (lambda file: edit(file, lambda d: d.update(version=99)), "version 99"),
    "no content": (lambda file: edit(file, lambda d: d.pop("content")), "should be an object"),
    "a missing field": (lambda file: edit(file, lambda d: d["content"].pop("prompts")), "lacks 'prompts'"),
    "an unknown field": (lambda file: edit(file, lambda d: d["content"].update(x=1)), "unknown field 'x'"),
    "a wrong type": (lambda file: edit(file, lambda d: d["content"].update(seed="0")), "content.seed should be int"),
    "a boolean number": (lambda file: edit(file, lambda d: d["content"].update(seed=True)), "should be int"),
    "a wrong list": (lambda file: edit(file, lambda d: d["content"].update(points={})), "should be a list"),
    "a wrong score": (
        lambda file: edit(file, lambda d: d["content"]["points"][0]["scores"]["clip"].__setitem__(1, "high")),
        r"points\[0\].scores.clip\[1\] should be a number",
    ),
    "a missing score": (
        lambda file: edit(file, lambda d: d["content"]["points"][0]["scores"]["clip"].pop()),
        "2 scores",
    ),
    "another cell's place": (lambda file: file.rename(file.with_name("imma.json")), "the cell"),
}


@pytest.mark.parametrize("breakage", BREAKAGES)
def test_a_broken_record_is_named_in_one_line(small, breakage):
    damage, message = BREAKAGES[breakage]
    damage(the_file(small))
    with pytest.raises(ImmunityError, match=message) as caught:
        small.read()
    assert str(small.path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("digits", [400, 5000])  # more than a float holds, and more than Python reads
def test_numbers_that_no_reader_gets_through(small, digits):
    file = the_file(small)
    edit(file, lambda d: d["content"].update(losses=[123456789]))
    file.write_text(file.read_text().replace("123456789", "9" * digits))
    with pytest.raises(ImmunityError, match="running the study again"):
        small.read()


def test_a_wrong_role_in_the_plan_is_named(small):
    edit(small.path / "study.json", lambda d: d["content"]["arms"][0].update(role="hero"))
    with pytest.raises(ImmunityError, match=r"arms\[0\].role should be one of base"):
        small.plan()


def test_a_folder_without_a_study_is_refused(tmp_path):
    with pytest.raises(ImmunityError, match=r"study\.json"):
        RecordFolder(tmp_path).read()


def test_a_study_needs_a_metric_that_shows_the_concept():
    with pytest.raises(ImmunityError, match="more of the concept"):
        synthetic.plan(metrics=(MetricSpec(name="fid", kind="quality", higher_is_better=False),))


def test_a_distance_has_no_gap_ratio():
    assert not MetricSpec(name="lpips", higher_is_better=False).shows_concept
    assert not MetricSpec(name="fid", kind="quality").shows_concept
    assert MetricSpec(name="clip").shows_concept


def test_a_complete_study_has_benign_cells_for_control_and_defence_only():
    plan = Plan(
        title="", concepts=("a", "b"), seeds=(0,), arms=synthetic.ARMS, metrics=synthetic.METRICS, benign=("b", "c")
    )
    benign = [key for key in plan.cells() if key.subject != key.concept]
    assert {key.arm for key in benign} == {"control", "imma"}
    assert {(key.concept, key.subject) for key in benign} == {("a", "b"), ("a", "c"), ("b", "c")}


def test_a_cell_knows_its_key():
    cell = synthetic.cell("imma", subject="teapot", seed=2)
    assert isinstance(cell, Cell)
    assert cell.key == ("church", 2, "imma", "teapot")
