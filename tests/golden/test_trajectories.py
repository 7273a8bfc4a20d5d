"""Results move only when somebody means them to."""

import json

import pytest

from immunity import load

from tests.golden import trajectories

RECORDED = json.loads(trajectories.FILE.read_text(encoding="utf-8"))


def test_every_trajectory_is_recorded():
    assert set(RECORDED) == {f"{family} {run}" for family, run in trajectories.CASES}


@pytest.mark.parametrize(("family", "run"), trajectories.CASES)
def test_losses_are_those_recorded(tiny_folders, family, run):
    losses = trajectories.RUNS[run](load(tiny_folders[family]))
    # Processors round differently, and Adam's first steps have the size of the rate whatever the gradient's.
    assert losses == pytest.approx(RECORDED[f"{family} {run}"], rel=5e-3, abs=1e-4)
