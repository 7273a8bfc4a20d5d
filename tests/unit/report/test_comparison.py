import dataclasses

import numpy as np
import pytest

from immunity import ImmunityError
from immunity.report.comparison import compare, loss_rise, mean_score

from tests import synthetic


def without(records, unwanted):
    return dataclasses.replace(records, finished=tuple(cell for cell in records.finished if not unwanted(cell)))


def test_only_seeds_that_both_arms_have_are_compared(tmp_path):
    records = without(synthetic.study(tmp_path), lambda cell: (cell.arm, cell.seed) in {("control", 0), ("imma", 2)})
    assert compare(records, "church", "imma").seeds == (1,)


def test_there_is_nothing_to_compare_before_both_are_there(tmp_path):
    assert compare(without(synthetic.study(tmp_path), lambda c: c.arm == "control"), "church", "imma") is None


def test_a_defence_brings_its_benign_twin_and_its_baselines(tmp_path):
    found = compare(synthetic.study(tmp_path), "church", "imma")
    assert [each.subject for each in found.benign] == ["teapot"]
    assert [each.arm.name for each in found.baselines] == ["ascent", "noise"]
    assert compare(synthetic.study(tmp_path), "church", "noise").baselines == ()


def test_without_a_base_model_there_is_a_gap_and_no_budget(tmp_path):
    found = compare(without(synthetic.study(tmp_path), lambda c: c.arm == "base"), "church", "imma", draws=50)
    summary = found.summaries["clip"]
    assert summary.multiplier is None
    assert summary.sgr_mean.value > 0


def test_a_base_model_that_lacks_a_seed_is_left_out_whole(tmp_path):
    records = without(synthetic.study(tmp_path), lambda c: (c.arm, c.seed) == ("base", 1))
    assert compare(records, "church", "imma").base == ()


def test_the_measured_effect_is_the_one_built_in(tmp_path):
    summary = compare(synthetic.study(tmp_path), "church", "imma", draws=200).summaries["dino"]
    slowness = synthetic.SLOWNESS["imma"] / synthetic.SLOWNESS["control"]
    assert summary.multiplier.value == pytest.approx(slowness, rel=0.2)
    assert summary.sgr_mean.interval().low > 0


@pytest.mark.parametrize(
    ("what", "changes"),
    [("prompts", {"prompts": ("x",) * 8}), ("picture seeds", {"picture_seeds": tuple(range(8, 16))})],
)
def test_arms_that_are_not_paired_are_refused(tmp_path, what, changes):
    records = synthetic.study(tmp_path)
    changed = tuple(dataclasses.replace(c, **changes) if c.arm == "imma" else c for c in records.finished)
    with pytest.raises(ImmunityError, match=f"the same {what}"):
        compare(dataclasses.replace(records, finished=changed), "church", "imma")


def test_a_study_without_a_control_is_refused(tmp_path):
    records = synthetic.study(tmp_path, synthetic.plan(arms=synthetic.ARMS[3:4]))
    with pytest.raises(ImmunityError, match="control arm"):
        compare(records, "church", "imma")


def test_losses_of_others_and_of_training(tmp_path):
    found = compare(synthetic.study(tmp_path), "church", "imma")
    lost = found.lost_by_erasing.interval()
    assert lost.value == pytest.approx(0.03, abs=0.02)
    assert lost.low < lost.value < lost.high
    assert dataclasses.replace(found, base=()).lost_by_erasing is None
    assert np.isnan(mean_score((), "clip"))
    assert loss_rise(synthetic.cell("control", losses=(1.0,) * 10 + (2.0,) * 10)) == 2
    assert np.isnan(loss_rise(synthetic.cell("control", losses=(1.0, float("nan")))))
