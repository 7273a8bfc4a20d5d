"""Stage 2: the autoencoder (a diffusers ``AutoencoderKL``): 64 px pictures to 16×16×4 latents and back.

Trained on every picture of the eight known styles but the held-out and fold objects. The loss is L1 and L1 on the
image gradients (crisp edges), with a small MSE term (what PSNR measures) and a weak KL term. The shift-free scale of
the latents is measured at the end.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import training
from data import World
from torch import Tensor


def build_model(channels: tuple[int, int, int]):
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        latent_channels=4,
        sample_size=64,
        layers_per_block=1,
        block_out_channels=channels,
        norm_num_groups=8,
        mid_block_add_attention=False,
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
    )


def to_tensor(pictures: np.ndarray) -> Tensor:
    """uint8 [n, 64, 64, 3] to float [n, 3, 64, 64] in [-1, 1]."""
    return torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 127.5 - 1


def augment(x: Tensor, generator: torch.Generator) -> Tensor:
    """Flips and whole-pixel shifts with wrap on the white margin: cheap variety that keeps edges sharp."""
    if torch.rand((), generator=generator) < 0.5:
        x = x.flip(-1)
    dy, dx = torch.randint(-3, 4, (2,), generator=generator).tolist()
    x = torch.roll(x, (dy, dx), (-2, -1))
    if torch.rand((), generator=generator) < 0.1:  # other palettes than the eight vendors'
        x = x[:, torch.randperm(3, generator=generator)]
    return x


def loss(model, x: Tensor, generator: torch.Generator, *, kl_weight: float = 1e-4) -> Tensor:
    posterior = model.encode(x).latent_dist
    noise = torch.randn(posterior.mean.shape, generator=generator)
    y = model.decode(posterior.mean + posterior.std * noise).sample
    error = y - x
    edges = (error[..., 1:, :] - error[..., :-1, :]).abs().mean() + (error[..., 1:] - error[..., :-1]).abs().mean()
    return (
        error.abs().mean()
        + 0.5 * edges
        + error.square().mean()
        + kl_weight * posterior.kl().sum() / posterior.mean.numel()
    )


@torch.no_grad()
def psnr(model, pictures: np.ndarray, batch: int = 32) -> Tensor:
    """Per picture, in dB, of the mean reconstruction rounded to 8 bits as it would be saved."""
    out = []
    for part in np.array_split(pictures, max(len(pictures) // batch, 1)):
        x = to_tensor(part)
        y = model.decode(model.encode(x).latent_dist.mean).sample.clamp(-1, 1)
        error = ((y + 1) * 127.5).round() - (x + 1) * 127.5
        out.append(10 * torch.log10(255**2 / error.square().mean((1, 2, 3)).clamp_min(1e-3)))
    return torch.cat(out)


@torch.no_grad()
def decoded(work: Path, pictures: np.ndarray, batch: int = 64) -> Tensor:
    """uint8 [n, 3, 64, 64]: the pictures, [n, 64, 64, 3], as the finished autoencoder renders them."""
    from diffusers import AutoencoderKL

    model = AutoencoderKL.from_pretrained(work / "autoencoder" / "model", torch_dtype=torch.float32).eval()
    parts = (model.decode(model.encode(x).latent_dist.mean).sample for x in to_tensor(pictures).split(batch))
    return torch.cat([((part.clamp(-1, 1) + 1) * 127.5).round().byte() for part in parts])


def train(
    work: Path,
    *,
    channels: tuple[int, int, int] = (24, 48, 96),
    steps: int = 2900,
    batch: int = 8,
    seed: int = 1,
    rate: float = 1.5e-3,
    folder: str = "autoencoder",
) -> None:
    out = work / folder
    if (out / "model" / "config.json").exists():
        return
    torch.manual_seed(seed)  # the initial weights only; every later draw has its own generator
    world, model = World.load(work), build_model(channels).to(memory_format=torch.channels_last)
    pictures = to_tensor(world.pictures[world.where(splits=("trained", "pool"))])
    plan = training.Plan(steps=steps, rate=rate, sample_every=500, seed=seed, average=0.995, decay=0.55)
    run = training.Run({"vae": model}, plan, out)
    check = world.pictures[world.where(splits=("trained",))[::25]]
    other = world.pictures[world.where(splits=("trained", "held_out"), styles=("firefox",))[::4]]

    def step_loss(_: int, generator: torch.Generator) -> Tensor:
        picked = torch.randint(len(pictures), (batch,), generator=generator)
        return loss(model, augment(pictures[picked], generator), generator)

    def sample(step: int) -> None:
        known, unseen = psnr(model, check).mean(), psnr(model, other).mean()
        print(f"autoencoder step {step}: PSNR {known:.2f} dB, held-out style {unseen:.2f} dB", flush=True)
        x = to_tensor(np.concatenate([check[:12], other[:4]]))
        y = model.decode(model.encode(x).latent_dist.mean).sample
        training.grid(torch.stack([x, y], 1).flatten(0, 1) / 2 + 0.5, 8, out / "samples" / f"{step:06d}.png", scale=2)

    run.loop(step_loss, sample=sample, name="autoencoder")
    run.use_average()
    with torch.no_grad():
        latents = torch.cat([model.encode(x).latent_dist.mean for x in pictures[::4].split(64)])
    model.register_to_config(scaling_factor=float(1 / latents.std()))
    model.save_pretrained(out / "model")


if __name__ == "__main__":
    import sys

    train(
        Path(sys.argv[1]),
        channels=tuple(int(c) for c in sys.argv[2].split(",")),
        folder=sys.argv[3],
        steps=int(sys.argv[4]),
    )
