"""The perceptual distance, which plays LPIPS's part: features of a copy of the object judge, weighed by channel.

The form is LPIPS's (Zhang et al., 2018): at each layer the activations are scaled to unit length over the channels,
and squared differences are averaged over positions and summed with weights that are not negative. There are no human
judgements of these pictures, so the weights are fitted to what is known: the same distortion, stronger, must be
further away; and a distorted picture must be nearer than another object's picture. They are scaled so that two
unrelated pictures of one style are 0.7 apart on average, as natural images are by LPIPS.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import augment
import judges
import torch
import torch.nn.functional as F
import training
from data import World
from safetensors.torch import save_file
from torch import Tensor, nn

UNRELATED = 0.7
LEVELS = 6


def _blur(ink: Tensor, strength: Tensor, _: torch.Generator) -> Tensor:
    """Gaussian, standard deviation up to 3 px."""
    sigma = (3 * strength).clamp_min(1e-3).view(-1, 1)
    offsets = torch.arange(-9, 10, dtype=torch.float32)
    kernel = (-(offsets**2) / (2 * sigma**2)).exp()
    kernel = (kernel / kernel.sum(1, keepdim=True)).repeat_interleave(3, 0)
    n, c, h, w = ink.shape
    x = F.pad(ink, (9, 9, 9, 9)).reshape(1, n * c, h + 18, w + 18)
    x = F.conv2d(x, kernel.view(n * c, 1, 19, 1), groups=n * c)
    return F.conv2d(x, kernel.view(n * c, 1, 1, 19), groups=n * c).reshape(n, c, h, w)


def _noise(ink: Tensor, strength: Tensor, generator: torch.Generator) -> Tensor:
    """Gaussian, standard deviation up to 0.35."""
    return (ink + 0.35 * strength.view(-1, 1, 1, 1) * torch.randn(ink.shape, generator=generator)).clamp(0, 1)


def _moved(ink: Tensor, x: Tensor, y: Tensor) -> Tensor:
    theta = torch.eye(2, 3).repeat(len(ink), 1, 1)
    theta[:, 0, 2], theta[:, 1, 2] = x, y
    return F.grid_sample(
        ink, F.affine_grid(theta, list(ink.shape), align_corners=False), padding_mode="zeros", align_corners=False
    )


def _shift(ink: Tensor, strength: Tensor, generator: torch.Generator) -> Tensor:
    """In any direction, up to 8 px of 64."""
    angle = torch.rand(len(ink), generator=generator) * 2 * math.pi
    return _moved(ink, 0.25 * strength * angle.cos(), 0.25 * strength * angle.sin())


def _colour(ink: Tensor, strength: Tensor, generator: torch.Generator) -> Tensor:
    """Hue turned either way by up to 120 degrees and colours faded by up to a half."""
    turn = torch.where(torch.rand(len(ink), generator=generator) < 0.5, -1.0, 1.0)
    hue = (turn * strength * 2 * math.pi / 3).view(-1, 1, 1)
    cross = torch.tensor([[0.0, -1, 1], [1, 0, -1], [-1, 1, 0]]) / math.sqrt(3)
    matrix = hue.cos() * torch.eye(3) + hue.sin() * cross + (1 - hue.cos()) / 3
    fade = 0.5 * strength.view(-1, 1, 1)
    matrix = (1 - fade) * matrix + fade / 3
    return torch.bmm(matrix, ink.flatten(2)).view_as(ink).clamp(0, 1)


def _warp(ink: Tensor, strength: Tensor, generator: torch.Generator) -> Tensor:
    """A smooth displacement, of 5 px root mean square at most."""
    n, _, h, w = ink.shape
    bumps = torch.randn(n, 2, 4, 4, generator=generator) * 0.16 * strength.view(-1, 1, 1, 1)
    field = F.interpolate(bumps, size=(h, w), mode="bilinear", align_corners=True).permute(0, 2, 3, 1)
    grid = F.affine_grid(torch.eye(2, 3).repeat(n, 1, 1), list(ink.shape), align_corners=False)
    return F.grid_sample(ink, grid + field, padding_mode="zeros", align_corners=False)


def _fade(ink: Tensor, strength: Tensor, _: torch.Generator) -> Tensor:
    """Towards white paper, by up to 80%."""
    return ink * (1 - 0.8 * strength.view(-1, 1, 1, 1))


Distortion = Callable[[Tensor, Tensor, torch.Generator], Tensor]
FITTED: dict[str, Distortion] = {"blur": _blur, "noise": _noise, "shift": _shift, "colour": _colour}
UNFITTED: dict[str, Distortion] = {"warp": _warp, "fade": _fade}


def same_draws(distort: Distortion, ink: Tensor, strengths: list[Tensor], seed: int) -> list[Tensor]:
    """One distortion (the same noise, the same direction) at several strengths in [0, 1]."""
    return [distort(ink, s, torch.Generator().manual_seed(seed)) for s in strengths]


def differences(backbone: nn.Module, a: Tensor, b: Tensor) -> Tensor:
    """[n, all channels of all layers]: the squared difference of unit activations, mean over positions."""
    with torch.no_grad():
        both = backbone(judges.normalised(torch.cat([a, b])), output_hidden_states=True).hidden_states
    parts = []
    for activations in both:
        x, y = F.normalize(activations, dim=1, eps=1e-6).chunk(2)
        parts.append((x - y).square().mean((2, 3)))
    return torch.cat(parts, 1)


def rank_correlation(values: Tensor) -> Tensor:
    """Spearman's, of each row of [n, levels] with its order; equal values share their mean rank."""
    n, levels = values.shape
    below = (values[:, :, None] > values[:, None, :]).float().sum(2)
    equal = (values[:, :, None] == values[:, None, :]).float().sum(2)
    ranks = below + (equal - 1) / 2
    wanted = torch.arange(levels, dtype=torch.float32).expand(n, levels)
    x, y = ranks - ranks.mean(1, keepdim=True), wanted - wanted.mean(1, keepdim=True)
    return (x * y).sum(1) / (x.norm(dim=1) * y.norm(dim=1)).clamp_min(1e-9)


