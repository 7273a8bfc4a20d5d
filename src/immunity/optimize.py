"""The one training loop: seeds, progress and exact resume.

`fit` minimises one loss over one set of parameters. What alternates two levels (IMMA) uses its pieces: a `Stepper` for
each level and a `Loop` over both.
"""

import dataclasses
import hashlib
import json
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn

from immunity import processes
from immunity.atomic import load_tensors, save_tensors
from immunity.deltas import Provenance
from immunity.errors import ImmunityError
from immunity.models.base import DiffusionModel, thawed
from immunity.optimizers import AnyOptimizer
from immunity.stepping import DivergedError, Stepper, StepResult

_NOTICED = 1.0
"""Seconds that a checkpoint may take to write as often as it is due; one that takes longer waits its turn."""
_RESTS = 20
"""As many times what it took to write the last one."""


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """Where a loop keeps its state, so that a run that is killed goes on as if nothing had happened."""

    path: Path
    """A .safetensors file."""
    identity: str
    """What the run is, e.g. its provenance as JSON without the time: a file of another run is refused."""
    every: int = 50
    """Steps between two savings."""

    def write(self, tensors: Mapping[str, Tensor]) -> None:
        save_tensors(self.path, tensors, {"identity": self.identity}, force=True)

    def read(self) -> dict[str, Tensor] | None:
        """The state that was saved, or None if there is none yet."""
        if not self.path.exists():
            return None
        remedy = f"removing {self.path} to begin anew"
        state, header = load_tensors(self.path, expected="a checkpoint that can be read", remedy=remedy)
        if header.get("identity") != self.identity:
            raise ImmunityError(
                expected="the checkpoint of this run", got=f"{self.path}, of another run", remedy=remedy
            )
        return state


