"""What a report says where cells are missing, came to nothing or met other conditions than their pairs."""

import dataclasses
import math

from immunity.records import CellKey, Diverged
from immunity.report import flags
from immunity.report.comparison import compare
from immunity.report.markdown import tables
from immunity.report.page import render

from tests import synthetic

STRONG = synthetic.SLOWNESS | {"imma": 2500.0}


def records(tmp_path, *, change=None, missing=()):
    """A made-up study without the cells (arm, subject, seed) in `missing`."""
    made = synthetic.study(tmp_path, slowness=STRONG)
    kept = [cell for cell in made.finished if (cell.arm, cell.subject, cell.seed) not in missing]
    return dataclasses.replace(made, finished=tuple(map(change, kept) if change else kept))


def raised(of):
    return {(flag.code, flag.subject): flag for flag in flags.check(compare(of, "church", "imma", draws=200))}


def rerun(arm, seed, subject="church", **changes):
    def change(cell):
        mine = (cell.arm, cell.seed, cell.subject) == (arm, seed, subject)
        return dataclasses.replace(cell, run=dataclasses.replace(cell.run, **changes)) if mine else cell

    return change


def test_a_harmless_subject_in_more_seeds_than_the_concept_met_no_other_model(tmp_path):
    found = raised(records(tmp_path, missing={("imma", "church", 2)}))
    assert ("benign-other-model", "teapot") not in found


def test_a_harmless_subject_in_fewer_seeds_is_said_to_be(tmp_path):
    of = records(tmp_path, missing={("imma", "teapot", 1), ("imma", "teapot", 2)})
    assert "1 of the 3 seeds" in raised(of)["unfinished", "teapot"].message
    assert render(of, draws=50), "the gap of the concept minus the subject's is of the seed that both have"


def test_the_gravest_difference_of_all_seeds_counts(tmp_path):
    def change(cell):
        return rerun("imma", 1, base_hash="cd" * 32)(rerun("imma", 0, machine="another")(cell))

    flag = raised(records(tmp_path, change=change))["unequal-conditions", None]
    assert flag.severity == "invalid"
    assert "base model (seed 1)" in flag.message
    assert "machine (seed 0)" in flag.message


def test_the_control_was_attacked_on_the_model_that_was_measured_as_erased(tmp_path):
    def change(cell):
        return dataclasses.replace(
            cell, run=dataclasses.replace(cell.run, deltas=cell.run.deltas | {"erase": "ff" * 32})
        )

    of = records(tmp_path, change=lambda cell: change(cell) if cell.arm == "erased" else cell)
    assert "erased model (seeds 0, 1, 2)" in raised(of)["unequal-conditions", None].message


def test_what_harmless_subjects_met_is_asked_too(tmp_path):
    flag = raised(records(tmp_path, change=rerun("imma", 2, "teapot", base_hash="cd" * 32)))[
        "unequal-conditions", "teapot"
    ]
    assert (flag.severity, flag.about) == ("invalid", "benign")


def test_a_harmless_attack_that_diverged_does_not_void_the_concept(tmp_path):
    def change(cell):
        mine = (cell.arm, cell.subject) == ("imma", "teapot")
        return dataclasses.replace(cell, losses=(0.1, math.nan)) if mine else cell

    assert raised(records(tmp_path, change=change))["attack-diverged", "teapot"].severity == "caution"


def test_a_baseline_with_fewer_seeds_is_compared_in_those(tmp_path):
    better = {"slowness": synthetic.SLOWNESS | {"noise": 2500.0}}
    made = synthetic.study(tmp_path, **better)
    part = [cell for cell in made.finished if (cell.arm, cell.seed) != ("noise", 2)]
    flag = raised(dataclasses.replace(made, finished=tuple(part)))["baseline-as-good", None]
    assert "Random, equal norm" in flag.message


def test_what_came_to_nothing_is_named(tmp_path):
    of = records(tmp_path, missing={("imma", "church", 2)})
    tried = Diverged(concept="church", seed=2, arm="imma", subject="church", what="a loss of nan at step 7")
    of = dataclasses.replace(of, diverged=(tried,))
    flag = raised(of)["attack-diverged", None]
    assert flag.severity == "caution"
    assert "imma, seed 2 (a loss of nan at step 7)" in flag.message
    assert "of which 1 diverged: church imma seed 2" in tables(of, draws=50)
    assert "church, imma, seed 2" in render(of, draws=50)


def test_the_folder_remembers_what_came_to_nothing_until_it_is_measured(tmp_path):
    plan = synthetic.plan()
    folder, key = synthetic.RecordFolder.create(tmp_path, plan), CellKey("church", 0, "imma", "church")
    folder.write_diverged(key, "a loss of nan")
    assert folder.read().diverged == (Diverged(**key._asdict(), what="a loss of nan"),)
    folder.write(synthetic.cell("imma"))
    assert folder.read().diverged == ()


def test_each_harmless_subject_bears_its_own_marks(tmp_path):
    plan = synthetic.plan(benign=("teapot", "mug"))

    def change(cell):
        if (cell.arm, cell.subject) != ("imma", "mug"):
            return cell
        points = (
            dataclasses.replace(p, scores={n: tuple(0.6 * v for v in vs) for n, vs in p.scores.items()})
            for p in cell.points
        )
        return dataclasses.replace(cell, points=tuple(points))

    made = synthetic.study(tmp_path, plan, slowness=STRONG)
    found = raised(dataclasses.replace(made, finished=tuple(map(change, made.finished))))
    flag = found["benign-harmed", "mug"]
    assert ("benign-harmed", "teapot") not in found
    assert flag.concerns("clip", "mug")
    assert not flag.concerns("clip", "teapot")


def test_who_comes_back_sooner_was_not_slowed(tmp_path):
    made = synthetic.study(tmp_path, slowness=synthetic.SLOWNESS | {"imma": 20.0})
    message = raised(made)["overcome", None].message
    assert message.startswith("Not stopped")


def test_every_arm_has_a_colour_and_its_own_line(tmp_path):
    arms = 9
    more = tuple(dataclasses.replace(synthetic.ARMS[3], name=f"imma{i}", label=f"Variant {i}") for i in range(arms))
    made = synthetic.study(tmp_path, slowness=STRONG)
    cells = [dataclasses.replace(cell, arm=arm.name) for arm in more for cell in made.finished if cell.arm == "imma"]
    plan = dataclasses.replace(made.plan, arms=(*synthetic.ARMS, *more))
    page = render(dataclasses.replace(made, plan=plan, finished=(*made.finished, *cells)), draws=20)
    styles = {line.split('"')[1] for line in page.split("<g class=")[1:]}
    assert len(styles) == 1 + 3 + arms, "the control's, the three arms' and theirs"
    assert {style.split()[0] for style in styles} == {f"s{i}" for i in range(6)}
