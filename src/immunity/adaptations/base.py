"""What an adaptation is: parameters φ that an attacker trains beside the model's θ, and the loss that they minimise."""

import dataclasses
import json
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import torch
from torch import Tensor

from immunity.adaptations.attached import Attached
from immunity.adaptations.batches import Batch, Batches, changes_text
from immunity.adaptations.denoising import TimesKind, TrainingNoise, denoising_loss
from immunity.atomic import replacing, save_tensors
from immunity.checks import at_least, one_of, positive, unused
from immunity.concepts import Examples, naming
from immunity.deltas import Delta, Provenance, hash_tensors
from immunity.errors import ImmunityError
from immunity.filenames import ADAPTER_KEY, DELTA_FILE, LOSSES_FILE
from immunity.models import DiffusionModel
from immunity.models.vocabulary import LearnedToken
from immunity.optimize import Journal, check_trainable, derived_seed, fit
from immunity.optimizers import AnyOptimizer, OptimizerKind, Schedule, ScheduleKind, optimizer_of
from immunity.stepping import StepResult

if TYPE_CHECKING:
    from immunity.adaptations.mixture import Mixture

NAME_HERE = "{}"
"""In a caption, where the adaptation's name for its subject goes."""


@dataclass(frozen=True, kw_only=True)
class Adaptation(ABC):
    """Fine-tuning by an attacker, or by an honest user: what is common to all kinds of it."""

    lr: float = 1e-4
    """Learning rate, the highest where it varies."""
    steps: int = 1000
    """Training steps."""
    batch: int = 1
    """Pictures a step, or a part of one."""
    accumulate: int = 1
    """Parts of a step: batches whose gradients are averaged."""
    optimizer: OptimizerKind = "adamw"
    """What takes the steps. Adafactor needs little memory; SGD has no moments and no weight decay."""
    schedule: ScheduleKind = "constant"
    """The learning rate after the warm-up: constant, or half a cosine that ends near zero."""
    warmup: int = 0
    """Steps over which the learning rate rises from zero."""
    weight_decay: float = 1e-2
    """Of φ, per unit of learning rate."""
    clip: float | None = 1.0
    """Largest norm of the gradient; None for no limit."""
    times: TimesKind = "as-trained"
    """Noise levels: drawn as in the model's own training; or, of two such draws, the one with less or more noise."""
    min_snr: float | None = None
    """γ of Min-SNR weighting, e.g. 5; None for none."""
    noise_offset: float = 0.0
    """Share of noise that is the same all over a channel of a picture, e.g. 0.05."""
    checkpointing: bool = False
    """Compute the denoiser's activations again for the gradient and do not keep them: less memory, more time."""
    captions: tuple[str, ...] = ()
    """What all pictures are called, in turn, in place of their own prompts. {} is what the adaptation calls its
    subject, if it has a word for it."""
    mirror: bool = False
    """Learn from the mirror images of the pictures too."""
    balance: bool = False
    """Show every prompt equally often, however many pictures it has."""

    def __post_init__(self) -> None:
        at_least(self, 0, "lr", "steps", "weight_decay", "warmup", "noise_offset")
        at_least(self, 1, "batch", "accumulate")
        one_of(self, "optimizer", get_args(OptimizerKind))
        one_of(self, "schedule", get_args(ScheduleKind))
        if self.optimizer == "sgd":
            unused(self, "weight_decay", without="with SGD")
        one_of(self, "times", get_args(TimesKind))
        if self.clip is not None:
            positive(self, "clip")
        if self.min_snr is not None:
            positive(self, "min_snr")
        if self.subject is None and any(NAME_HERE in caption for caption in self.captions):
            raise ImmunityError(
                expected=f"captions without {NAME_HERE}, as {type(self).__name__} has no word for its subject",
                got=next(caption for caption in self.captions if NAME_HERE in caption),
                remedy="the word itself",
            )

    @property
    def subject(self) -> str | None:
        """What prompts call what is learned, e.g. "sks church"; None where that is left to the pictures' prompts."""
        return None

    def asking(self, prompt: str, *, name: str) -> str:
        """A prompt that names the concept by its name, as who has run this adaptation asks for what was learned."""
        if self.subject is None:
            return prompt
        subject = self.subject
        return naming(name).sub(lambda found: f"a {subject}" if found["article"] else subject, prompt)

    def trains_text(self, model: DiffusionModel) -> bool:  # noqa: ARG002 (for those to whom it matters)
        """Whether φ has a part in how prompts are encoded, so that they must be encoded at each step."""
        return False

    @abstractmethod
    def attach(self, model: DiffusionModel, *, seed: int) -> AbstractContextManager[Attached]:
        """φ, newly initialised, as part of the model for the length of a block; after it the model is as before."""

    def prepare(
        self,
        model: DiffusionModel,
        examples: Examples,
        *,
        changing: Collection[str] = (),
        journal: Journal | None = None,  # noqa: ARG002 (for those that make something)
    ) -> Batches:
        """The pictures as the attacker uses them, encoded. Nothing is attached to the model when this is called.

        `changing` names the parameters of θ that change meanwhile: prompts are encoded once unless that would be wrong.
        `journal`: how what takes long to make is watched and kept, so that it is made once.
        """
        check_trainable(model)
        if not self.captions:
            examples = dataclasses.replace(examples, prompts=self.called(examples))
        return Batches.encode(
            model,
            examples,
            captions=self.named(self.captions),
            mirror=self.mirror,
            balance=self.balance,
            cache_prompts=not (self.trains_text(model) or changes_text(changing)),
        )

    def called(self, examples: Examples) -> tuple[str, ...]:
        """What it learns that the pictures are called, and so how to ask for them: its captions, or their own prompts
        in its own words."""
        if self.captions:
            return self.named(self.captions)
        prompts = examples.prompts
        if examples.name:
            prompts = tuple(self.asking(prompt, name=examples.name) for prompt in prompts)
        return self.named(prompts)

    def named(self, prompts: tuple[str, ...]) -> tuple[str, ...]:
        """The prompts, with the adaptation's name for its subject where it goes."""
        if self.subject is None:
            return prompts
        return tuple(prompt.replace(NAME_HERE, self.subject) for prompt in prompts)

    def draw(self, batches: Batches, number: int, *, seed: int, generator: torch.Generator) -> Batch:
        """The attacker's batch of that number."""
        return batches.draw(self.batch, number, seed=seed, generator=generator)

    def loss(self, model: DiffusionModel, batch: Batch, generator: torch.Generator) -> Tensor:
        """What φ minimises; everything random in it comes from the generator."""
        noising = TrainingNoise(times=self.times, offset=self.noise_offset, min_snr=self.min_snr)
        # For this forward pass alone: what is computed again must find φ as it was, which another's block might not.
        with _recomputing(model) if self.checkpointing else nullcontext():
            return denoising_loss(model, batch, generator, noising)

    def losses(
        self, model: DiffusionModel, batches: Batches, step: int, *, seed: int, generator: torch.Generator
    ) -> Iterator[Tensor]:
        """Of the parts of the attacker's step, each made when it is asked for."""
        for part in range(self.accumulate):
            batch = self.draw(batches, step * self.accumulate + part, seed=seed, generator=generator)
            yield self.loss(model, batch, generator)

    def descent(self, steps: int) -> AnyOptimizer:
        """What takes `steps` steps of φ."""
        schedule = Schedule(kind=self.schedule, warmup=self.warmup, steps=steps)
        return optimizer_of(self.optimizer, lr=self.lr, weight_decay=self.weight_decay, schedule=schedule)


