import dataclasses
import math
import re
from pathlib import Path

import pytest

from immunity.records import MetricSpec
from immunity.report import benign_flags, conditions, defence_flags, flags
from immunity.report.comparison import compare

from tests import synthetic

DOCS = Path(__file__).parents[3] / "docs" / "flags.md"
SOURCE = "".join(
    Path(each.__file__).read_text(encoding="utf-8") for each in (flags, defence_flags, benign_flags, conditions)
)


def found(tmp_path, *, arm="imma", plan=None, change=None, **options):
    """The flags of a made-up study, by code. `change` may alter any cell on the way."""
    records = synthetic.study(tmp_path, plan, **options)
    if change:
        records = dataclasses.replace(records, finished=tuple(map(change, records.finished)))
    return {flag.code: flag for flag in flags.check(compare(records, "church", arm, draws=200))}


def on(arm, **changes):
    """Alters the cells of one arm, where the attack teaches the concept itself."""
    return lambda cell: dataclasses.replace(cell, **changes) if (cell.arm, cell.subject) == (arm, "church") else cell


def rerun(arm, **changes):
    return lambda cell: dataclasses.replace(
        cell, run=dataclasses.replace(cell.run, **changes)
    ) if cell.arm == arm else cell  # fmt: skip


def rescored(arm, function, *, subject="church"):
    """Alters the scores of one arm; `function` gets the index of the point and the score."""

    def change(cell):
        if (cell.arm, cell.subject) != (arm, subject):
            return cell
        points = tuple(
            dataclasses.replace(
                point, scores={name: tuple(function(i, v) for v in values) for name, values in point.scores.items()}
            )
            for i, point in enumerate(cell.points)
        )
        return dataclasses.replace(cell, points=points)

    return change


def unasked(cell):
    return dataclasses.replace(cell, points=tuple(dataclasses.replace(point, others={}) for point in cell.points))


def others_at(arm, accuracy):
    def change(cell):
        if cell.arm != arm:
            return cell
        first = dataclasses.replace(cell.points[0], others=dict.fromkeys(synthetic.OTHERS, (accuracy,) * 40))
        return dataclasses.replace(cell, points=(first, *cell.points[1:]))

    return change


STRONG = synthetic.SLOWNESS | {"imma": 2000.0}
"""A defence that holds throughout the attack."""


def test_clean_evidence_raises_nothing(tmp_path):
    assert found(tmp_path, slowness=STRONG) == {}


def test_the_gravest_flag_comes_first(tmp_path):
    records = synthetic.study(tmp_path, synthetic.plan(benign=()), slowness=synthetic.SLOWNESS | {"control": 900.0})
    severities = [flag.severity for flag in flags.check(compare(records, "church", "imma", draws=200))]
    assert severities == sorted(severities, key=("invalid", "caution", "note").index)
    assert {"invalid", "note"} <= set(severities)


RAISED = {
    "attack-failed": {"slowness": STRONG | {"control": 900.0}},
    "attack-diverged": {"change": on("imma", losses=(0.1,) * 50 + (0.4,) * 50)},
    "unequal-conditions": {"change": rerun("imma", base_hash="cd" * 32)},
    "shared-pictures": {"change": rerun("imma", examples={"attack": ("a0", "x"), "defence": ("x",)})},
    "taught-references": {"change": rerun("imma", examples={"attack": ("a0", "x"), "reference": ("x", "y")})},
    "head-start": {"slowness": synthetic.SLOWNESS | {"imma": 30.0}, "change": rescored("imma", lambda i, v: v * 0.7)},
    "same-source": {"change": rerun("imma", sources={"attack": "one folder", "defence": "one folder"})},
    "erasure-incomplete": {"change": rescored("erased", lambda i, v: 0.6)},
    "erasure-damage": {"change": others_at("erased", 0.9)},
    "destruction": {"change": others_at("imma", 0.85)},
    "control-overfits": {"change": rescored("control", lambda i, v: v * (0.5 if i == 4 else 1))},
    "few-seeds": {"plan": synthetic.plan(seeds=(0,))},
    "seed-spread": {"slowness": synthetic.SLOWNESS | {"imma": 30.5}, "noise": 0.2},
    "budget-undefined": {"change": rescored("control", lambda i, v: v + 1)},
    "coarse-looks": {"change": rescored("control", lambda i, v: 1.0 if i else v)},
    "backfired": {"slowness": synthetic.SLOWNESS | {"imma": 12.0, "control": 60.0}},
    "no-effect": {"slowness": synthetic.SLOWNESS | {"imma": 30.0}},
    "baseline-as-good": {"slowness": STRONG | {"ascent": 2500.0}},
    "fading": {"slowness": synthetic.SLOWNESS},
    "overcome": {"slowness": synthetic.SLOWNESS},
    "others-missing": {"change": lambda cell: unasked(cell)},
    "benign-missing": {"plan": synthetic.plan(benign=())},
    "benign-harmed": {"change": rescored("imma", lambda i, v: v * 0.7, subject="teapot")},
    "benign-unlike": {
        "change": lambda cell: rerun(cell.arm, attack={"lr": 1})(cell) if cell.subject == "teapot" else cell
    },
    "benign-untaught": {"change": rescored("control", lambda i, v: 0.1, subject="teapot")},
    "same-word": {"change": lambda cell: rerun(cell.arm, attack={"token": "sks"})(cell)},
    "benign-other-model": {"change": lambda cell: rerun("imma", deltas={"immunize": cell.subject})(cell)},
}


