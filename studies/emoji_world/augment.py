"""Augmentations of a whole batch at once: every picture draws its own parameters, the batch shares each operation.

Pictures are kept as *ink*, one minus the picture: white is then zero, so shifting, shrinking and cutting leave white
paper behind. A judge of objects must not care about the vendor's hand: the strong recipe changes shape (affine,
elastic), palette (rotations of hue, channel permutations, greyscale, gamma) and drawing (blur, dark outlines, line
drawing, posterised flats). A judge of styles lives on exactly those, so its recipe only flips, shifts and scales.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

GREY = torch.tensor([0.299, 0.587, 0.114])


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Strengths (the bound of a uniform draw) and probabilities (the share of pictures that an operation touches)."""

    rotate: float = 0.0  # degrees
    scale: tuple[float, float] = (1.0, 1.0)
    stretch: float = 0.0  # log ratio of width to height
    shear: float = 0.0
    shift: float = 0.0  # share of the width
    elastic: float = 0.0  # share of the width
    flip: float = 0.5
    colour: float = 0.0  # share whose colours change at all
    hue: float = 0.0  # radians
    grey: float = 0.0
    permute: float = 0.0
    draw: float = 0.0  # share drawn otherwise: outlines, line drawing, posterised, blurred
    paper: float = 0.0  # share on tinted paper
    cut: float = 0.0  # share with a hole


STRONG = Recipe(
    rotate=15,
    scale=(0.75, 1.2),
    stretch=0.2,
    shear=0.15,
    shift=0.08,
    elastic=0.05,
    colour=0.8,
    hue=0.6,
    grey=0.1,
    permute=0.1,
    draw=0.4,
    paper=0.05,
    cut=0.2,
)


def uniform(n: int, low: float, high: float, generator: torch.Generator) -> Tensor:
    return torch.rand(n, generator=generator) * (high - low) + low


def _chance(n: int, probability: float, generator: torch.Generator) -> Tensor:
    """float [n, 1, 1, 1]: one with this probability, else zero."""
    return (torch.rand(n, generator=generator) < probability).float().view(n, 1, 1, 1)


