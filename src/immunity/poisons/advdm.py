"""AdvDM: pictures on which the model's own denoising fails."""

from dataclasses import dataclass

import torch
from torch import Tensor

from immunity.adaptations import Batch, denoising_loss
from immunity.adaptations.batches import conditioning_of
from immunity.checks import at_least
from immunity.concepts import Examples
from immunity.deltas import Provenance
from immunity.models import DiffusionModel
from immunity.optimize import Journal
from immunity.poisons.base import Poison
from immunity.stepping import StepResult


@dataclass(frozen=True, kw_only=True)
class Advdm(Poison):
    """AdvDM (Liang et al., ICML 2023, arXiv 2302.04578): max over x' near x of E L(x'), the training loss of the model.

    The expectation is over times and noise, drawn anew at each step; the model does not change.
    """

    steps: int = 100
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
            conditioning = conditioning_of(model, examples.prompts)

        def step(_: int, generator: torch.Generator) -> StepResult:
            def loss(images: Tensor, numbers: Tensor) -> Tensor:
                latents = model.encode_images(images, generator)
                prompts = tuple(examples.prompts[i] for i in numbers.tolist())
                return denoising_loss(model, Batch(latents, prompts, conditioning[numbers]), generator)

            return pictures.ascend(loss)

        journal.loop({"pictures": pictures}, provenance, steps=self.steps, seed=seed).run(step)
        return pictures.of(examples)
