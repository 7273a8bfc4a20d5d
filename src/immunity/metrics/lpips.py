"""LPIPS with AlexNet (Zhang et al., 2018): the authors' own weights, through their package `lpips`.

It needs torchvision, which nothing else here does; so it is imported inside, and its AlexNet is taken from torch's
cache only.
"""

import importlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from immunity.errors import ImmunityError
from immunity.metrics.base import check_images, resized

ALEXNET_FILE = "alexnet-owt-7be5be79.pth"
"""torchvision's name for the weights that the package asks it for."""
SMALLEST = 64
"""Pixels. Below this AlexNet's last layers see less than one whole field."""


@dataclass(frozen=True, eq=False)
class LpipsJudge:
    """The authors' network: called with pairs of pictures in [-1, 1], it returns their distances."""

    network: Any
    device: str = "cpu"
    batch: int = 32

    @classmethod
    def load(cls, *, device: str = "cpu", batch: int = 32) -> "LpipsJudge":
        """Raises `ImmunityError` if the package or AlexNet's file is not on this machine; nothing is downloaded."""
        try:
            lpips: Any = importlib.import_module("lpips")
        except (ImportError, RuntimeError) as error:  # a torchvision that does not fit torch raises RuntimeError
            raise ImmunityError(
                expected="the package lpips",
                got=f"{type(error).__name__}: {error}",
                remedy="pip install lpips, with a torchvision that fits your torch",
            ) from error
        weights = Path(torch.hub.get_dir()) / "checkpoints" / ALEXNET_FILE
        if not weights.is_file():
            raise ImmunityError(
                expected="AlexNet's weights in torch's cache",
                got=f"no {weights}",
                remedy="running `python -c \"import lpips; lpips.LPIPS(net='alex')\"` once, with a connection",
            )
        return cls(lpips.LPIPS(net="alex", verbose=False).to(device).eval(), device, batch)

    @torch.no_grad()
    def distances(self, images: Tensor, references: Tensor) -> Tensor:
        """[n, m] float32 on the CPU, at the images' own size: references of another one are resized to it (bicubic)."""
        height, width = images.shape[-2:]
        if min(height, width) < SMALLEST:
            scale = SMALLEST / min(height, width)
            height, width = round(height * scale), round(width * scale)
        ours, theirs = (resized(x.float(), height, width).mul(2).sub(1) for x in (images, references))
        rows = []
        for one in ours:
            parts = [
                self.network(one[None].expand_as(part).to(self.device), part.to(self.device)).flatten().float().cpu()
                for part in theirs.split(self.batch)
            ]
            rows.append(torch.cat(parts))
        return torch.stack(rows)


@dataclass(frozen=True)
class LpipsSimilarity:
    """1 - LPIPS, mean over the reference pictures. "LPIPS" in the paper's tables is made of this."""

    judge: LpipsJudge
    name: str = "lpips"
    higher_is_better: Literal[True] = True

    def __call__(self, images: Tensor, reference: Tensor, /) -> Tensor:
        check_images(images), check_images(reference, "reference pictures")
        return 1 - self.judge.distances(images, reference).mean(1)
