"""What a defence may be charged for: losing prompts that it was not meant to touch. Ours, not IMMA's."""

import itertools
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from immunity.adaptations import Attached, Batches
from immunity.adaptations.batches import changes_text
from immunity.adaptations.denoising import denoising_loss, noised
from immunity.concepts import Examples
from immunity.drawing import draw
from immunity.models import DiffusionModel
from immunity.models.original import Original
from immunity.optimize import derived_seed

RetentionKind = Literal["none", "denoising", "prediction"]


@dataclass(frozen=True, eq=False)
class Retention:
    """Pictures of other prompts, made by the model before it changes, and the price of getting worse on them."""

    batches: Batches
    kind: RetentionKind
    order: int
    """Seed of the order of the pictures."""

    @classmethod
    def of(
        cls,
        model: DiffusionModel,
        prompts: Sequence[str],
        *,
        kind: RetentionKind,
        pictures: int,
        changing: Collection[str],
        seed: int,
        label: str = "",
    ) -> "Retention":
        """`label`: of the progress bar; none without it."""
        chosen = tuple(itertools.islice(itertools.cycle(prompts), pictures))
        seeds = [derived_seed(seed, number) for number in range(pictures)]
        images = draw(model, chosen, seeds, label=label and f"{label}: other pictures")
        examples = Examples(images, chosen, ("made by the model",) * pictures)
        return cls(Batches.encode(model, examples, cache_prompts=not changes_text(changing)), kind, seed)

    def loss(
        self,
        model: DiffusionModel,
        original: Original,
        phi: Attached,
        size: int,
        number: int,
        generator: torch.Generator,
    ) -> Tensor:
        """Of θ alone, which is what is released; the original is run in its place where the kind compares with it."""
        batch = self.batches.draw(size, number, seed=self.order, generator=generator)
        with phi.disabled():
            if self.kind == "denoising":
                return denoising_loss(model, batch, generator)
            noisy, times, _ = noised(model, batch, generator)
            with original.swapped_in():
                target = model.predict(noisy, times, batch.conditioning(model))
            return F.mse_loss(model.predict(noisy, times, batch.conditioning(model)), target)
