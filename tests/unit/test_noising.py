"""Where the noise of a flow lies in training."""

import math

import pytest
import torch

from immunity import ImmunityError
from immunity.models.noising import Chain, Flow, finest


def flow(tokens: int = 256, **settings: object) -> Flow:
    from diffusers import FlowMatchEulerDiscreteScheduler

    scheduler = FlowMatchEulerDiscreteScheduler(**settings)
    return Flow(scheduler, name="x", device=torch.device("cpu"), tokens=tokens)


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_a_shift_moves_the_logit_by_its_logarithm(shift):
    """The formula of the scheduler, applied to the logit-normal without a shift."""
    plain, moved = (
        one.sample_times(1000, torch.Generator().manual_seed(0)).double() / 1000 for one in (flow(), flow(shift=shift))
    )
    torch.testing.assert_close(moved, shift * plain / (1 + (shift - 1) * plain), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("tokens", "mean"), [(256, 0.5), (4096, 1.15), (2176, 0.825)])
def test_a_dynamic_shift_follows_the_size_of_the_picture(tokens, mean):
    assert flow(tokens, use_dynamic_shifting=True).mean == pytest.approx(mean)
    linear = flow(tokens, use_dynamic_shifting=True, time_shift_type="linear")
    assert linear.mean == pytest.approx(math.log(mean))


def test_the_ends_are_the_picture_and_the_noise():
    picture, noise = torch.ones(2, 1, 1, 1), torch.full((2, 1, 1, 1), 5.0)
    noisy = flow().add_noise(picture, noise, torch.tensor([0.0, 1000.0]))
    assert noisy.flatten().tolist() == [1.0, 5.0]
    assert flow().target(picture, noise, torch.tensor([0.0, 1000.0])).flatten().tolist() == [4.0, 4.0]


def chain(kind: str, **settings: object) -> Chain:
    import diffusers

    return Chain(getattr(diffusers, kind)(**settings), name="x", device=torch.device("cpu"))


def test_a_chain_has_the_betas_of_its_scheduler_and_no_others():
    given = chain("DDIMScheduler", trained_betas=[0.5, 0.5])
    one = torch.ones(1, 1, 1, 1)
    assert given.add_noise(one, 0 * one, torch.tensor([1])).item() == pytest.approx(0.5)
    with pytest.raises(ImmunityError, match="betas of the chain; got EDMEulerScheduler in x"):
        chain("EDMEulerScheduler")


def test_an_apple_processor_is_asked_for_no_doubles():
    from diffusers import DDPMScheduler

    assert finest(torch.device("mps")) is torch.float32
    chain = Chain(DDPMScheduler(), name="x", device=torch.device("cpu"))
    noisy = chain.add_noise(torch.ones(1, 1, 1, 1), torch.zeros(1, 1, 1, 1), torch.tensor([0]))
    assert noisy.item() == pytest.approx((1 - 1e-4) ** 0.5, abs=1e-7)
