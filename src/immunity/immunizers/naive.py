"""The baseline that IMMA must beat: ascent without an attacker inside."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from immunity.adaptations import Foreseen
from immunity.adaptations.base import described
from immunity.checks import at_least, positive
from immunity.concepts import Examples
from immunity.deltas import Delta, Provenance
from immunity.immunizers.opponents import Opponents
from immunity.models import DiffusionModel
from immunity.models.original import Original
from immunity.optimize import Journal, derived_seed, fit
from immunity.optimizers import AdamW


@dataclass(frozen=True, kw_only=True)
class AscentOnly:
    """Ascent of θ_S on the adaptation's loss at its first φ: the upper level of IMMA alone (the authors' "--max")."""

    unforeseen: ClassVar[tuple[str, ...]] = (
        *("steps", "lr", "optimizer", "schedule", "warmup", "weight_decay", "clip", "accumulate"),
    )
    """Fields of the adaptation that do not matter here, where it takes no step."""
    group: str = "attention"
    """S, the part of θ that may change: a group of the model's parameters."""
    steps: int = 500
    """Steps of ascent: as many as IMMA's outer steps, for a fair comparison; half of the authors'."""
    lr: float = 1e-5
    """Learning rate of AdamW, constant."""
    batch: int | None = None
    """Pictures a step; None for the adaptation's `batch`, which is a part of its step where it accumulates."""
    clip: float | None = 1.0
    """Largest norm of the gradient; None for no limit."""
    weight_decay: float = 1e-2
    """Of AdamW, per unit of learning rate."""

    def __post_init__(self) -> None:
        at_least(self, 0, "steps", "lr", "weight_decay")
        if self.batch is not None:
            at_least(self, 1, "batch")
        if self.clip is not None:
            positive(self, "clip")

    def __call__(
        self,
        model: DiffusionModel,
        examples: Examples,
        against: Foreseen,
        *,
        seed: int,
        journal: Journal | None = None,
    ) -> Delta:
        """The new values of θ_S; `model` is left as it was found."""
        journal = journal or Journal()
        inputs = {"examples": examples.digest(), "against": described(against)}
        provenance = Provenance.of(self, model, seed=seed, inputs=inputs)
        theta = model.parameters(self.group)
        opponents = Opponents(model, examples, against, changing=theta, seed=seed, journal=journal)
        order = derived_seed(seed, "outer pictures")

        # φ stays as it was initialised, where most kinds of it do nothing; but some have tokens that the prompts use.
        with Original(theta, at_hand=False), opponents:

            def loss(step: int, generator: torch.Generator) -> Tensor:
                opponent = opponents.choose(step)
                size = self.batch or opponent.adaptation.batch
                x_i = opponent.batches.draw(size, step, seed=order, generator=generator)
                return opponent.adaptation.loss(model, x_i, generator)

            fit(
                loss,
                theta.values(),
                steps=self.steps,
                seed=seed,
                optimizer=AdamW(lr=self.lr, weight_decay=self.weight_decay),
                clip=self.clip,
                maximize=True,
                checkpoint=journal.checkpoint(provenance),
                label=journal.label,
                on_step=journal.on_step,
            )
            return Delta.capture(theta, provenance)
