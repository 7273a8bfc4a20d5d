"""Cached latents and prompts, gradients of the trained part alone, bfloat16: none of it changes what is learned.

The other side is the loop that one would write first, over diffusers alone: float32, pictures and prompts encoded at
the step itself, `backward` into every weight.
"""

import pytest
import torch
import torch.nn.functional as F
from diffusers import StableDiffusionPipeline
from peft import LoraConfig
from torch import Tensor

from immunity import Examples, Lora, load
from immunity.models import thawed

from tests import tiny

ATTACK = Lora(batch=8)
PROMPT = "image of church"
# Of a gradient's norm. bfloat16 keeps 8 bits, so one rounding errs by up to 0.4%, and a step has some tens in a row.
TOLERANCES = {"float32": 1e-4, "bfloat16": 0.05}


@pytest.fixture(params=["sd1", "sd2v"])
def family(request) -> tiny.Family:
    return request.param


def source() -> torch.Generator:
    return torch.Generator().manual_seed(3)


def picture(resolution: int) -> Tensor:
    return torch.rand(1, 3, resolution, resolution, generator=torch.Generator().manual_seed(0))


def ours(folder, dtype: str) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Tensor]]:
    """φ, and the gradients of one batch's loss with respect to φ and to the attention's weights."""
    model = load(folder, dtype=dtype)
    batches = ATTACK.prepare(model, Examples(picture(model.resolution), (PROMPT,), ("picture",)))
    with ATTACK.attach(model, seed=0) as attached:
        start = torch.Generator().manual_seed(1)
        phi = {
            name: (0.1 * torch.randn(value.shape, generator=start)).bfloat16().to(value.dtype)
            for name, value in attached.named_parameters().items()
        }
        attached.load_state_dict(phi)
        theta = model.parameters("attention")
        levels = []
        for level in (dict(attached.named_parameters()), theta):
            with thawed(level.values()):
                generator = source()
                loss = ATTACK.loss(model, ATTACK.draw(batches, 0, seed=0, generator=generator), generator)
                gradients = torch.autograd.grad(loss, list(level.values()))
            levels.append({name: value.float() for name, value in zip(level, gradients, strict=True)})
    return {name: value.float() for name, value in phi.items()}, *levels


def plain(folder, phi: dict[str, Tensor]) -> dict[str, Tensor]:
    """The gradients of all weights of the denoiser, LoRA's too."""
    pipe = StableDiffusionPipeline.from_pretrained(folder, safety_checker=None)
    unet, vae, scheduler = pipe.unet, pipe.vae, pipe.scheduler
    unet.add_adapter(
        LoraConfig(r=ATTACK.rank, lora_alpha=ATTACK.rank, target_modules=["to_q", "to_k", "to_v", "to_out.0"])
    )
    unet.requires_grad_(True)
    weights = {
        name.replace(".default", "").replace(".base_layer", ""): value for name, value in unet.named_parameters()
    }
    with torch.no_grad():
        for name, value in phi.items():
            weights[name].copy_(value)
    generator = source()
    images = picture(unet.config.sample_size * pipe.vae_scale_factor).repeat(ATTACK.batch, 1, 1, 1)
    encoded = vae.encode(2 * images - 1).latent_dist
    sampled = encoded.mean + encoded.std * torch.randn(encoded.mean.shape, generator=generator)
    latents = sampled * vae.config.scaling_factor
    noise = torch.randn(latents.shape, generator=generator)
    times = torch.randint(0, scheduler.config.num_train_timesteps, (ATTACK.batch,), generator=generator)
    tokens = pipe.tokenizer([PROMPT] * ATTACK.batch, padding="max_length", truncation=True, return_tensors="pt")
    text = pipe.text_encoder(tokens.input_ids).last_hidden_state
    noisy = scheduler.add_noise(latents, noise, times)
    epsilon = scheduler.config.prediction_type == "epsilon"
    target = noise if epsilon else scheduler.get_velocity(latents, noise, times)
    F.mse_loss(unet(noisy, times, text).sample, target).backward()
    return {name: value.grad for name, value in weights.items() if value.grad is not None}


def difference(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    """Of the gradient over all parameters of ``one``, relative to its norm."""
    flat, reference = (torch.cat([side[name].flatten() for name in one]) for side in (one, other))
    return ((flat - reference).norm() / reference.norm()).item()


@pytest.mark.parametrize("dtype", TOLERANCES)
def test_the_gradients_are_those_of_the_plain_loop(family, folder, dtype):
    phi, of_phi, of_theta = ours(folder, dtype)
    expected = plain(folder, phi)
    assert difference(of_phi, expected) < TOLERANCES[dtype]
    theirs = {name.removeprefix("unet."): value for name, value in of_theta.items()}
    assert difference(theirs, expected) < TOLERANCES[dtype]