@dataclass(frozen=True, kw_only=True)
class Journal:
    """How a long run is watched and kept: what the caller of a method decides, and no hyper-parameter."""

    folder: Path | None = None
    """Where the run keeps its checkpoint; None for none. One folder can hold those of several methods."""
    every: int = 50
    """Steps between two checkpoints."""
    label: str = ""
    """Of the progress bar on stderr; no bar without it."""
    on_step: Callable[[int, StepResult], None] | None = None
    """Called with the number of steps done and what the last one saw."""

    def __post_init__(self) -> None:
        if self.every < 1:
            raise ImmunityError(expected="a saving every one or more steps", got=str(self.every), remedy="50")

    def checkpoint(self, provenance: Provenance, *, multiple_of: int = 1) -> Checkpoint | None:
        """For the run that `provenance` describes. It saves only after a whole multiple of `multiple_of` steps."""
        if self.folder is None:
            return None
        what = {name: value for name, value in dataclasses.asdict(provenance).items() if name != "created"}
        path = self.folder / f"{provenance.method}.safetensors"
        return Checkpoint(path=path, identity=identity(what), every=math.ceil(self.every / multiple_of) * multiple_of)

    def loop(
        self, levels: "Mapping[str, Kept]", provenance: Provenance, *, steps: int, seed: int, of: int = 1
    ) -> "Loop":
        """One that is watched and kept like this. `of`: steps of training in each of its steps."""
        often = dataclasses.replace(self, every=max(1, self.every // of))
        return Loop(
            levels,
            steps=steps,
            seed=seed,
            checkpoint=often.checkpoint(provenance),
            label=self.label,
            on_step=self.on_step,
        )


class Kept(Protocol):
    """What a loop saves and puts back."""

    def state_dict(self) -> dict[str, Tensor]: ...

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None: ...


class Loop:
    """Steps of one or more levels, with one generator for all that is random in them."""

    def __init__(
        self,
        steppers: Mapping[str, Kept],
        *,
        steps: int,
        seed: int,
        checkpoint: Checkpoint | None = None,
        label: str = "",
        on_step: Callable[[int, StepResult], None] | None = None,
    ) -> None:
        """`on_step` is called with the number of steps done, 1 to `steps`. With a `label`, progress shows on stderr."""
        if steps < 0:
            raise ImmunityError(expected="a number of steps", got=str(steps), remedy="1000")
        self.steppers, self.steps = dict(steppers), steps
        self.generator = torch.Generator().manual_seed(seed)
        self.done = 0
        self.results: list[StepResult] = []
        self._checkpoint, self._label, self._on_step = checkpoint, label, on_step
        self._kept_at, self._keeping = 0.0, 0.0

    def run(self, body: Callable[[int, torch.Generator], StepResult]) -> list[StepResult]:
        """Calls `body(step, generator)` for each step that is not yet done; gives the results of all steps.

        The body must draw everything random from the generator, and keep its state in the steppers' parameters: then a
        run that is resumed from its checkpoint equals an uninterrupted one bit for bit.
        """
        from tqdm import tqdm

        if self._checkpoint is not None and (state := self._checkpoint.read()) is not None:
            self.load_state_dict(state)
        with tqdm(
            total=self.steps,
            initial=self.done,
            desc=self._label,
            disable=not self._label or not processes.is_first(),
            delay=3,
            unit="step",
            leave=None,  # under another bar it vanishes when it is full
        ) as bar:
            while self.done < self.steps:
                try:
                    result = body(self.done, self.generator)
                except DivergedError as error:
                    raise DivergedError(error.result, self.done, remedy=error.remedy) from error
                self.results.append(result)
                self.done += 1
                bar.set_postfix(loss=f"{result.loss:.4g}", refresh=False)
                bar.update()
                if self._on_step is not None:
                    self._on_step(self.done, result)
                self._keep()
        return self.results

    def _keep(self) -> None:
        """Writes the checkpoint where it is due: a large one more seldom, so that it takes a small share of the run."""
        if self._checkpoint is None or not processes.is_first():
            return
        last = self.done == self.steps
        rested = self._keeping <= _NOTICED or time.monotonic() - self._kept_at >= _RESTS * self._keeping
        if last or (self.done % self._checkpoint.every == 0 and rested):
            started = time.monotonic()
            self._checkpoint.write(self.state_dict())
            self._kept_at = time.monotonic()
            self._keeping = self._kept_at - started

    def state_dict(self) -> dict[str, Tensor]:
        state = {
            "generator": self.generator.get_state(),
            "results": torch.tensor(self.results, dtype=torch.float64).reshape(-1, 2),
        }
        for name, stepper in self.steppers.items():
            state |= {f"{name}/{key}": value for key, value in stepper.state_dict().items()}
        return state

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        self.generator.set_state(state["generator"])
        self.results = [StepResult(*row) for row in state["results"].tolist()]
        self.done = len(self.results)
        for name, stepper in self.steppers.items():
            own = {key.removeprefix(f"{name}/"): value for key, value in state.items() if key.startswith(f"{name}/")}
            stepper.load_state_dict(own)


def fit(
    loss: Callable[[int, torch.Generator], Tensor | Iterable[Tensor]],
    parameters: Iterable[nn.Parameter],
    *,
    steps: int,
    seed: int,
    optimizer: AnyOptimizer,
    clip: float | None = 1.0,
    maximize: bool = False,
    lr_factors: Sequence[float] | None = None,
    checkpoint: Checkpoint | None = None,
    label: str = "",
    on_step: Callable[[int, StepResult], None] | None = None,
) -> list[StepResult]:
    """Minimises (or maximises) `loss(step, generator)` over `parameters`, in place; gives the result of each step.

    The parameters are thawed for the length of the fit. Everything random in the loss comes from the generator. Of
    several losses of a step it is the mean; see `Stepper.step`, also for `lr_factors`.
    """
    parameters = list(parameters)
    stepper = Stepper(parameters, optimizer, clip=clip, maximize=maximize, lr_factors=lr_factors)
    loop = Loop({"fit": stepper}, steps=steps, seed=seed, checkpoint=checkpoint, label=label, on_step=on_step)

    def body(step: int, generator: torch.Generator) -> StepResult:
        return stepper.step(loss(step, generator))

    with thawed(parameters):
        return loop.run(body)


def check_trainable(model: DiffusionModel) -> None:
    """Raises `ImmunityError` for a model in float16: what goes back through it vanishes, unless losses are scaled."""
    if model.dtype == torch.float16:
        raise ImmunityError(
            expected="a model in bfloat16 or float32 to train",
            got="float16, in which small gradients vanish",
            remedy="--dtype bfloat16",
        )


def identity(values: Mapping[str, object]) -> str:
    """What a run is, as one canonical line, for `Checkpoint`."""
    return json.dumps(values, sort_keys=True)


def derived_seed(seed: int, *words: str | int) -> int:
    """A seed for one use of randomness, so that uses do not share numbers nor shift when another is added."""
    digest = hashlib.sha256(json.dumps([seed, *words]).encode()).digest()
    return int.from_bytes(digest[:8]) >> 1  # a generator takes 63 bits
