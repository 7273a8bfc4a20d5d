import dataclasses
import os
import subprocess
import sys
import threading
import time
import types
from pathlib import Path

import pytest
import torch

from immunity import Concept, Delta, Esd, Examples, FolderBench, ImmunityError, Subject, Uce, load
from immunity.adaptations import Lora, Mixture, TextualInversion
from immunity.evaluation import conduct
from immunity.evaluation.store import Store
from immunity.immunizers import AscentOnly, Imma, RandomPerturbation
from immunity.poisons import Advdm, Poisoned, RandomNoise
from immunity.poisons.base import Perturbation
from immunity.records import CellKey, RecordFolder, Run
from immunity.report.page import render
from immunity.stepping import DivergedError, StepResult

from tests import tiny_study

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def records(toy, tmp_path_factory):
    """A whole study, not interrupted."""
    return tiny_study.study(toy).run(tmp_path_factory.mktemp("records"), progress=False)


def cell(records, arm, *, seed=0, subject="church"):
    return records.cells[CellKey("church", seed, arm, subject)]


def test_every_cell_is_measured_and_nothing_is_left_under_way(records):
    assert records.missing() == ()
    assert len(records.finished) == 2 * (3 + 1 + 3 + 2)
    assert cell(records, "base").steps == cell(records, "erased").steps == (0,)
    assert cell(records, "imma").steps == (0, 2, 4)
    assert len(cell(records, "imma").losses) == 4
    assert not any((records.folder / "work").iterdir())
    for found in records.finished:
        assert found.run.wall_seconds > 0
        assert found.run.peak_bytes > 1e7
        assert all(len(point.pictures) == 2 for point in found.points)


def test_what_is_measured_twice_is_measured_in_the_same_way(records):
    """Control, defences and baselines: same erased model, same attacker's pictures, same prompts, same noise."""
    for seed in (0, 1):
        for subject in ("church", "dog face"):
            control = cell(records, "control", seed=seed, subject=subject)
            for arm in ("imma", "ascent", "noise", "nothing") if subject == "church" else ("imma",):
                other = cell(records, arm, seed=seed, subject=subject)
                assert (other.prompts, other.picture_seeds) == (control.prompts, control.picture_seeds)
                assert other.run.deltas["erase"] == control.run.deltas["erase"]
                assert other.run.examples["attack"] == control.run.examples["attack"]
                assert other.run.examples["reference"] == control.run.examples["reference"]
                assert not set(other.run.examples["attack"]) & set(other.run.examples.get("defence", ()))
                assert ("defence" in other.run.examples) == (arm != "noise"), "what is random learns from none"
    assert cell(records, "erased").points[0].scores == cell(records, "control").points[0].scores
    assert cell(records, "base").picture_seeds == cell(records, "control").picture_seeds
    assert not set(cell(records, "base").picture_seeds) & set(cell(records, "base", seed=1).picture_seeds)
    assert cell(records, "control").run.deltas["erase"] != cell(records, "control", seed=1).run.deltas["erase"]


def test_a_defence_that_changes_nothing_gives_the_controls_scores(records):
    for seed in (0, 1):
        control, nothing = cell(records, "control", seed=seed), cell(records, "nothing", seed=seed)
        assert [point.scores for point in nothing.points] == [point.scores for point in control.points]
        assert nothing.losses == control.losses
        assert cell(records, "imma", seed=seed).losses != control.losses


def test_other_concepts_are_asked_for_before_the_attack(records):
    for arm in ("base", "erased", "control", "imma", "noise"):
        before, *after = cell(records, arm).points
        assert before.others.keys() == {"castle"}
        assert len(before.others["castle"]) == 2
        assert not any(point.others for point in after)


def test_the_random_change_is_as_large_as_the_defence(records, toy):
    deltas = {delta.hash: delta for delta in map(Delta.load, (records.folder / "deltas").iterdir())}
    made = {arm: cell(records, arm).run.deltas for arm in ("imma", "noise")}
    before = load(toy / "generator", deltas=[deltas[made["imma"]["erase"]]]).parameters("all")
    sizes = {
        arm: {name: (value - before[name]).norm() for name, value in deltas[hashes["immunize"]].tensors.items()}
        for arm, hashes in made.items()
    }
    assert sizes["imma"].keys() == sizes["noise"].keys()
    for name, size in sizes["imma"].items():
        torch.testing.assert_close(sizes["noise"][name], size, rtol=1e-3, atol=1e-5)


