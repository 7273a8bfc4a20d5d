"""AdvDM: pictures on which the model's own denoising fails."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from immunity.adaptations import Batch, denoising_loss
from immunity.adaptations.batches import encoded, numbered
from immunity.concepts import Examples
from immunity.models import DiffusionModel
from immunity.poisons.base import Ascent


@dataclass(frozen=True, kw_only=True)
class Advdm(Ascent):
    """AdvDM (Liang et al., ICML 2023, arXiv 2302.04578): max over x' near x of E L(x'), the training loss of the model.

    The expectation is over times and noise, drawn anew at each step; the model does not change.
    """

    def loss(self, model: DiffusionModel, examples: Examples) -> Callable[[Tensor, Tensor, torch.Generator], Tensor]:
        distinct, rows = numbered(examples.prompts)
        with torch.no_grad():
            conditioning = encoded(model, distinct)

        def of(images: Tensor, numbers: Tensor, generator: torch.Generator) -> Tensor:
            latents = model.encode_images(images, generator)
            prompts = tuple(examples.prompts[i] for i in numbers.tolist())
            return denoising_loss(model, Batch(latents, prompts, conditioning[rows[numbers]]), generator)

        return of
