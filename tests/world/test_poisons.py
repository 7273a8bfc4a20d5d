import pytest
import torch

from immunity import Advdm, Aspl, Lora, RandomNoise, load
from immunity.adaptations import Batches, denoising_loss

pytestmark = pytest.mark.world


def denoising(model, examples) -> float:
    batches, generator = Batches.encode(model, examples), torch.Generator().manual_seed(9)
    with torch.no_grad():
        return denoising_loss(model, batches.draw(64, 0, seed=0, generator=generator), generator).item()


@pytest.mark.parametrize(
    "poison",
    [Advdm(steps=8, step_size=2), Aspl(surrogate=Lora(lr=1e-3, batch=2), rounds=2, steps=4, step_size=2)],
    ids=["advdm", "aspl"],
)
def test_a_model_that_draws_cannot_make_sense_of_poisoned_pictures(world, poison):
    model, examples = load("emoji"), world.examples("church").take(range(4))
    made = poison(model, examples, seed=0)
    noisy = RandomNoise(budget=poison.budget)(model, examples, seed=1)
    clean, poisoned, noised = (denoising(model, each) for each in (examples, made, noisy))
    assert poisoned > 1.5 * clean
    assert poisoned > 1.3 * noised, "any change of that size would not do"