def order_scores(backbone: nn.Module, weights: Tensor, ink: Tensor) -> dict[str, float]:
    """Mean rank correlation of strength and distance over pictures, for each kind of distortion."""
    result = {}
    for number, (name, distort) in enumerate((FITTED | UNFITTED).items()):
        strengths = [torch.full((len(ink),), (i + 1) / LEVELS) for i in range(LEVELS)]
        versions = same_draws(distort, ink, strengths, 1000 + number)
        distances = torch.stack(
            [
                torch.cat(
                    [differences(backbone, a, b) @ weights for a, b in zip(ink.split(64), v.split(64), strict=True)]
                )
                for v in versions
            ],
            1,
        )
        result[name] = float(rank_correlation(distances).mean())
    return result


def nearer_than_others(backbone: nn.Module, weights: Tensor, ink: Tensor) -> float:
    """The share of pictures whose half-strength distortions are all nearer than another picture of the same style."""
    own = []
    for number, distort in enumerate((FITTED | UNFITTED).values()):
        (v,) = same_draws(distort, ink, [torch.full((len(ink),), 0.5)], 2000 + number)
        own.append(differences(backbone, ink, v) @ weights)
    return float((torch.stack(own).amax(0) < differences(backbone, ink, ink.roll(1, 0)) @ weights).float().mean())


def backbone_of(work: Path) -> nn.Module:
    """A copy of the object judge without its head, frozen."""
    from transformers import ResNetModel

    model = ResNetModel.from_pretrained(judges.folder(work, "object") / "model", dtype=torch.float32)
    return model.to(memory_format=torch.channels_last).eval().requires_grad_(False)


