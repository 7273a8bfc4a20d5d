"""Settings of optimizers, and the learning rate over a run."""

import itertools
import math

import pytest
import torch
from torch import nn

from immunity import ImmunityError
from immunity.optimize import fit
from immunity.optimizers import Adafactor, AdamW, Schedule, Sgd, optimizer_of
from immunity.stepping import Stepper


def weights(seed: int = 0) -> nn.Parameter:
    return nn.Parameter(torch.randn(4, 5, generator=torch.Generator().manual_seed(seed)))


def test_schedules():
    assert [Schedule().factor(step) for step in (0, 7, 1000)] == [1.0] * 3
    warm = Schedule(warmup=3)
    assert [warm.factor(step) for step in range(5)] == [0.25, 0.5, 0.75, 1.0, 1.0]
    cosine = Schedule(kind="cosine", warmup=2, steps=10)
    shares = [cosine.factor(step) for step in range(12)]
    assert shares[2] == 1.0
    assert shares[6] == pytest.approx(0.5)
    assert shares[2:] == sorted(shares[2:], reverse=True)
    assert 0 < shares[9] < 0.05
    assert shares[10] == shares[11] == 0.0


def test_the_schedule_is_the_rate_of_each_step():
    parameter = nn.Parameter(torch.zeros(1))
    stepper = Stepper([parameter], Sgd(lr=0.1, schedule=Schedule(kind="cosine", warmup=1, steps=4)))
    places = [parameter.item()]
    for _ in range(4):
        stepper.step(parameter.sum())
        places.append(parameter.item())
    rates = [before - after for before, after in itertools.pairwise(places)]
    expected = [0.5, 1.0, 0.5 * (1 + math.cos(math.pi / 3)), 0.5 * (1 + math.cos(2 * math.pi / 3))]
    assert rates == pytest.approx([0.1 * share for share in expected], abs=1e-6)


@pytest.mark.parametrize("kind", ["adamw", "sgd", "adafactor"])
def test_each_of_them_goes_down_and_up_and_resumes(kind):
    schedule = Schedule(kind="cosine", warmup=2, steps=20)
    settings = optimizer_of(kind, lr=0.05, weight_decay=0.0, schedule=schedule)
    down, up = weights(), weights()
    before = down.square().sum().item()
    results = fit(lambda _, __: down.square().sum(), [down], steps=20, seed=0, optimizer=settings)
    fit(lambda _, __: up.square().sum(), [up], steps=5, seed=0, optimizer=settings, maximize=True)
    assert results[-1].loss < before
    assert up.square().sum() > before

    whole, first, second = weights(1), weights(1), weights(2)
    stepper, begun, resumed = (Stepper([each], settings) for each in (whole, first, second))
    for _ in range(5):
        stepper.step(whole.square().sum())
    for _ in range(3):
        begun.step(first.square().sum())
    resumed.load_state_dict(begun.state_dict())
    for _ in range(2):
        resumed.step(second.square().sum())
    assert torch.equal(second, whole)


def test_adafactor_moves_what_begins_at_zero_by_the_rate():
    parameter = nn.Parameter(torch.zeros(4, 5))
    Stepper([parameter], Adafactor(lr=1e-2)).step((parameter * weights(3).detach()).sum())
    assert parameter.square().mean().sqrt().item() == pytest.approx(1e-2, rel=0.01)


def test_parts_of_a_step_are_averaged_and_made_when_asked_for():
    whole, parts = weights(), weights()
    made = []

    def halves():
        for number, row in enumerate((parts[:2], parts[2:])):
            made.append(number)
            yield row.square().sum()
            assert made == list(range(number + 1)), "the next one is not made before this one has been used"

    expected = Stepper([whole], AdamW(lr=0.1)).step(whole.square().sum() / 2)
    result = Stepper([parts], AdamW(lr=0.1)).step(halves())
    torch.testing.assert_close(parts, whole)
    assert result.loss == pytest.approx(expected.loss)
    assert result.gradient_norm == pytest.approx(expected.gradient_norm)


def test_half_precision_parts_add_up():
    parameter = nn.Parameter(torch.ones(1, dtype=torch.bfloat16))
    # A thousandth beside one is lost in bfloat16.
    Stepper([parameter], Sgd(lr=1.0)).step(parameter.sum() * share for share in (1.0, *[1e-3] * 255))
    assert parameter.item() == pytest.approx(1 - (1 + 0.255) / 256, abs=0.004)


def test_shares_are_of_the_rate():
    slow, fast = nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1))
    stepper = Stepper([fast, slow], Sgd(lr=0.1), lr_factors=[1.0, 0.1])
    stepper.step(fast.sum() + slow.sum())
    assert fast.item() == pytest.approx(-0.1)
    assert slow.item() == pytest.approx(-0.01)
    stepper.step(fast.sum() + slow.sum(), lr_factor=2.0)
    assert fast.item() == pytest.approx(-0.3)
    assert slow.item() == pytest.approx(-0.03)
    stepper.step(fast.sum() + slow.sum())
    assert fast.item() == pytest.approx(-0.4)


@pytest.mark.parametrize("loss", [lambda _: torch.ones(()), lambda other: other.sum()])
def test_a_loss_that_nothing_in_training_can_change_is_refused(loss):
    parameter, other = weights(), weights(1)
    with pytest.raises(ImmunityError, match="depends on the parameters in training"):
        Stepper([parameter], AdamW()).step(loss(other))


@pytest.mark.parametrize(
    ("make", "complaint"),
    [
        (lambda: Schedule(kind="linear"), "kind among constant, cosine"),
        (lambda: Schedule(warmup=-1), "warmup of at least 0"),
        (lambda: Adafactor(lr=math.inf), "finite and not negative"),
    ],
)
def test_bad_settings_are_refused(make, complaint):
    with pytest.raises(ImmunityError, match=complaint):
        make()


def test_adafactor_remembers_gradients_as_small_as_adapters_have():
    """After they fall tenfold, its steps are small until it has forgotten; a floor would hide the fall."""
    parameter = nn.Parameter(torch.zeros(8, 8))
    stepper = Stepper([parameter], Adafactor(lr=1e-3, weight_decay=0.0))
    towards = torch.randn(8, 8, generator=torch.Generator().manual_seed(0))
    for size in (1e-5,) * 20 + (1e-6,):
        before = parameter.detach().clone()
        stepper.step((size * towards * parameter).sum())
    assert (parameter.detach() - before).square().mean().sqrt() < 0.3e-3
