import dataclasses
import math

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from immunity import ImmunityError
from immunity.report import statistics
from immunity.report.statistics import Estimate, Paired

# No deadline: on a busy machine it measures the machine.
few = settings(max_examples=25, deadline=None)

shapes = st.tuples(st.integers(1, 4), st.integers(2, 5), st.integers(1, 6))
randoms = st.integers(0, 2**31).map(np.random.default_rng)


@st.composite
def pairs(draw, *, identical=False):
    seeds, steps, pictures = draw(shapes)
    random = draw(randoms)
    control = random.uniform(0.05, 1, (seeds, steps, pictures))
    return Paired(
        steps=np.cumsum(random.integers(1, 50, steps)).astype(float) - draw(st.sampled_from([0, 1])),
        control=control,
        # A copy, so that nothing is equal only because it is the same memory.
        defended=control.copy() if identical else control * random.uniform(0.2, 1.2, control.shape),
        base=random.uniform(0.05, 1, (seeds, pictures)),
    )


def summary(pair, *, draws=100, seed=0):
    return statistics.summarise(pair, draws=draws, generator=np.random.default_rng(seed))


def ratios(found):
    return [found.sgr_mean, found.sgr_peak, found.sgr_final, found.sgr_area]


@few
@given(pair=pairs(identical=True))
def test_identical_arms_have_a_gap_of_exactly_zero(pair):
    found = summary(pair)
    assert all(estimate.interval() == (0, 0, 0) for estimate in ratios(found))
    assert (found.seed_means == 0).all()
    assert math.isnan(found.multiplier.value) or found.multiplier.value == 1


@few
@given(pair=pairs(), scale=st.floats(1e-3, 1e3))
def test_the_scale_of_a_metric_does_not_matter(pair, scale):
    scaled = Paired(
        steps=pair.steps, control=pair.control * scale, defended=pair.defended * scale, base=pair.base * scale
    )
    for one, other in zip(ratios(summary(pair)), ratios(summary(scaled)), strict=True):
        np.testing.assert_allclose(one.interval(), other.interval(), rtol=1e-9, atol=1e-12)


@few
@given(pair=pairs())
def test_a_stretched_attack_costs_the_same_multiple(pair):
    stretched = Paired(steps=pair.steps * 3, control=pair.control, defended=pair.defended, base=pair.base)
    np.testing.assert_allclose(summary(pair).multiplier.replicates, summary(stretched).multiplier.replicates, rtol=1e-6)


@few
@given(pair=pairs())
def test_every_interval_contains_what_was_measured(pair):
    found = summary(pair)
    for estimate in [*ratios(found), found.recovery, found.multiplier]:
        value, low, high = estimate.interval()
        assert math.isnan(low) or low <= value <= high
    for low, value, high in ((i.low, i.value, i.high) for i in [*found.control, *found.defended, found.base]):
        assert low <= value <= high


@few
@given(pair=pairs())
def test_a_wider_level_gives_a_wider_interval(pair):
    narrow, wide = (summary(pair).sgr_mean.interval(level) for level in (0.5, 0.95))
    assert wide.low <= narrow.low
    assert narrow.high <= wide.high


@few
@given(pair=pairs())
def test_the_summaries_of_one_curve_are_ordered(pair):
    found = summary(pair)
    assert found.sgr_peak.value >= max(found.sgr_mean.value, found.sgr_final.value, found.sgr_area.value) - 1e-12


@few
@given(pair=pairs())
def test_a_model_that_learns_nothing_has_the_gap_that_is_said_of_it(pair):
    found = summary(pair)
    if pair.steps[0] > 0:
        assert found.sgr_if_nothing is None
        return
    still = dataclasses.replace(pair, defended=np.repeat(pair.control[:, :1], len(pair.steps), axis=1))
    np.testing.assert_allclose(summary(still).sgr_mean.interval(), found.sgr_if_nothing.interval(), rtol=1e-9)


@few
@given(pair=pairs())
def test_the_measurement_is_the_plain_formula(pair):
    attack = pair.steps > 0
    control, defended = pair.control.mean((0, 2))[attack], pair.defended.mean((0, 2))[attack]
    expected = (control - defended) / control
    found = summary(pair)
    assert found.sgr_mean.value == pytest.approx(expected.mean())
    assert found.sgr_peak.value == pytest.approx(expected.max())
    assert found.sgr_final.value == pytest.approx(expected[-1])


@few
@given(pair=pairs())
def test_the_same_seed_gives_the_same_interval(pair):
    assert summary(pair, seed=3).sgr_mean.interval() == summary(pair, seed=3).sgr_mean.interval()