def test_pictures_that_taught_can_be_used_again(records):
    learned = cell(records, "imma").run.examples
    for purpose in ("attack", "defence"):
        (folder,) = (records.folder / "pictures").glob(f"church-0-{purpose}-*")
        examples = Examples.from_folder(folder, size=16)
        assert examples.image_digests() == learned[purpose]
        assert examples.prompts == ("a church, noto", "a church, blob", "a church, noto")


def test_running_it_again_repeats_nothing(records, toy):
    def times():
        return {path: path.stat().st_mtime_ns for path in records.folder.rglob("*.*") if path.name != "study.json"}

    before = times()
    again = tiny_study.study(toy).run(records.folder, progress=False)
    assert times() == before
    assert again.finished == records.finished


def test_processes_share_a_study_by_concept_and_seed(records, toy, tmp_path, monkeypatch):
    """While another one is at seed 0, this one measures seed 1, then waits for what is left."""
    monkeypatch.setattr(conduct, "_SECONDS_BETWEEN_LOOKS", 0.05)
    study = tiny_study.study(toy, baselines={}, benign=())
    seen_while_claimed = []

    def other_process():
        with Store(tmp_path).claim("church 0") as mine:
            assert mine
            claimed.set()
            while not (tmp_path / "cells" / "church" / "1" / "imma.json").exists():
                time.sleep(0.05)
            seen_while_claimed.extend(path.name for path in (tmp_path / "cells" / "church").iterdir())

    claimed = threading.Event()
    other = threading.Thread(target=other_process, daemon=True)
    other.start()
    assert claimed.wait(10)
    made = study.run(tmp_path, progress=False)
    other.join(10)
    assert seen_while_claimed == ["1"]
    assert made.missing() == ()
    for each in made.finished:
        assert _without_times(each) == _without_times(records.cells[each.key])


def test_studies_share_what_they_have_in_common(toy, tmp_path):
    """The same defence against two attacks; one of them is not the one that the defence expects."""
    shared, foreseen = tmp_path / "shared", Lora(steps=2, lr=1e-2)
    first = tiny_study.short(toy, attack=foreseen)
    first.run(tmp_path / "first", progress=False, shared=shared)
    made = {path.name: path.stat().st_mtime_ns for path in (shared / "deltas").iterdir()}
    assert len(made) == 1
    second = tiny_study.short(toy, attack=Lora(steps=2, lr=2e-2, rank=1), against={"imma": foreseen})
    records = second.run(tmp_path / "second", progress=False, shared=shared)
    assert {path.name: path.stat().st_mtime_ns for path in (shared / "deltas").iterdir()} == made
    assert records.plan.arm("imma").config["against"]["rank"] == 4
    assert records.cells[CellKey("church", 0, "imma", "church")].run.attack["rank"] == 1
    assert not (tmp_path / "second" / "deltas").exists()


def test_a_study_of_a_style_can_be_widened(toy, tmp_path):
    study = tiny_study.short(toy, concepts=("blob",), eraser=Uce())
    first = study.run(tmp_path, progress=False)
    assert first.cells[CellKey("blob", 0, "imma", "blob")].points[0].others.keys() == {"noto", "church", "castle"}
    study = dataclasses.replace(study, baselines={"noise": RandomPerturbation(like="imma")})
    wider = study.run(tmp_path, progress=False)
    assert wider.missing() == ()
    assert len(wider.finished) == len(first.finished) + 1
    assert all(wider.cells[each.key] == each for each in first.finished)
    with pytest.raises(ImmunityError, match=r"a plan that differs in .*settings; try another folder"):
        dataclasses.replace(study, pictures=3).run(tmp_path, progress=False)


def test_the_report_is_made_of_the_records(records):
    page = render(records, draws=50)
    for expected in ("Relearning church on a toy", "Immunized (IMMA)", "Random perturbation", "dog face", "castle"):
        assert expected in page


