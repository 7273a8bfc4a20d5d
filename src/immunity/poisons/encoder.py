"""The encoder attack of PhotoGuard: pictures that the autoencoder takes for another one."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from immunity.concepts import Examples
from immunity.models import DiffusionModel
from immunity.poisons.base import Ascent


@dataclass(frozen=True, kw_only=True)
class EncoderAttack(Ascent):
    """PhotoGuard's (Salman et al., ICML 2023, arXiv 2302.06588, Eq. 4): min over x' near x of ‖E(x') − E(grey)‖².

    It needs the autoencoder alone, and so holds for all models that share it.
    """

    budget: int = 16
    """Largest change of a colour, of 255."""
    steps: int = 200
    """Steps of each picture."""

    def loss(self, model: DiffusionModel, examples: Examples) -> Callable[[Tensor, Tensor, torch.Generator], Tensor]:
        with torch.no_grad():
            target = model.encode_images(torch.full_like(examples.images[:1], 0.5))

        def of(images: Tensor, _: Tensor, __: torch.Generator) -> Tensor:
            return -(model.encode_images(images) - target).square().flatten(1).sum(1).mean()

        return of
