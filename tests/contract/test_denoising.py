"""What fine-tuners vary in the loss, on every kind of tiny family."""

import dataclasses

import pytest
import torch

from immunity import Examples, Lora, adapt
from immunity.adaptations import Batch, Batches, denoising_loss
from immunity.adaptations.denoising import TrainingNoise, min_snr_weights, noised
from immunity.models import thawed
from immunity.models.base import LatentDistribution

from tests import tiny


@pytest.fixture(params=("sd1", "sd2v", "sd3"))
def family(request) -> str:
    return request.param


def batch_of(model, n: int = 4) -> Batch:
    latents = torch.randn(n, *model.latent_shape, generator=torch.Generator().manual_seed(5))
    return Batch(latents, ("church",) * n)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_times_lean_to_less_or_more_noise(model):
    batch = batch_of(model, 256)
    times = {
        kind: noised(model, batch, generator(), TrainingNoise(times=kind)).times.double().mean().item()
        for kind in ("low-noise", "as-trained", "high-noise")
    }
    assert times["low-noise"] < 0.9 * times["as-trained"]
    assert times["high-noise"] > times["as-trained"] + (times["as-trained"] - times["low-noise"]) / 2


def test_noise_offset_moves_whole_channels(model):
    batch = batch_of(model, 64)
    zeros = dataclasses.replace(batch, latents=torch.zeros_like(batch.latents))

    def spread_of_means(offset: float) -> float:
        noise = noised(model, zeros, generator(), TrainingNoise(offset=offset))
        return (noise.target.mean(dim=(2, 3))).std().item()

    assert spread_of_means(1.0) > 2 * spread_of_means(0.0)


def test_min_snr_is_its_formula(model, family):
    like = torch.zeros(5, *model.latent_shape, dtype=torch.float64)
    times = model.sample_times(5, generator())
    one, nothing = torch.ones(5, 1, 1, 1, dtype=torch.float64), torch.zeros(5, 1, 1, 1, dtype=torch.float64)
    signal, sigma = model.add_noise(one, nothing, times).flatten(), model.add_noise(nothing, one, times).flatten()
    snr = (signal / sigma).square()
    expected = {
        "sd1": snr.clamp(max=5) / snr,
        "sd2v": snr.clamp(max=5) / (snr + 1),
        "sd3": snr.clamp(max=5) * sigma.square(),
    }[family]
    torch.testing.assert_close(min_snr_weights(model, times, 5.0, like=like), expected)


def test_without_a_cap_min_snr_weighs_the_error_of_x0(model):
    """The control: γ without bound is the loss in x_0 times the SNR, from the definition."""
    batch = batch_of(model)
    noise, times, target = noised(model, batch, generator())
    with torch.no_grad():
        error = model.predict(noise, times, batch.conditioning(model)) - target
        loss = denoising_loss(model, batch, generator(), TrainingNoise(min_snr=1e30))
    weights = min_snr_weights(model, times, 1e30, like=noise)
    torch.testing.assert_close(loss, (weights * error.square().flatten(1).mean(1)).mean())


@pytest.mark.parametrize("family", tiny.KINDS)
def test_checkpointing_changes_no_gradient(model):
    images = torch.rand(2, 3, model.resolution, model.resolution, generator=generator())
    examples = Examples(images, ("church",) * 2, ("a", "b"))
    gradients, calls = [], {False: [], True: []}
    denoiser = model.components[next(iter(model.parameters("denoiser"))).split(".")[0]]
    for checkpointing in (False, True):
        attack = Lora(checkpointing=checkpointing, batch=2)
        batches = attack.prepare(model, examples)
        with attack.attach(model, seed=0) as phi, thawed(phi.parameters()):
            blocks = [module for name, module in denoiser.named_modules() if name.endswith("lora_A.immunity")]
            seen = calls[checkpointing]
            counted = [block.register_forward_hook(lambda *_, seen=seen: seen.append(1)) for block in blocks]
            source = generator()
            loss = attack.loss(model, attack.draw(batches, 0, seed=0, generator=source), source)
            gradients.append(torch.autograd.grad(loss, phi.parameters()))
            for hook in counted:
                hook.remove()
    assert len(calls[True]) > len(calls[False]), "the control: something was computed again"
    for plain, again in zip(*gradients, strict=True):
        torch.testing.assert_close(again, plain, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("family", ["sd1"])
def test_captions_take_turns_with_every_picture(model):
    images = torch.rand(3, 3, model.resolution, model.resolution, generator=generator())
    examples = Examples(images, ("church",) * 3, tuple("abc"))
    batches = Batches.encode(model, examples, captions=("image", "a church"))
    mean = batches.latents.mean
    batches = dataclasses.replace(batches, latents=LatentDistribution(mean, torch.zeros_like(mean)))
    source = generator()
    drawn = [batches.draw(1, number, seed=0, generator=source) for number in range(6)]
    seen = {(one.prompts[0], int((mean - one.latents).flatten(1).norm(dim=1).argmin())) for one in drawn}
    assert seen == {(caption, picture) for caption in ("image", "a church") for picture in range(3)}


@pytest.mark.parametrize("family", ["sd1"])
@pytest.mark.parametrize(
    "settings",
    [
        {"accumulate": 2},
        {"optimizer": "sgd"},
        {"optimizer": "adafactor"},
        {"schedule": "cosine"},
        {"warmup": 2},
        {"times": "low-noise"},
        {"times": "high-noise"},
        {"min_snr": 5.0},
        {"noise_offset": 0.1},
        {"captions": ("a church",)},
    ],
)
def test_each_setting_changes_the_attack(model, settings):
    images = torch.rand(3, 3, model.resolution, model.resolution, generator=generator())
    examples = Examples(images, ("image",) * 3, tuple("abc"))
    plain = Lora(lr=1e-2, steps=3, batch=8)  # so many times that Min-SNR weighs some of them less
    assert (
        adapt(model, examples, dataclasses.replace(plain, **settings), seed=0).hash
        != adapt(model, examples, plain, seed=0).hash
    )