def test_a_study_killed_again_and_again_gives_the_same_records(records, toy, tmp_path):
    """kill -9 in the middle of the defence, of the attack on the control, and of one on a defended model."""
    counter = tmp_path / "losses"
    counter.write_text("0")
    environment = {
        **os.environ,
        "LOSSES_COUNTED_IN": str(counter),
        # Uninterrupted, the losses 1 to 4 are the attack's on the control, 5 to 8 IMMA's, and 9 to 12 the attack's on
        # what IMMA made; each kill is one loss more.
        "LETHAL": "3 7 13",
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
    }
    done = subprocess.run(
        [sys.executable, "-m", "tests.tiny_study", toy, tmp_path / "records"],
        capture_output=True,
        text=True,
        env=environment,
        cwd=ROOT,
        check=False,
        timeout=280,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["4"], "it was not killed three times"
    killed = RecordFolder(tmp_path / "records").read()
    assert {key.arm for key in killed.cells} == {"base", "erased", "control", "imma"}
    for each in killed.finished:
        assert _without_times(each) == _without_times(records.cells[each.key])
    for file in (killed.folder / "cells").rglob("*.png"):
        assert file.read_bytes() == (records.folder / file.relative_to(killed.folder)).read_bytes()
    assert not any((killed.folder / "work").iterdir())


def _without_times(found):
    run = dataclasses.replace(found.run, wall_seconds=0.0, peak_bytes=0, created="")
    return dataclasses.replace(found, run=run)


def test_a_defence_or_attack_that_diverges_does_not_stop_the_others(toy, tmp_path):
    study = tiny_study.short(toy, defences={"imma": Imma(steps=4, outer_lr=1e30, clip=None)}, benign=("dog face",))
    with pytest.raises(
        ImmunityError, match=r"2 that did not: church 0 imma .*; dog face 0 imma .*lower learning rates"
    ):
        study.run(tmp_path, progress=False)
    assert [key.arm for key in RecordFolder(tmp_path).read().missing()] == ["imma", "imma"]
    assert not any((tmp_path / "work").iterdir())


def test_the_users_own_model_and_pictures(tiny_folders, judges, pictures, tmp_path, monkeypatch):
    detector = types.SimpleNamespace(detect_batch=lambda pictures, batch_size: [[]] * len(pictures))
    monkeypatch.setitem(sys.modules, "nudenet", types.SimpleNamespace(NudeDetector=lambda: detector))
    judges = judges | {"nudity": True}
    cat = Subject(concept=Concept(name="cat"), attack=pictures, prompt="a photo of my cat")
    bench = FolderBench(model=str(tiny_folders["sd1"]), subjects=(cat,), others=("castle",), other_pictures=1, **judges)
    study = tiny_study.short(Path(), bench=bench, concepts=("cat",), eraser=Uce())
    records = study.run(tmp_path, progress=False)
    assert {key.arm for key in records.cells} == {"base", "erased", "control", "imma"}
    imma = records.cells[CellKey("cat", 0, "imma", "cat")]
    assert imma.points[0].scores.keys() == {"clip", "dino", "accuracy", "nudity"}
    assert imma.points[0].others.keys() == {"castle"}
    assert (len(imma.run.examples["attack"]), len(imma.run.examples["defence"])) == (2, 3)
    page = render(records, draws=50)
    assert "same-source" in page
    assert str(pictures) not in page + (tmp_path / "study.json").read_text(), "paths are nobody's business"


def test_poisoned_pictures_beside_an_immunized_model(toy, tmp_path):
    advdm = Advdm(steps=2, budget=20)
    poisons = {
        "poisoned": Poisoned(by=advdm),
        "half": Poisoned(by=advdm, share=0.5),
        "saved": Poisoned(by=advdm, jpeg=50),
    }
    baselines = {"noise": Poisoned(by=RandomNoise()), "resaved": Poisoned(by=advdm, share=0, jpeg=50)}
    defences = {"imma": Imma(steps=2)} | poisons
    study = tiny_study.short(toy, eraser=Uce(), defences=defences, baselines=baselines, benign=("dog face",))
    records = study.run(tmp_path, progress=False)
    poisons |= baselines

    def run(arm: str, subject: str = "church") -> Run:
        return records.cells[CellKey("church", 0, arm, subject)].run

    assert len({run(arm).examples["attack"] for arm in ("control", *poisons)}) == 1, "they come by the same pictures"
    taught = {arm: run(arm).examples["poisoned"] for arm in poisons}
    clean = run("control").examples["attack"]
    same = {arm: sum(a == b for a, b in zip(taught[arm], clean, strict=True)) for arm in poisons}
    assert same == {"poisoned": 0, "half": 1, "saved": 0, "noise": 0, "resaved": 0}
    assert taught["saved"] != taught["poisoned"]
    assert set(run("poisoned").deltas) == {"erase", "attack"}
    assert "defence" not in run("poisoned").examples
    harmless = {key.arm for key in records.cells if key.subject == "dog face"}
    assert harmless == {"control", "imma"}, "what is harmless nobody poisons, and it would be the control again"
    assert run("poisoned").deltas["attack"] != run("control").deltas["attack"]
    assert run("poisoned").config["by"]["method"] == "Advdm"
    titles = [records.plan.arm(arm).title for arm in ("poisoned", "half", "saved")]
    expected = ["Poisoned (AdvDM)", "Poisoned (AdvDM, 50% of the pictures)", "Poisoned (AdvDM, JPEG 50)"]
    assert titles == expected
    made = list((tmp_path / "pictures").glob("church-0-advdm-*"))
    assert len(made) == 2, "all, and half of them: saving again is the attacker's"
    assert not any((tmp_path / "work").iterdir())
    assert "unequal-conditions" not in render(records, draws=50)


def test_a_poison_that_diverges_is_tried_once(toy, tmp_path, monkeypatch):
    tried = []

    def diverge(self, loss):
        tried.append(1)
        raise DivergedError(StepResult(float("nan"), 0.0), remedy="another model")

    monkeypatch.setattr(Perturbation, "ascend", diverge)
    defences = {"imma": Imma(steps=2), "a": Poisoned(by=Advdm(steps=1)), "b": Poisoned(by=Advdm(steps=1), jpeg=50)}
    with pytest.raises(ImmunityError, match=r"2 that did not: church 0 a .*church 0 b"):
        tiny_study.short(toy, defences=defences).run(tmp_path, progress=False)
    assert len(tried) == 1
    assert not any((tmp_path / "work").iterdir())


def test_an_eraser_can_be_the_baseline_that_erases_once_more(toy, tmp_path):
    again = Esd(steps=2, lr=1e-2, sampler_steps=2)
    records = tiny_study.short(toy, eraser=Uce(), baselines={"again": again}).run(tmp_path, progress=False)
    assert records.plan.arm("again").title == "Erased again (ESD)"
    cells = {arm: records.cells[CellKey("church", 0, arm, "church")] for arm in ("control", "again")}
    assert cells["again"].run.deltas["erase"] == cells["control"].run.deltas["erase"]
    assert "immunize" in cells["again"].run.deltas
    assert cells["again"].points[0].scores != cells["control"].points[0].scores
    with pytest.raises(ImmunityError, match="as again; got Esd"):
        tiny_study.short(toy, defences={"again": again})


def test_pictures_alone_can_be_what_is_defended(toy, tmp_path):
    study = tiny_study.short(toy, defences={"noise": Poisoned(by=RandomNoise(), jpeg=75)}, benign=("dog face",))
    records = study.run(tmp_path, progress=False)
    page = render(records, draws=50)
    assert "Poisoned (Random noise, JPEG 75)" in page
    assert "unequal-conditions" in page, "nobody saved clean pictures as JPEG"
    assert "benign-missing" not in page


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"defences": {}}, "at least one defence"),
        ({"defences": {"control": Imma()}}, "not base, erased, control"),
        ({"baselines": {"imma": AscentOnly()}}, "a name of its own"),
        ({"baselines": {"noise": RandomPerturbation(like="another")}}, "noise like one of .* change the model: imma"),
        ({"defences": {"other": RandomPerturbation(like="other")}, "baselines": {}}, "among the baselines"),
        ({"baselines": {"noise": RandomNoise()}}, r"as noise; got RandomNoise\(.*; try Poisoned\(by=…\)"),
        ({"defences": {"lora": Lora()}}, r"as lora; got Lora\(.*; try Imma\(\)"),
        ({"at": (1, 3)}, "to its last, 4"),
        ({"at": (0, 4)}, "from 1 or later"),
        ({"at": (3, 2, 4)}, "rise"),
        ({"attack": Lora(steps=0), "at": ()}, "steps of at least 1"),
        ({"pictures": 0}, "pictures of at least 1"),
        ({"against": {"nobody": Lora()}}, "got nobody"),
        ({"defences": {"bad": Poisoned(by=Advdm())}, "baselines": {}, "against": {"bad": Lora()}}, "there are none"),
        (
            {"defences": {"bad": Poisoned(by=Advdm())}, "baselines": {"noise": RandomPerturbation(like="bad")}},
            "that change the model",
        ),
        ({"bench": "emoji"}, r"a bench.*; got 'emoji'; try WorldBench\(world=\"emoji\"\)"),
    ],
)
def test_studies_that_make_no_sense(toy, changes, message):
    with pytest.raises(ImmunityError, match=message):
        tiny_study.study(toy, **changes)


