"""Noise of the same size as a poison: the control for "any change of these pictures would do"."""

from dataclasses import dataclass

import torch

from immunity.checks import unused
from immunity.concepts import Examples
from immunity.models import DiffusionModel
from immunity.optimize import Journal
from immunity.poisons.base import Poison


@dataclass(frozen=True, kw_only=True)
class RandomNoise(Poison):
    """Every colour goes up or down by the whole budget, as it happens. Ours: no method, but a control."""

    def __post_init__(self) -> None:
        super().__post_init__()
        unused(self, "step_size", "batch", without="all pictures change once, by the budget")

    def __call__(
        self,
        model: DiffusionModel,
        examples: Examples,
        *,
        seed: int,
        journal: Journal | None = None,  # noqa: ARG002 (it is done at once)
    ) -> Examples:
        pictures = self._begin(model, examples)
        generator = torch.Generator().manual_seed(seed)
        signs = torch.randint(0, 2, examples.images.shape, generator=generator) * 2 - 1
        pictures.images = (pictures.images + signs * self.budget / 255).clamp(0, 1)
        return pictures.of(examples)