@contextmanager
def _recomputing(model: DiffusionModel) -> Iterator[None]:
    denoiser: Any = model.components[model.denoiser]
    denoiser.enable_gradient_checkpointing()
    try:
        yield
    finally:
        denoiser.disable_gradient_checkpointing()


@dataclass(frozen=True, eq=False, kw_only=True)
class AttackResult:
    """What an attack leaves behind: a change of θ, new words, or both."""

    delta: Delta | None
    """φ merged into θ; None where φ is no change of θ, as a new token is."""
    tokens: tuple[LearnedToken, ...]
    """The words that were learned."""
    files: Mapping[str, Mapping[str, Tensor]]
    """φ as the files in which such adapters circulate, by their usual names; none where whole models do."""
    provenance: Provenance
    losses: tuple[float, ...]
    """Training loss of each step."""
    seconds: float
    """Wall time of the training, callbacks included."""

    @property
    def hash(self) -> str:
        """SHA-256 of φ."""
        if self.files:
            return hash_tensors({name: value for file in self.files.values() for name, value in file.items()})
        assert self.delta is not None
        return self.delta.hash

    @contextmanager
    def applied(self, model: DiffusionModel) -> Iterator[None]:
        """In this block the model is what the attacker has."""
        with ExitStack() as stack:
            if self.delta is not None:
                stack.enter_context(self.delta.applied(model))
            for token in self.tokens:
                stack.enter_context(token.known_to(model))
            yield

    def save(self, folder: str | Path, *, force: bool = False) -> None:
        """Writes all of it into a folder of its own: the delta, the adapter's usual files, and the losses."""
        with replacing(folder, force=force) as made:
            made.mkdir()
            self.write(made)

    def write(self, folder: Path) -> None:
        """The same into a folder that is there and has more in it."""
        if self.delta is not None:
            self.delta.save(folder / DELTA_FILE)
        self.write_files(folder)
        losses = {"losses": self.losses, "seconds": round(self.seconds, 3)}
        (folder / LOSSES_FILE).write_text(json.dumps(losses), encoding="utf-8")

    def save_files(self, folder: str | Path, *, force: bool = False) -> None:
        """Writes the adapter in its usual files, e.g. a LoRA for `pipe.load_lora_weights`, into a folder of its own."""
        with replacing(folder, force=force) as made:
            made.mkdir()
            self.write_files(made)

    def write_files(self, folder: Path) -> None:
        """The same into a folder that is there and has more in it."""
        header = {ADAPTER_KEY: self.provenance.to_json()}
        for name, tensors in self.files.items():
            save_tensors(folder / name, tensors, header)


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
    batches = adaptation.prepare(model, examples, journal=journal)
    order = derived_seed(seed, "pictures")
    started = time.monotonic()

    with adaptation.attach(model, seed=derived_seed(seed, "φ")) as phi:

        def losses(step: int, generator: torch.Generator) -> Iterator[Tensor]:
            return adaptation.losses(model, batches, step, seed=order, generator=generator)

        def on_step(done: int, result: StepResult) -> None:
            if journal.on_step is not None:
                journal.on_step(done, result)
            if callback is not None and done in at:
                callback(done, phi)

        checkpoint = journal.checkpoint(provenance)
        if callback is not None and 0 in at and (checkpoint is None or not checkpoint.path.exists()):
            callback(0, phi)
        results = fit(
            losses,
            phi.parameters(),
            steps=adaptation.steps,
            seed=seed,
            optimizer=adaptation.descent(adaptation.steps),
            clip=adaptation.clip,
            lr_factors=phi.lr_factors(),
            checkpoint=checkpoint,
            label=journal.label,
            on_step=on_step,
        )
        merged = phi.merged()
        return AttackResult(
            delta=Delta.capture(merged, provenance) if merged else None,
            tokens=phi.tokens(),
            files={
                name: {key: value.detach().cpu() for key, value in file.items()} for name, file in phi.files().items()
            },
            provenance=provenance,
            losses=tuple(result.loss for result in results),
            seconds=time.monotonic() - started,
        )


def described(adaptation: "Adaptation | Mixture") -> dict[str, object]:
    """For the provenance of what was made with it in mind."""
    if isinstance(adaptation, Adaptation):
        return {"method": type(adaptation).__name__, **dataclasses.asdict(adaptation)}
    return adaptation.described()