def test_the_harmless_can_be_taught_in_their_own_way(toy, tmp_path):
    study = tiny_study.short(toy, benign=("dog face",), benign_attack=Lora(steps=4, lr=1e-3, rank=2))
    records = study.run(tmp_path, progress=False)
    taught, attacked = (cell(records, "imma", subject=subject) for subject in ("dog face", "church"))
    assert (taught.steps, attacked.steps) == ((0, 4), (0, 2))
    assert (taught.run.attack["rank"], attacked.run.attack["rank"]) == (2, 4)
    assert taught.run.deltas["immunize"] == attacked.run.deltas["immunize"]
    assert records.plan.settings["benign_attack"]["steps"] == 4
    with pytest.raises(ImmunityError, match="a plan that differs in"):
        tiny_study.short(toy, benign=("dog face",)).run(tmp_path, progress=False)


def test_the_harmless_meet_the_model_that_the_concept_meets(toy, tmp_path):
    """Where the artists' pictures teach, what the defence learns from must not depend on whom the attack teaches."""
    bench = tiny_study.bench(toy, teacher="real")
    records = tiny_study.short(toy, bench=bench, benign=("dog face",)).run(tmp_path, progress=False)
    harmless, attacked = (cell(records, "imma", subject=subject).run for subject in ("dog face", "church"))
    assert harmless.deltas["immunize"] == attacked.deltas["immunize"]
    assert harmless.examples["defence"] == attacked.examples["defence"]
    assert not set(attacked.examples["attack"]) & set(attacked.examples["defence"])


