"""IMMA: the model is made a bad starting point for an adaptation, by playing the adaptation against it."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, get_args

import torch
from torch import Tensor, nn

from immunity.adaptations import Foreseen
from immunity.adaptations.base import described
from immunity.checks import at_least, one_of, positive, unused
from immunity.concepts import Examples
from immunity.deltas import Delta, Provenance
from immunity.errors import ImmunityError
from immunity.immunizers.opponents import Opponents
from immunity.immunizers.retention import Retention, RetentionKind
from immunity.models import DiffusionModel, thawed
from immunity.models.original import Original
from immunity.optimize import Journal, Kept, derived_seed
from immunity.optimizers import AdamW
from immunity.stepping import Stepper, StepResult


@dataclass(frozen=True, kw_only=True)
class Imma:
    """IMMA (Zheng & Yeh, ECCV 2024, arXiv 2311.18815): max over θ_S of L_A(x; θ, φ*), with φ* = argmin of L_A over φ.

    Algorithm 1: in turn, the adaptation's own descent on φ, and ascent of θ_S on the same loss with φ held fixed, each
    on its own pictures, noise and times. φ and the moments of both optimizers carry over.
    """

    unforeseen: ClassVar[tuple[str, ...]] = ("steps",)
    """Fields of the adaptation that do not matter here: how long it lasts is how long this lasts."""
    group: str = "attention"
    """S, the part of θ that may change: a group of the model's parameters, such as "attention" (the paper's),
    "cross_attention", "text_kv" or "all"."""
    steps: int = 1000
    """Steps of both levels together, as the authors count: with one inner and one outer step a cycle, 500 of each."""
    inner: int = 1
    """Steps of φ in a cycle."""
    outer: int = 1
    """Steps of θ_S in a cycle."""
    outer_lr: float = 1e-5
    """Learning rate of θ_S (AdamW, constant). The authors' against LoRA; theirs are 2e-5 against DreamBooth, with LoRA
    or without, and 1e-6 against Textual Inversion."""
    inner_lr: float | None = None
    """Learning rate of φ; None for the adaptation's own. The rest of its optimizer is the adaptation's."""
    outer_batch: int | None = None
    """Pictures an outer step; None for the adaptation's `batch`, which is a part of its step where it accumulates."""
    clip: float | None = 1.0
    """Largest norm of the outer gradient; None for no limit, which the authors have against Textual Inversion. The
    inner limit is the adaptation's."""
    weight_decay: float = 1e-2
    """Of the outer AdamW, per unit of learning rate."""
    reinitialise_every: int = 0
    """Cycles after which φ and its optimizer begin anew; 0 for never, as in the paper."""
    retention: RetentionKind = "none"
    """Ours, not the paper's: a price on losing other prompts, paid by θ without φ. "denoising" is the training loss on
    pictures that the model made of them beforehand; "prediction" is the distance to what it predicted there. Its
    activations are kept, whatever the adaptation's `checkpointing`."""
    retention_weight: float = 1.0
    """Of that price, relative to the adaptation's loss."""
    retention_prompts: tuple[str, ...] = ()
    """The other prompts."""
    retention_pictures: int = 16
    """Pictures made for that price, the prompts taking turns."""

    def __post_init__(self) -> None:
        at_least(self, 0, "steps", "outer_lr", "weight_decay", "reinitialise_every", "retention_weight")
        at_least(self, 1, "inner", "outer", "retention_pictures")
        one_of(self, "retention", get_args(RetentionKind))
        if self.inner_lr is not None:
            at_least(self, 0, "inner_lr")
        if self.outer_batch is not None:
            at_least(self, 1, "outer_batch")
        if self.clip is not None:
            positive(self, "clip")
        if self.retention != "none" and not self.retention_prompts:
            raise ImmunityError(
                expected="prompts to retain",
                got=f"retention={self.retention!r} without any",
                remedy="retention_prompts",
            )
        if self.retention == "none":
            unused(self, "retention_weight", "retention_pictures", without="without retention")
        if self.retention == "none" and self.retention_prompts:
            raise ImmunityError(
                expected="a kind of retention for the prompts to retain",
                got=f"{len(self.retention_prompts)} of them with retention='none'",
                remedy="retention='prediction' (--retention prediction), or no retention_prompts",
            )

    def __call__(
        self,
        model: DiffusionModel,
        examples: Examples,
        against: Foreseen,
        *,
        seed: int,
        journal: Journal | None = None,
    ) -> Delta:
        """The new values of θ_S; `model` is left as it was found.

        Against a mixture, each cycle draws one of its adaptations, whose φ is as its last cycle left it. Killed and
        called again with the same journal, it goes on from its checkpoint to the same values, bit for bit.
        """
        journal = journal or Journal()
        inputs = {"examples": examples.digest(), "against": described(against)}
        provenance = Provenance.of(self, model, seed=seed, inputs=inputs)
        theta = model.parameters(self.group)
        cycles = self.reinitialise_every or math.ceil(self.steps / (self.inner + self.outer))
        opponents = Opponents(
            model,
            examples,
            against,
            changing=theta,
            seed=seed,
            turns=cycles,
            steps=self.inner,
            lr=self.inner_lr,
            reinitialise_every=self.reinitialise_every,
            journal=journal,
        )
        retention = self._retention(model, theta, seed, journal.label)
        inner_order, outer_order = derived_seed(seed, "inner pictures"), derived_seed(seed, "outer pictures")
        outer_optimizer = AdamW(lr=self.outer_lr, weight_decay=self.weight_decay)

        with Original(theta, at_hand=retention is not None) as original, opponents:
            outer = Stepper(theta.values(), outer_optimizer, clip=self.clip, maximize=True)

            def step(number: int, generator: torch.Generator) -> StepResult:
                cycle, phase = divmod(number, self.inner + self.outer)
                opponent = opponents.choose(cycle)
                adaptation, phi = opponent.adaptation, opponent.phi
                if phase < self.inner:
                    with thawed(phi.parameters()):
                        count = cycle * self.inner + phase
                        x_a = opponent.batches
                        losses = adaptation.losses(model, x_a, count, seed=inner_order, generator=generator)
                        return opponent.stepper.step(losses, lr_factor=opponent.lr_factor)
                with thawed(theta.values()):
                    count = cycle * self.outer + phase - self.inner
                    size = self.outer_batch or adaptation.batch
                    # Pictures of the concept alone: a prior term is the attacker's, and nothing to be maximised.
                    x_i = opponent.batches.draw(size, count, seed=outer_order, generator=generator)
                    price: Tensor | float = 0.0
                    if retention is not None:
                        lost = retention.loss(model, original, phi, size, count, generator)
                        price = self.retention_weight * lost
                    return outer.step(adaptation.loss(model, x_i, generator) - price)

            levels: dict[str, Kept] = {"outer": outer, "inner": opponents}
            journal.loop(levels, provenance, steps=self.steps, seed=seed).run(step)
            return Delta.capture(theta, provenance)

    def _retention(
        self, model: DiffusionModel, theta: Mapping[str, nn.Parameter], seed: int, label: str
    ) -> Retention | None:
        if self.retention == "none":
            return None
        return Retention.of(
            model,
            self.retention_prompts,
            kind=self.retention,
            pictures=self.retention_pictures,
            changing=theta,
            seed=derived_seed(seed, "retention"),
            label=label,
        )
