"""What an adaptation is: parameters φ that an attacker trains beside the model's θ, and the loss that they minimise."""

import dataclasses
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from immunity.adaptations.batches import Batch, Batches, changes_text
from immunity.atomic import save_tensors
from immunity.checks import at_least, positive
from immunity.concepts import Examples
from immunity.deltas import Delta, Provenance, hash_tensors
from immunity.models import DiffusionModel
from immunity.optimize import AdamW, Journal, StepResult, derived_seed, fit


class Attached(ABC):
    """φ while it is part of a model's forward pass. θ is never among its parameters."""

    @abstractmethod
    def named(self) -> Mapping[str, nn.Parameter]:
        """φ by name. Frozen: who trains it thaws it."""

    @abstractmethod
    def reset(self, seed: int) -> None:
        """Initialises φ as the adaptation does, from the seed alone."""

    @abstractmethod
    def disabled(self) -> AbstractContextManager[None]:
        """In this block the model is θ alone."""

    @abstractmethod
    def merged(self) -> dict[str, Tensor]:
        """The values of θ that do without φ what θ does with it, by the names of `model.parameters`."""

    @abstractmethod
    def exported(self) -> dict[str, Tensor]:
        """The tensors of the file in which adapters of this kind circulate, by the names in it."""

    def parameters(self) -> list[nn.Parameter]:
        return list(self.named().values())

    def state_dict(self) -> dict[str, Tensor]:
        return {name: value.detach().clone() for name, value in self.named().items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        with torch.no_grad():
            for name, value in self.named().items():
                value.copy_(state[name])


@dataclass(frozen=True, kw_only=True)
class Adaptation(ABC):
    """Fine-tuning by an attacker, or by an honest user: what is common to all kinds of it."""

    lr: float = 1e-4
    """Learning rate of AdamW, constant."""
    steps: int = 1000
    """Training steps."""
    batch: int = 1
    """Pictures a step."""
    weight_decay: float = 1e-2
    """Of AdamW, per unit of learning rate."""
    clip: float | None = 1.0
    """Largest norm of the gradient; None for no limit."""
    mirror: bool = False
    """Learn from the mirror images of the pictures too."""
    balance: bool = False
    """Show every prompt equally often, however many pictures it has."""

    def __post_init__(self) -> None:
        at_least(self, 0, "lr", "steps", "weight_decay")
        at_least(self, 1, "batch")
        if self.clip is not None:
            positive(self, "clip")

    @property
    def trains_text(self) -> bool:
        """Whether φ is part of the text encoder, so that prompts must be encoded at each step."""
        return False

    @abstractmethod
    def attach(self, model: DiffusionModel, *, seed: int) -> AbstractContextManager[Attached]:
        """φ, newly initialised, as part of the model for the length of a block; after it the model is as before."""

    def prepare(self, model: DiffusionModel, examples: Examples, *, changing: Collection[str] = ()) -> Batches:
        """The pictures as the attacker uses them, encoded.

        `changing` names the parameters of θ that change meanwhile: prompts are encoded once unless that would be wrong.
        """
        cache_prompts = not (self.trains_text or changes_text(changing))
        return Batches.encode(model, examples, mirror=self.mirror, balance=self.balance, cache_prompts=cache_prompts)

    def draw(self, batches: Batches, number: int, *, seed: int, generator: torch.Generator) -> Batch:
        """What the attacker's step `number` sees."""
        return batches.draw(self.batch, number, seed=seed, generator=generator)

    def loss(self, model: DiffusionModel, batch: Batch, generator: torch.Generator) -> Tensor:
        """What φ minimises; everything random in it comes from the generator."""
        return denoising_loss(model, batch, generator)

    def optimizer(self) -> AdamW:
        return AdamW(lr=self.lr, weight_decay=self.weight_decay)


class Noised(NamedTuple):
    """A batch with noise on it, one time and one noise for each picture."""

    latents: Tensor
    """x_t."""
    times: Tensor
    target: Tensor
    """What the model should predict."""


def noised(model: DiffusionModel, batch: Batch, generator: torch.Generator) -> Noised:
    noise = torch.randn(batch.latents.shape, generator=generator, dtype=batch.latents.dtype).to(batch.latents.device)
    times = model.sample_times(len(noise), generator)
    return Noised(model.add_noise(batch.latents, noise, times), times, model.target(batch.latents, noise, times))


def denoising_loss(model: DiffusionModel, batch: Batch, generator: torch.Generator) -> Tensor:
    """The loss of the model's own training, E ‖predict(x_t, t, c) − target‖²."""
    noisy, times, target = noised(model, batch, generator)
    return F.mse_loss(model.predict(noisy, times, batch.conditioning(model)), target)


@dataclass(frozen=True, eq=False)
class AttackResult:
    """What an attack leaves behind."""

    delta: Delta
    """φ merged into θ."""
    adapter: Mapping[str, Tensor]
    """φ as the tensors of the file in which such adapters circulate."""
    losses: tuple[float, ...]
    """Training loss of each step."""
    seconds: float
    """Wall time of the training, callbacks included."""

    @property
    def hash(self) -> str:
        """SHA-256 of φ."""
        return hash_tensors(self.adapter)

    def save_adapter(self, path: str | Path, *, force: bool = False) -> None:
        """Writes the adapter in its usual format, e.g. a LoRA for `pipe.load_lora_weights`, as one safetensors file."""
        # A header key other than a delta's, as this file is not one.
        save_tensors(path, self.adapter, {"immunity_adapter": self.delta.provenance.to_json()}, force=force)


def adapt(
    model: DiffusionModel,
    examples: Examples,
    adaptation: Adaptation,
    *,
    seed: int,
    at: Collection[int] = (),
    callback: Callable[[int, Attached], None] | None = None,
    journal: Journal | None = None,
) -> AttackResult:
    """Runs the attack; `model` is left as it was found, to the bit.

    `callback(step, φ)` is called after each number of steps in `at`, 0 for before the first, while φ is attached: what
    the model samples then is what the attacker has. A run that is resumed does not call again for steps already done.
    """
    journal = journal or Journal()
    provenance = Provenance.of(adaptation, model, seed=seed, inputs={"examples": examples.digest()})
    batches = adaptation.prepare(model, examples)
    order = derived_seed(seed, "pictures")
    started = time.monotonic()

    with adaptation.attach(model, seed=derived_seed(seed, "φ")) as phi:

        def loss(step: int, generator: torch.Generator) -> Tensor:
            return adaptation.loss(model, adaptation.draw(batches, step, seed=order, generator=generator), generator)

        def on_step(done: int, result: StepResult) -> None:
            if journal.on_step is not None:
                journal.on_step(done, result)
            if callback is not None and done in at:
                callback(done, phi)

        checkpoint = journal.checkpoint(provenance)
        if callback is not None and 0 in at and (checkpoint is None or not checkpoint.path.exists()):
            callback(0, phi)
        results = fit(
            loss,
            phi.parameters(),
            steps=adaptation.steps,
            seed=seed,
            optimizer=adaptation.optimizer(),
            clip=adaptation.clip,
            checkpoint=checkpoint,
            label=journal.label,
            on_step=on_step,
        )
        delta = Delta.capture(phi.merged(), provenance)
        adapter = {name: value.detach().cpu() for name, value in phi.exported().items()}
    return AttackResult(delta, adapter, tuple(result.loss for result in results), time.monotonic() - started)


def described(adaptation: Adaptation) -> dict[str, object]:
    """For the provenance of what was made against it."""
    return {"method": type(adaptation).__name__, **dataclasses.asdict(adaptation)}
