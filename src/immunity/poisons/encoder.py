"""The encoder attack of PhotoGuard: pictures that the autoencoder takes for another one."""

from dataclasses import dataclass

import torch
from torch import Tensor

from immunity.checks import at_least
from immunity.concepts import Examples
from immunity.deltas import Provenance
from immunity.models import DiffusionModel
from immunity.optimize import Journal
from immunity.poisons.base import Poison
from immunity.stepping import StepResult


@dataclass(frozen=True, kw_only=True)
class EncoderAttack(Poison):
    """PhotoGuard's (Salman et al., ICML 2023, arXiv 2302.06588, Eq. 4): min over x' near x of ‖E(x') − E(grey)‖².

    It needs the autoencoder alone, and so holds for all models that share it.
    """

    budget: int = 16
    """Largest change of a colour, of 255."""
    steps: int = 200
    """Steps of each picture."""

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self, 0, "steps")

    def __call__(
        self, model: DiffusionModel, examples: Examples, *, seed: int, journal: Journal | None = None
    ) -> Examples:
        journal = journal or Journal()
        pictures = self._begin(model, examples)
        provenance = Provenance.of(self, model, seed=seed, inputs={"examples": examples.digest()})
        with torch.no_grad():
            target = model.encode_images(torch.full_like(examples.images[:1], 0.5))

        def loss(images: Tensor, _: Tensor) -> Tensor:
            return -(model.encode_images(images) - target).square().flatten(1).sum(1).mean()

        def step(_: int, __: torch.Generator) -> StepResult:
            return pictures.ascend(loss)

        journal.loop({"pictures": pictures}, provenance, steps=self.steps, seed=seed).run(step)
        return pictures.of(examples)