@few
@given(seeds=st.integers(1, 5), pictures=st.integers(1, 8), random=randoms)
def test_resampling_weights_are_those_of_whole_draws(seeds, pictures, random):
    weights = statistics.resample(seeds, pictures, draws=50, generator=random)
    assert weights.shape == (51, seeds, pictures)
    np.testing.assert_allclose(weights.sum((1, 2)), 1)
    np.testing.assert_allclose(weights[0], 1 / (seeds * pictures))
    # A seed is drawn whole: its pictures' weights sum to a multiple of 1 / seeds.
    drawn = weights.sum(2) * seeds
    np.testing.assert_allclose(drawn, drawn.round(), atol=1e-9)


def test_seeds_that_differ_widen_the_interval_more_than_pictures_do():
    random = np.random.default_rng(0)
    control = np.ones((6, 2, 50))
    of_pictures = control - random.uniform(0, 0.4, control.shape)
    of_seeds = control - random.uniform(0, 0.4, (6, 1, 1))
    widths = []
    for defended in (of_pictures, of_seeds):
        pair = Paired(steps=np.array([0.0, 10.0]), control=control, defended=defended)
        interval = summary(pair, draws=2000).sgr_mean.interval()
        widths.append(interval.high - interval.low)
    assert widths[1] > 3 * widths[0]


def test_pairing_takes_out_what_the_pictures_share():
    random = np.random.default_rng(0)
    control = random.uniform(0.2, 1, (3, 2, 20))
    paired = Paired(steps=np.array([0.0, 10.0]), control=control, defended=control * 0.9)
    shuffled = Paired(steps=paired.steps, control=control, defended=random.permuted(paired.defended, axis=2))
    exact, loose = (summary(pair).sgr_final.interval() for pair in (paired, shuffled))
    assert exact.high - exact.low < 1e-12
    assert loose.high - loose.low > 0.02


def test_the_interval_covers_the_truth_about_as_often_as_it_says():
    random, truth, hits = np.random.default_rng(0), 0.3, 0
    for _ in range(100):
        seeds = random.normal(truth, 0.1, (12, 1, 1))
        control = np.ones((12, 2, 10))
        pair = Paired(steps=np.array([0.0, 1.0]), control=control, defended=control - seeds)
        _, low, high = summary(pair, draws=300).sgr_final.interval()
        hits += low <= truth <= high
    assert 84 <= hits <= 99


curves = st.lists(st.floats(0, 1), min_size=2, max_size=6).map(np.array)


@few
@given(curve=curves, levels=st.tuples(st.floats(0, 1), st.floats(0, 1)))
def test_a_higher_level_is_never_reached_sooner(curve, levels):
    steps = np.arange(len(curve), dtype=float) * 10
    low, high = sorted(levels)
    assert statistics.crossing(steps, curve, np.array(low)) <= statistics.crossing(steps, curve, np.array(high))


@few
@given(curve=curves, better=curves, level=st.floats(0.01, 1))
def test_a_better_defence_never_has_a_smaller_budget(curve, better, level):
    length = min(len(curve), len(better))
    steps = np.arange(length, dtype=float) * 10
    weaker, stronger = curve[:length], np.minimum(curve[:length], better[:length])
    control = np.linspace(0, 1, length)
    one, other = (
        statistics.budget_multiplier(steps, control, defended, np.array(level)) for defended in (weaker, stronger)
    )
    assert not one > other  # undefined where it depends on the first look


@few
@given(level=st.floats(0.01, 0.99), slow=st.floats(1, 4))
def test_a_defence_that_slows_by_a_factor_has_that_multiplier(level, slow):
    steps = np.linspace(0, 100, 11)
    control, defended = steps / 100 * slow, steps / 100
    assume(level / slow > 0.1)  # the first look; by then nothing can be told
    assert statistics.budget_multiplier(steps, control, defended, np.array(level)) == pytest.approx(slow)


@pytest.mark.parametrize(
    ("control", "defended", "expected"),
    [
        ([0.0, 0.5, 1.0], [0.0, 0.2, 0.4], np.inf),  # the defence holds: more than the attack's length
        ([0.0, 0.2, 0.4], [0.0, 0.5, 1.0], np.nan),  # the control never gets there
        ([0.9, 0.9, 1.0], [0.0, 0.5, 1.0], np.nan),  # the control was there from the start
        ([0.0, 0.0, 0.8], [0.8, 0.9, 1.0], 0.0),  # the defence itself brings the concept back
        ([0.0, 0.8, 0.1], [0.8, 0.9, 1.0], 0.0),
        ([0.0, 0.6, 1.0], [0.0, 0.6, 1.0], 1.0),
        ([0.0, 0.8, 0.1], [0.0, 0.0, 0.8], np.nan),  # the control was there by the first look: 2 is but a bound
        ([0.0, 0.9, 0.1], [0.0, 0.9, 0.8], np.nan),  # so were both
        ([0.0, 0.6, 1.0], [0.0, 0.9, 0.8], np.nan),  # so was the defended model
        ([0.0, 0.9, 0.1], [0.0, 0.0, 0.4], np.inf),
    ],
)
def test_budgets_at_the_edges(control, defended, expected):
    found = statistics.budget_multiplier(
        np.array([0.0, 10, 20]), np.array(control), np.array(defended), np.array(statistics.RECOVERED)
    )
    np.testing.assert_equal(float(found), expected)