def test_who_is_behind_from_the_start_and_learns_little_is_not_accused_of_it(tmp_path):
    slow = {"slowness": STRONG, "change": rescored("imma", lambda i, v: v * 0.7)}
    assert "head-start" not in found(tmp_path, **slow)


def test_seeds_that_differ_make_the_bootstrap_too_sure(tmp_path):
    def change(cell):
        return rescored("imma", lambda i, v: v * (1, 0.9, 0.4)[cell.seed])(cell)

    sure = {"slowness": synthetic.SLOWNESS | {"imma": 35.0}, "noise": 0.001}
    assert "few-seeds" not in found(tmp_path / "alike", **sure)
    flag = found(tmp_path / "differ", change=change, **sure)["few-seeds"]
    assert "by the 3 of them alone (Student's t)" in flag.message


def test_what_one_measure_alone_says_is_no_proof_of_harm(tmp_path):
    worse = rescored("imma", lambda i, v: v + 0.3)
    assert found(tmp_path / "all", change=worse)["backfired"].severity == "invalid"
    far_worse = by_metric(rescored("imma", lambda i, v: v + 0.8), "clip")
    assert found(tmp_path / "one", slowness=STRONG, change=far_worse)["backfired"].severity == "caution"


def test_a_rise_by_the_chance_of_a_few_steps_is_no_divergence(tmp_path):
    chance = (0.1,) * 10 + (0.3,) * 40 + (0.25,) * 40 + (0.3,) * 10
    assert "attack-diverged" not in found(tmp_path, slowness=STRONG, change=on("imma", losses=chance))


@pytest.mark.parametrize("code", RAISED)
def test_each_flag_is_raised_by_what_it_names(tmp_path, code):
    flag = found(tmp_path, **({"slowness": STRONG} | RAISED[code]))[code]
    assert flag.message.endswith(".")
    assert set(flag.by_metric) <= {metric.name for metric in synthetic.METRICS}


def test_a_study_in_progress_says_so(tmp_path):
    records = synthetic.study(tmp_path, slowness=STRONG)
    part = dataclasses.replace(records, finished=tuple(c for c in records.finished if (c.arm, c.seed) != ("imma", 2)))
    codes = {flag.code for flag in flags.check(compare(part, "church", "imma", draws=200))}
    assert codes == {"unfinished", "few-seeds"}


def by_metric(change, *names):
    """The change for some of the metrics alone."""

    def changed(cell):
        new = change(cell)
        points = tuple(
            dataclasses.replace(was, scores={**was.scores, **{name: now.scores[name] for name in names}})
            for was, now in zip(cell.points, new.points, strict=True)
        )
        return dataclasses.replace(cell, points=points)

    return changed


SATURATED = rescored("control", lambda i, v: v + 1)
"""At 80% of the base model's score from the start."""


def test_a_metric_that_cannot_fail_does_not_save_an_attack_that_does(tmp_path):
    slow = STRONG | {"control": 900.0}
    change = by_metric(SATURATED, "clip", "dino")
    flag = found(tmp_path, slowness=slow, change=change)["attack-failed"]
    assert flag.severity == "invalid"
    assert flag.by_metric.keys() == {"lpips", "accuracy"}
    assert "attack-failed" not in found(tmp_path, slowness=STRONG, change=change)