class Weights(nn.Module):
    """One weight a channel, kept positive; layers start equal, as LPIPS without its fitting."""

    def __init__(self, widths: list[int]) -> None:
        super().__init__()
        self.raw = nn.Parameter(torch.full((sum(widths),), math.log(math.e - 1)))

    def forward(self) -> Tensor:
        return F.softplus(self.raw)


def train_lpips(work: Path, *, steps: int, batch: int = 24, seed: int = 15) -> None:
    if judges.done(work, "lpips"):
        return
    world, out = World.load(work), judges.folder(work, "lpips")
    backbone = backbone_of(work)
    widths = [backbone.config.embedding_size, *backbone.config.hidden_sizes]
    weights = Weights(widths)
    by_style = [
        torch.from_numpy(world.where(splits=("trained", "held_out", "pool"), styles=(s,))) for s in judges.KNOWN
    ]
    pictures = torch.from_numpy(world.pictures)
    plan = training.Plan(steps=steps, rate=3e-2, warmup=10, weight_decay=0.0, average=0.98, seed=seed)
    run = training.Run({"lpips": weights}, plan, out)

    def draw(picked: Tensor) -> Tensor:
        return judges.ink(pictures[picked].numpy())

    def loss(step: int, generator: torch.Generator) -> Tensor:
        style = by_style[int(torch.randint(len(by_style), (), generator=generator))]
        x = draw(style[torch.randperm(len(style), generator=generator)[:batch]])
        distort = list(FITTED.values())[step % len(FITTED)]
        weak = augment.uniform(len(x), 0.05, 0.85, generator)
        strong = weak + augment.uniform(len(x), 0.08, 0.3, generator)
        near, far = same_draws(
            distort, x, [weak, strong.clamp_max(1.0)], int(torch.randint(2**31, (), generator=generator))
        )
        w = weights()
        d_near, d_far, d_other = ((differences(backbone, x, v) @ w + 1e-6).log() for v in (near, far, x.roll(1, 0)))
        ordered = F.softplus(-8 * (d_far - d_near)).mean()
        apart = F.softplus(-8 * (d_other - d_near) + 1).mean()
        even = (w / w.mean()).log().square().mean()  # no channel is dropped or trusted alone without a reason
        return ordered + 0.5 * apart + 0.02 * even

    run.loop(loss, name="lpips")
    run.use_average()
    with torch.no_grad():
        fitted = weights()
        known = [draw(s[:: max(len(s) // 64, 1)]) for s in by_style]
        mean = torch.cat([differences(backbone, x, x.roll(1, 0)) @ fitted for x in known]).mean()
        fitted = fitted * UNRELATED / mean
        # By style, so that each picture's predecessor is another object by the same vendor.
        test = torch.cat(
            [judges.ink(world.pictures[world.where(splits=("fold",), styles=(s,))[::2]]) for s in judges.KNOWN]
        )
        report: dict[str, Any] = {
            "test": "objects of the fold (no judge saw them) in the known styles; six strengths of each distortion",
            "pictures": len(test),
            "rank_correlation": order_scores(backbone, fitted, test),
            "rank_correlation_equal_weights": order_scores(backbone, torch.ones_like(fitted), test),
            "not_fitted_on": sorted(UNFITTED),
            "distorted_nearer_than_another_picture": nearer_than_others(backbone, fitted, test),
            "distorted_nearer_equal_weights": nearer_than_others(backbone, torch.ones_like(fitted), test),
            "unrelated_distance": UNRELATED,
            "backbone": "a copy of the object judge's",
            "steps": steps,
            "batch": batch,
            "seed": seed,
        }
    judges.save_model(backbone, out / "model")
    save_file(
        {f"layer.{i}": part.clone() for i, part in enumerate(fitted.split(widths))},
        out / "model" / "weights.safetensors",
    )
    judges.write_report(work, "lpips", report)