def warp(ink: Tensor, size: int, recipe: Recipe, generator: torch.Generator) -> Tensor:
    """One affine map and one smooth displacement a picture, sampled straight at the wanted size."""
    n = len(ink)
    angle = uniform(n, -recipe.rotate, recipe.rotate, generator) * math.pi / 180
    scale = uniform(n, math.log(recipe.scale[0]), math.log(recipe.scale[1]), generator).exp()
    stretch = uniform(n, -recipe.stretch, recipe.stretch, generator).exp().sqrt()
    flip = 1 - 2 * (torch.rand(n, generator=generator) < recipe.flip).float()
    shear = uniform(n, -recipe.shear, recipe.shear, generator)
    cos, sin = angle.cos(), angle.sin()
    # output to input: rotation × shear × the inverse of the scales
    x, y = flip / (scale * stretch), stretch / scale
    matrix = torch.stack([cos * x, (shear * cos - sin) * y, sin * x, (shear * sin + cos) * y], -1).view(n, 2, 2)
    shift = uniform(2 * n, -2 * recipe.shift, 2 * recipe.shift, generator).view(n, 2, 1)
    grid = F.affine_grid(torch.cat([matrix, shift], -1), [n, 3, size, size], align_corners=False)
    if recipe.elastic:
        bumps = torch.randn(n, 2, 4, 4, generator=generator) * uniform(n, 0, recipe.elastic, generator).view(n, 1, 1, 1)
        grid = grid + F.interpolate(bumps, size=(size, size), mode="bilinear", align_corners=True).permute(0, 2, 3, 1)
    return F.grid_sample(ink, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


def recolour(ink: Tensor, recipe: Recipe, generator: torch.Generator) -> Tensor:
    """Hue, saturation, channel order and greyscale as one 3×3 matrix a picture; then gamma. Each keeps white white."""
    n = len(ink)
    hue = uniform(n, -recipe.hue, recipe.hue, generator).view(n, 1, 1)
    # Rotation about the grey axis (Rodrigues), whose fixed vector is what keeps white white.
    axis = torch.full((3, 3), 1 / 3)
    cross = torch.tensor([[0.0, -1, 1], [1, 0, -1], [-1, 1, 0]]) / math.sqrt(3)
    eye = torch.eye(3)
    matrix = hue.cos() * eye + hue.sin() * cross + (1 - hue.cos()) * axis
    saturation = uniform(n, 0.4, 1.5, generator).view(n, 1, 1)
    saturation = torch.where(torch.rand(n, 1, 1, generator=generator) < recipe.grey, torch.zeros(()), saturation)
    matrix = (saturation * eye + (1 - saturation) * GREY.expand(3, 3)) @ matrix
    order = torch.rand(n, 3, generator=generator).argsort(1)
    permuted = eye[order] @ matrix
    matrix = torch.where(torch.rand(n, 1, 1, generator=generator) < recipe.permute, permuted, matrix)
    touched = _chance(n, recipe.colour, generator).view(n, 1, 1)
    matrix = touched * matrix + (1 - touched) * eye
    out = torch.bmm(matrix, ink.flatten(2)).view_as(ink).clamp(0, 1)
    gamma = (uniform(n, -0.5, 0.5, generator) * touched.flatten()).exp().view(n, 1, 1, 1)
    strength = (uniform(n, -0.3, 0.0, generator) * touched.flatten()).exp().view(n, 1, 1, 1)
    return out.clamp_min(1e-4).pow(gamma) * strength


def edges(ink: Tensor) -> Tensor:
    """[n, 1, H, W]: the steepest change of any channel, which an outline would follow."""
    right = F.pad((ink[..., 1:] - ink[..., :-1]).abs(), (0, 1))
    down = F.pad((ink[..., 1:, :] - ink[..., :-1, :]).abs(), (0, 0, 0, 1))
    return torch.maximum(right, down).amax(1, keepdim=True)


def redraw(ink: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """As another hand would: a quarter each of blurred, posterised, with dark outlines, outlines alone."""
    n = len(ink)
    kind = torch.randint(4, (n,), generator=generator)
    touched = torch.rand(n, generator=generator) < share
    out = ink.clone()
    for number in range(4):
        picked = (touched & (kind == number)).nonzero().flatten()
        if len(picked) == 0:
            continue
        x = ink[picked]
        if number == 0:
            blurred = F.avg_pool2d(x, 3, stride=1, padding=1)
            amount = uniform(len(x), 0.3, 1.0, generator).view(-1, 1, 1, 1)
            x = x.lerp(F.avg_pool2d(blurred, 3, stride=1, padding=1), amount)
        elif number == 1:
            levels = torch.randint(2, 6, (len(x), 1, 1, 1), generator=generator).float()
            x = (x * levels).round() / levels
        else:
            lines = (edges(x) * uniform(len(x), 1.5, 4.0, generator).view(-1, 1, 1, 1)).clamp(0, 1)
            x = (
                torch.maximum(x, lines)
                if number == 2
                else torch.maximum(x * uniform(len(x), 0.0, 0.5, generator).view(-1, 1, 1, 1), lines)
            )
        out[picked] = x
    return out


def cut_holes(ink: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """A rectangle of a flat colour over a part of the picture, as wide and high as 15% to 45% of it."""
    n, _, height, width = ink.shape
    rows, columns = torch.arange(height).view(1, -1) / height, torch.arange(width).view(1, -1) / width
    top, left = uniform(n, -0.1, 0.9, generator).view(n, 1), uniform(n, -0.1, 0.9, generator).view(n, 1)
    tall, wide = uniform(n, 0.15, 0.45, generator).view(n, 1), uniform(n, 0.15, 0.45, generator).view(n, 1)
    inside = ((rows >= top) & (rows < top + tall)).view(n, 1, height, 1) & (
        (columns >= left) & (columns < left + wide)
    ).view(n, 1, 1, width)
    colour = torch.rand(n, 3, 1, 1, generator=generator) * _chance(n, 0.5, generator)
    hole = inside.float() * _chance(n, share, generator)
    return ink * (1 - hole) + colour * hole


def augment(ink: Tensor, size: int, recipe: Recipe, generator: torch.Generator) -> Tensor:
    """Ink [n, 3, h, w] in [0, 1] to augmented ink [n, 3, size, size] in [0, 1]."""
    x = warp(ink, size, recipe, generator)
    if recipe.draw:
        x = redraw(x, recipe.draw, generator)
    if recipe.colour:
        x = recolour(x, recipe, generator)
    if recipe.paper:
        n = len(x)
        paper = torch.rand(n, 3, 1, 1, generator=generator) * 0.5 * _chance(n, recipe.paper, generator)
        x = 1 - (1 - x) * (1 - paper)
    if recipe.cut:
        x = cut_holes(x, recipe.cut, generator)
    return x


def pieces(
    ink: Tensor, size: int, generator: torch.Generator, *, margin: int = 4, soft: float = 0.25, grain: float = 0.25
) -> Tensor:
    """Whole-pixel pieces of size × size, from the picture and ``margin`` px of paper around it, half of them flipped.

    ``soft`` of them are slightly blurred and ``grain`` slightly noisy, as pictures are that come out of an autoencoder.
    """
    n = len(ink)
    x = F.pad(ink, (margin,) * 4)
    room = x.shape[-1] - size + 1
    top, left = (torch.randint(room, (n, 1), generator=generator) + torch.arange(size) for _ in range(2))
    left = torch.where(torch.rand(n, 1, generator=generator) < 0.5, left.flip(1), left)
    x = x[torch.arange(n).view(n, 1, 1), :, top[:, :, None], left[:, None, :]].permute(0, 3, 1, 2)
    blurred = F.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=True)
    x = x.lerp(blurred, uniform(n, 0, 0.6, generator).view(n, 1, 1, 1) * _chance(n, soft, generator))
    spread = uniform(n, 0, 0.03, generator).view(n, 1, 1, 1) * _chance(n, grain, generator)
    return (x + spread * torch.randn(x.shape, generator=generator)).clamp(0, 1)
