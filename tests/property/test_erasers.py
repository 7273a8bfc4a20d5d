"""The formulas of the erasers, in float64."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from immunity.erasers.esd import guided_away
from immunity.erasers.uce import edit

seeds = st.integers(0, 2**31)
sizes = st.integers(1, 6)


def normal(generator: torch.Generator, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


@given(seed=seeds, edits=sizes, kept=st.integers(0, 6), width=sizes, lam=st.floats(1e-3, 10))
def test_the_edit_solves_the_normal_equations(seed, edits, kept, width, lam):
    """W' M = Σ W c_i* c_iᵀ + Σ W c_j c_jᵀ + λ W: the paper's form, which the code never writes down."""
    generator = torch.Generator().manual_seed(seed)
    old = normal(generator, 3, width)
    c, anchor, j = normal(generator, edits, width), normal(generator, edits, width), normal(generator, kept, width)
    new = old + old @ edit(c, anchor, j, lam)
    eye = torch.eye(width, dtype=torch.float64)
    left = new @ (c.T @ c + j.T @ j + lam * eye)
    right = old @ anchor.T @ c + old @ j.T @ j + lam * old
    torch.testing.assert_close(left, right, rtol=1e-7, atol=1e-7)


@given(seed=seeds)
def test_the_edit_is_the_minimum_of_its_objective(seed):
    """Σ ‖W' c_i − W c_i*‖² + Σ ‖W' c_j − W c_j‖² + λ ‖W' − W‖²; the control is W itself and points around W'."""
    generator = torch.Generator().manual_seed(seed)
    old, c, anchor, j = (normal(generator, n, 5) for n in (4, 3, 3, 2))

    def objective(new: torch.Tensor) -> torch.Tensor:
        moved = (c @ new.T - anchor @ old.T).square().sum() + (j @ (new - old).T).square().sum()
        return moved + 0.1 * (new - old).square().sum()

    best = old + old @ edit(c, anchor, j, 0.1)
    assert objective(best) < objective(old)
    for _ in range(5):
        assert objective(best) < objective(best + 1e-2 * normal(generator, 4, 5))


@given(seed=seeds)
def test_preserved_features_orthogonal_to_the_edit_do_not_move(seed):
    generator = torch.Generator().manual_seed(seed)
    basis = torch.linalg.qr(normal(generator, 6, 6))[0]
    c, j = basis[:2], basis[2:4]
    change = edit(c, normal(generator, 2, 6), j, 0.1)
    assert (j @ change.T).abs().max() < 1e-12
    assert (c @ change.T).abs().max() > 1e-3


@given(seed=seeds, eta=st.floats(-1, 5), kept=st.floats(1e-2, 1 - 1e-2))
def test_the_target_means_the_same_in_epsilon_and_in_v(seed, eta, kept):
    """So one step of least squares moves the denoised picture the same way: v = (ε − σ x_t) / √ᾱ at a fixed x_t."""
    generator = torch.Generator().manual_seed(seed)
    empty, concept, noisy = (normal(generator, 8) for _ in range(3))

    def v(eps: torch.Tensor) -> torch.Tensor:
        return (eps - (1 - kept) ** 0.5 * noisy) / kept**0.5

    torch.testing.assert_close(guided_away(v(empty), v(concept), eta), v(guided_away(empty, concept, eta)))


@pytest.mark.parametrize(("eta", "expected"), [(-1.0, 3.0), (0.0, 1.0), (1.0, -1.0), (2.0, -3.0)])
def test_the_target_away_from_the_concept(eta, expected):
    assert guided_away(torch.tensor(1.0), torch.tensor(3.0), eta).item() == expected