@pytest.mark.parametrize("where", ["concepts", "benign"])
def test_an_unknown_concept_is_refused_before_anything_is_written(toy, tmp_path, where):
    with pytest.raises(ImmunityError, match=r"an object or a style of the world toy; got 'chruch'"):
        tiny_study.short(toy, **{where: ("chruch",)}).run(tmp_path / "records", progress=False)
    assert not (tmp_path / "records").exists()


def test_points_are_chosen_where_none_are_given(toy):
    assert tiny_study.study(toy, attack=Lora(steps=80), at=()).at == (10, 20, 40, 80)
    assert tiny_study.study(toy, attack=Lora(steps=1), at=()).at == (1,)


def test_a_run_is_described_in_full(records):
    run: Run = cell(records, "noise").run
    assert run.method == "RandomPerturbation"
    assert run.config == {"group": "attention", "norm": 1.0, "like": "imma"}
    assert run.attack["method"] == "Mortal"
    assert list(run.deltas) == ["erase", "immunize", "attack"]
    assert cell(records, "control").run.method == ""
    assert cell(records, "base").run.deltas == cell(records, "base").run.attack == {}


def test_an_attacker_has_one_word_for_what_they_learn(toy):
    bench = tiny_study.bench(toy, attack_words={"church": "a chapel"})
    with pytest.raises(ImmunityError, match="one word for what the attacker learns; TextualInversion has its own"):
        tiny_study.short(toy, bench=bench, attack=TextualInversion(steps=2))


def test_an_attacker_with_a_word_of_their_own_learns_and_asks_by_it(toy, tmp_path):
    """And so does the defence that expects them, of each in a mixture by theirs."""
    attack = TextualInversion(steps=2, captions=(), token="<new>")
    study = tiny_study.short(toy, attack=attack, against={"imma": Mixture(of=(attack, Lora(lr=1e-2)))})
    records = study.run(tmp_path, progress=False)
    assert cell(records, "control").prompts == ("a <new>, noto", "a <new>, blob")
    assert cell(records, "base").prompts == ("a church, noto", "a church, blob")
    assert list(cell(records, "control").run.deltas) == ["attack"]
    assert list(cell(records, "imma").run.deltas) == ["immunize", "attack"]