def test_where_no_metric_can_fail_nothing_tells_whether_the_attack_works(tmp_path):
    assert found(tmp_path, change=by_metric(SATURATED, "clip"))["budget-undefined"].severity == "note"
    codes = found(tmp_path, change=SATURATED)
    assert "attack-failed" not in codes
    assert codes["budget-undefined"].severity == "caution"
    assert "no other tells whether the attack works" in codes["budget-undefined"].message


def test_a_concept_that_is_back_by_the_first_look_is_not_timed_between(tmp_path):
    both = found(tmp_path, slowness=synthetic.SLOWNESS, change=rescored("imma", lambda i, v: 1.0 if i else v))
    assert "by the first look at the attack, after 15 steps" in both["coarse-looks"].message
    assert "after at most 15 steps (CLIP similarity)" in both["overcome"].message
    assert "coarse-looks" not in found(tmp_path, slowness=synthetic.SLOWNESS)


def test_where_there_is_no_effect_nothing_fades(tmp_path):
    """The largest gap of several is above zero by chance; what is left of it at the end says nothing."""
    for first in range(0, 30, 3):
        plan = synthetic.plan(seeds=(first, first + 1, first + 2), benign=())
        records = synthetic.study(tmp_path, plan, slowness=synthetic.SLOWNESS | {"imma": 30.0}, noise=0.1)
        of = compare(records, "church", "imma", draws=200)
        clear = {name for name, each in of.summaries.items() if each.sgr_mean.interval().low > 0}
        faded = [flag for flag in flags.check(of) if flag.code == "fading"]
        assert all(flag.by_metric.keys() <= clear for flag in faded)


def test_a_loss_that_is_not_finite_is_a_diverged_attack(tmp_path):
    flag = found(tmp_path, change=on("imma", losses=(0.1, float("nan"))))["attack-diverged"]
    assert "not finite" in flag.message


def test_destruction_is_judged_by_its_size(tmp_path):
    assert found(tmp_path, change=others_at("imma", 0.85))["destruction"].severity == "caution"
    assert found(tmp_path, change=others_at("imma", 0.5))["destruction"].severity == "invalid"


def test_other_versions_are_less_grave_than_another_model(tmp_path):
    assert found(tmp_path, change=rerun("imma", versions={"torch": "1"}))["unequal-conditions"].severity == "caution"
    assert found(tmp_path, change=rerun("imma", deltas={}))["unequal-conditions"].severity == "invalid"
    others = {"attack": ("a0",), "reference": ("another",)}
    assert found(tmp_path, change=rerun("imma", examples=others))["unequal-conditions"].severity == "invalid"


def test_a_baseline_is_not_accused_of_having_no_effect(tmp_path):
    codes = found(tmp_path, arm="noise").keys()
    assert not codes & {"no-effect", "backfired", "baseline-as-good", "benign-missing"}


def test_a_control_that_scores_nothing_breaks_no_check(tmp_path):
    assert "attack-failed" in found(tmp_path, change=rescored("control", lambda i, v: 0.0))


def test_every_code_is_documented_and_no_other():
    documented = set(re.findall(r"^### (\S+)$", DOCS.read_text(encoding="utf-8"), flags=re.M))
    assert documented == set(re.findall(r'code="([a-z-]+)"', SOURCE))
    assert documented - {"unfinished"} == set(RAISED)


def with_nudity(seen, *, subject="church"):
    """A plan and a change: NudeNet sees so much on all pictures of each arm."""

    def change(cell):
        share = seen.get(cell.arm, 1.0) if cell.subject == subject else 0.0
        points = tuple(
            dataclasses.replace(
                point,
                scores={
                    **{name: values for name, values in point.scores.items() if name != "accuracy"},
                    "nudity": (share,) * len(point.scores["clip"]),
                },
            )
            for point in cell.points
        )
        return dataclasses.replace(cell, points=points)

    metrics = (*synthetic.METRICS[:3], MetricSpec(name="nudity", kind="detection", label="Nudity"))
    records = dataclasses.replace(synthetic.plan(), metrics=metrics)
    return records, change


def compared_with_nudity(tmp_path, seen):
    plan, change = with_nudity(seen)
    records = synthetic.study(tmp_path)
    records = dataclasses.replace(records, plan=plan, finished=tuple(map(change, records.finished)))
    return compare(records, "church", "imma", draws=200)


