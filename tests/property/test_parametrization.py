"""Guidance-style targets are written on `predict` once for all parametrizations: see DESIGN, abstraction 6.

At a fixed (x_t, t) each raw output is an affine function of the predicted noise, out = a·x_t + b·ε. A combination with
coefficients that sum to one commutes with an affine map, so the target built in one parametrization is the target built
in another, translated. With any other sum it is not: the control.
"""

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

cumulative = st.floats(1e-3, 1 - 1e-3)
coefficients = st.lists(st.floats(-5, 5), min_size=1, max_size=4)
seeds = st.integers(0, 2**31)


def outputs(parametrization: str, eps: torch.Tensor, noisy: torch.Tensor, kept: float) -> torch.Tensor:
    # A flow goes straight from the picture to the noise, a chain on a circle.
    signal, sigma = (kept, 1 - kept) if parametrization == "flow" else (kept**0.5, (1 - kept) ** 0.5)
    if parametrization == "epsilon":
        return eps
    clean = (noisy - sigma * eps) / signal
    return {"sample": clean, "v": signal * eps - sigma * clean, "velocity": eps - clean, "flow": eps - clean}[
        parametrization
    ]


def draw(seed: int, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return (
        torch.randn(count, 8, generator=generator, dtype=torch.float64),
        torch.randn(8, generator=generator, dtype=torch.float64),
    )


def combine(weights: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    return (weights[:, None] * values).sum(0)


@pytest.mark.parametrize("parametrization", ["epsilon", "sample", "v", "velocity", "flow"])
@given(kept=cumulative, free=coefficients, seed=seeds)
def test_a_target_whose_coefficients_sum_to_one_is_the_same_in_every_parametrization(parametrization, kept, free, seed):
    weights = torch.tensor([*free, 1 - sum(free)], dtype=torch.float64)
    eps, noisy = draw(seed, len(weights))
    in_its_own = combine(weights, outputs(parametrization, eps, noisy, kept))
    translated = outputs(parametrization, combine(weights, eps), noisy, kept)
    torch.testing.assert_close(in_its_own, translated, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("parametrization", ["sample", "v", "velocity", "flow"])
@given(kept=cumulative, free=coefficients, excess=st.floats(0.1, 2), seed=seeds)
def test_other_sums_are_not(parametrization, kept, free, excess, seed):
    weights = torch.tensor([*free, 1 + excess - sum(free)], dtype=torch.float64)
    eps, noisy = draw(seed, len(weights))
    assume(noisy.abs().max() > 0.1)
    in_its_own = combine(weights, outputs(parametrization, eps, noisy, kept))
    translated = outputs(parametrization, combine(weights, eps), noisy, kept)
    assert not torch.allclose(in_its_own, translated, rtol=1e-8, atol=1e-8)


@given(scale=st.floats(0, 5), kept=cumulative, seed=seeds)
def test_the_target_of_esd_is_such_a_combination(scale, kept, seed):
    """ε_∅ − η (ε_c − ε_∅): coefficients 1 + η and −η."""
    (empty, concept), noisy = draw(seed, 2)
    target = outputs("v", empty - scale * (concept - empty), noisy, kept)
    v_empty, v_concept = (outputs("v", eps, noisy, kept) for eps in (empty, concept))
    torch.testing.assert_close(v_empty - scale * (v_concept - v_empty), target, rtol=1e-8, atol=1e-8)