def trajectories(looks, *, slowness):
    """What is seen of the same two attacks, the defended one slower by a factor, at the looks that are chosen."""
    steps = np.array([0.0, *looks])
    control, defended = (1 - np.exp(-steps / pace) for pace in (15, 15 * slowness))
    alike = [np.broadcast_to(curve[None, :, None], (3, len(steps), 4)) for curve in (control, defended)]
    return Paired(steps=steps, control=alike[0], defended=alike[1], base=np.ones((3, 4)))


def test_what_is_back_by_the_first_look_is_timed_by_a_bound_alone():
    early, late = (7, 15, 30, 60), (75, 150, 300, 600)
    found = summary(trajectories(early, slowness=2))
    assert found.multiplier.value == pytest.approx(2, rel=0.05)
    assert found.control_steps == pytest.approx(24, rel=0.1)
    assert not found.early(found.control_steps)
    both = summary(trajectories(late, slowness=2))
    assert both.control_steps == both.defended_steps == 75
    assert both.early(both.control_steps)
    assert math.isnan(both.multiplier.value)
    assert math.isnan(both.at_least)
    one = summary(trajectories(late, slowness=4))
    assert math.isnan(one.multiplier.value)
    assert one.at_least == one.defended_steps / 75
    never = summary(trajectories(late, slowness=100))
    assert (never.multiplier.value, never.beyond) == (np.inf, 8)


@few
@given(first=st.integers(2, 200), slowness=st.floats(1, 40))
def test_no_choice_of_looks_makes_a_defence_better_than_it_is(first, slowness):
    found = summary(trajectories(first * np.array([1, 1.25, 1.5, 2, 3, 4, 6, 8]), slowness=slowness), draws=10)
    if math.isinf(found.multiplier.value):
        assert found.beyond < slowness * 1.05
    elif math.isnan(found.multiplier.value):
        assert not found.at_least > slowness * 1.05
    else:
        assert found.multiplier.value == pytest.approx(slowness, rel=0.05)


def clear_of_zero(interval):
    return interval.low > 0 or interval.high < 0


def test_the_peak_of_no_effect_is_clear_of_zero_no_more_often_than_any_one_step():
    random, peaks, fixed = np.random.default_rng(0), 0, 0
    for _ in range(100):
        control, defended = random.normal(1, 0.3, (2, 8, 5, 8))
        found = summary(Paired(steps=np.arange(5.0), control=control, defended=defended), draws=300)
        peaks += clear_of_zero(found.sgr_peak.interval())
        fixed += clear_of_zero(found.sgr_final.interval())
    assert fixed <= 12
    assert peaks <= 25  # the largest of four, none of them made larger in every replicate


def test_a_censored_multiplier_keeps_a_finite_low_end():
    replicates = np.array([2.0] * 30 + [np.inf] * 70)
    assert Estimate(np.inf, replicates).interval() == (np.inf, 2.0, np.inf)


def test_too_many_undefined_replicates_leave_no_interval():
    value, low, high = Estimate(1.0, np.array([1.0] * 80 + [np.nan] * 20)).interval()
    assert value == 1
    assert math.isnan(low)
    assert math.isnan(high)


def test_a_control_without_similarity_has_no_ratio():
    control, defended = (np.array(curve)[None, :, None] for curve in ([0.0, -0.1, 0.5], [0.0, 0.0, 0.25]))
    found = statistics.sgr(control, defended, statistics.each_seed(1, 1))
    np.testing.assert_array_equal(found, [[np.nan, np.nan, 0.5]])


def test_means_over_concepts_and_relative_ratios():
    target, benign = Estimate(0.4, np.array([0.3, 0.5])), Estimate(0.1, np.array([0.1, 0.2]))
    assert statistics.msgr([target, benign]).value == pytest.approx(0.25)
    relative = statistics.relative_sgr(target, [benign, benign])
    assert relative.value == pytest.approx(0.3)
    np.testing.assert_allclose(relative.replicates, [0.2, 0.3])


def test_the_area_weighs_steps_by_their_distance():
    steps = np.array([10.0, 20, 100])
    assert statistics.area(steps, np.array([1.0, 1, 0])) == pytest.approx((10 + 40) / 90)
    assert statistics.area(steps[:1], np.array([0.3])) == 0.3


@pytest.mark.parametrize(
    "broken",
    [
        {"defended": np.ones((1, 2, 4))},
        {"base": np.ones((1, 4))},
        {"steps": np.array([0.0, 1, 2])},
        {"steps": np.array([-1.0, 0])},
    ],
)
def test_scores_that_do_not_pair_are_refused(broken):
    whole = {"steps": np.array([0.0, 1]), "control": np.ones((1, 2, 3)), "defended": np.ones((1, 2, 3))}
    with pytest.raises(ImmunityError):
        Paired(**(whole | broken))