def test_what_a_detector_still_finds_is_not_erased(tmp_path):
    of = compared_with_nudity(tmp_path, {"erased": 0.6})
    (flag,) = [flag for flag in flags.check(of) if flag.code == "erasure-incomplete"]
    assert flag.by_metric == {"nudity": pytest.approx(0.6)}
    assert "nudity" not in of.benign[0].summaries, "nobody looks for it on a teapot"


def test_what_the_base_model_never_showed_cannot_come_back(tmp_path):
    of = compared_with_nudity(tmp_path, dict.fromkeys(("base", "erased", "control", "imma"), 0.0))
    found = of.summaries["nudity"]
    assert math.isnan(found.control_steps)
    assert not found.timed
    codes = {flag.code: flag for flag in flags.check(of)}
    undefined = codes.get("budget-undefined")
    assert undefined is None or "nudity" not in undefined.by_metric
    assert "attack-failed" not in codes


POISON = {"method": "Poisoned", "share": 1.0}


def poisoned(tmp_path, **config):
    """The flags of a study whose defence is poisoned pictures, and one baseline each of model and of pictures."""
    arms = tuple(
        dataclasses.replace(arm, changes="pictures", config=POISON | config.get(arm.name, {}))
        if arm.name in ("imma", "noise")
        else arm
        for arm in synthetic.ARMS
    )
    records = synthetic.study(tmp_path, slowness=synthetic.SLOWNESS | {"ascent": 2500.0, "noise": 31.0})
    records = dataclasses.replace(records, plan=dataclasses.replace(records.plan, arms=arms))
    return {flag.code: flag for flag in flags.check(compare(records, "church", "imma", draws=200))}


def test_a_measure_without_a_gap_makes_no_baseline_as_good(tmp_path):
    def blind(cell):
        return by_metric(rescored(cell.arm, lambda i, v: 0.0 if i < 3 else v), "accuracy")(cell)

    assert "baseline-as-good" not in found(tmp_path, slowness=STRONG, change=blind)


def test_pictures_are_compared_with_pictures(tmp_path):
    assert "baseline-as-good" not in poisoned(tmp_path), "ascent, which is stronger, changes the model"


def test_who_saves_pictures_as_jpeg_needs_a_control_who_does_so_too(tmp_path):
    alone = poisoned(tmp_path / "alone", imma={"jpeg": 75})
    assert "how the attacker saves the pictures" in alone["unequal-conditions"].message
    assert alone["unequal-conditions"].severity == "caution"
    assert "unequal-conditions" not in poisoned(tmp_path / "both", imma={"jpeg": 75}, noise={"jpeg": 75})


def test_poisoned_pictures_need_no_harmless_subject(tmp_path):
    plan = synthetic.plan(benign=(), arms=tuple(
        dataclasses.replace(arm, changes="pictures") if arm.name == "imma" else arm for arm in synthetic.ARMS
    ))  # fmt: skip
    assert "benign-missing" not in found(tmp_path, plan=plan)


def taught(tmp_path, change=None):
    """A study that erases nothing: of personalization."""
    arms = tuple(arm for arm in synthetic.ARMS if arm.role != "erased")
    records = synthetic.study(tmp_path)
    kept = tuple(cell for cell in records.finished if cell.arm != "erased")
    kept = tuple(map(change, kept)) if change else kept
    plan = dataclasses.replace(records.plan, arms=arms)
    return compare(dataclasses.replace(records, plan=plan, finished=kept), "church", "imma", draws=200)


def test_what_was_never_known_is_not_held_against_the_base_model(tmp_path):
    def unknown(cell):
        return rescored("base", lambda i, v: 0.1)(cell)

    of = taught(tmp_path, unknown)
    assert of.taught
    codes = {flag.code: flag for flag in flags.check(of)}
    assert not codes.keys() & {"attack-failed", "budget-undefined"}
    found = of.summaries["clip"]
    looks = [look.value for look in found.control]
    assert found.goal == pytest.approx(looks[0] + 0.8 * (max(looks[1:]) - looks[0]))
    assert found.recovery is None
    assert 0 < found.control_steps < 200
    assert found.multiplier.value > 1.5
    assert "is at 80% of what the attack teaches the undefended model after" in codes["overcome"].message


def test_an_attack_that_teaches_nothing_fails(tmp_path):
    flat = rescored("control", lambda i, v: 0.3)
    flag = next(flag for flag in flags.check(taught(tmp_path, flat)) if flag.code == "attack-failed")
    assert flag.severity == "invalid"
    assert "teaches nothing of church" in flag.message
