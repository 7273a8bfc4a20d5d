"""What poisons have in common: a budget for each colour, and ascent of a loss within it."""

import dataclasses
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from immunity import processes
from immunity.checks import at_least, positive
from immunity.concepts import Examples
from immunity.deltas import Provenance
from immunity.errors import ImmunityError
from immunity.models import DiffusionModel
from immunity.optimize import Journal, check_trainable
from immunity.pictures import in_eight_bits
from immunity.stepping import DivergedError, StepResult

Loss = Callable[[Tensor, Tensor], Tensor]
"""Of some of the pictures [n, 3, h, w] in [0, 1], and their numbers [n]: their mean, differentiable."""


@dataclass(frozen=True, kw_only=True)
class Poison(ABC):
    """A method that changes pictures so that an adaptation learns less from them."""

    budget: int = 8
    """Largest change of a colour, of 255."""
    step_size: float = 1.0
    """Change of every colour in a step, of 255."""
    batch: int = 1
    """Pictures at a time, which bounds the memory. Another number draws other times and noise."""

    def __post_init__(self) -> None:
        at_least(self, 0, "budget")
        positive(self, "step_size")
        at_least(self, 1, "batch")

    @abstractmethod
    def __call__(
        self, model: DiffusionModel, examples: Examples, *, seed: int, journal: Journal | None = None
    ) -> Examples:
        """The pictures, poisoned, with eight bits a colour as files have them; `model` is left as it was found."""

    def described(self) -> dict[str, object]:
        """As plain values, for the provenance of what was made with it."""
        return {"method": type(self).__name__, **dataclasses.asdict(self)}

    def _begin(self, model: DiffusionModel, examples: Examples) -> "Perturbation":
        check_trainable(model)
        if processes.count() > 1:
            raise ImmunityError(expected="one process", got=str(processes.count()), remedy="no launcher")
        if not len(examples):
            raise ImmunityError(expected="at least one picture", got="none", remedy="a folder that has pictures")
        return Perturbation(
            in_eight_bits(examples.images), budget=self.budget, step_size=self.step_size, batch=self.batch
        )


class Perturbation:
    """Pictures on their way up a loss, each colour within the budget of what it was.

    Projected gradient ascent on the sign of the gradient (Madry et al., ICLR 2018, arXiv 1706.06083), from the pictures
    themselves.
    """

    def __init__(self, images: Tensor, *, budget: int, step_size: float, batch: int) -> None:
        """`budget` and `step_size` are of 255."""
        self._lowest = (images - budget / 255).clamp(0, 1)
        self._highest = (images + budget / 255).clamp(0, 1)
        self._step_size, self._batch = step_size / 255, batch
        self.images = images.clone()
        """As they are now."""

    def ascend(self, loss: Loss) -> StepResult:
        """One step of each picture."""
        total, squares = 0.0, 0.0
        moved = []
        for numbers in torch.arange(len(self.images)).split(self._batch):
            images = self.images[numbers].requires_grad_()
            value = loss(images, numbers)
            (gradient,) = torch.autograd.grad(value, images)
            total += value.item() * len(numbers)
            squares += gradient.square().sum().item()
            moved.append(images.detach() + self._step_size * gradient.sign())
        result = StepResult(total / len(self.images), math.sqrt(squares))
        if not (math.isfinite(result.loss) and math.isfinite(result.gradient_norm)):
            raise DivergedError(result, remedy="--dtype float32, or another model: this one does not see the picture")
        self.images = torch.cat(moved).clamp(self._lowest, self._highest)
        return result

    def of(self, examples: Examples) -> Examples:
        """The examples with these pictures in place of theirs, in eight bits."""
        return dataclasses.replace(examples, images=in_eight_bits(self.images))

    def state_dict(self) -> dict[str, Tensor]:
        return {"images": self.images}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        self.images = state["images"].clone()


@dataclass(frozen=True, kw_only=True)
class Ascent(Poison, ABC):
    """A poison whose pictures climb one loss of a model that does not change."""

    steps: int = 100
    """Steps of each picture."""

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self, 0, "steps")

    @abstractmethod
    def loss(self, model: DiffusionModel, examples: Examples) -> Callable[[Tensor, Tensor, torch.Generator], Tensor]:
        """What the pictures climb: see `Loss`. Everything random in it comes from the generator."""

    def __call__(
        self, model: DiffusionModel, examples: Examples, *, seed: int, journal: Journal | None = None
    ) -> Examples:
        journal = journal or Journal()
        pictures = self._begin(model, examples)
        provenance = Provenance.of(self, model, seed=seed, inputs={"examples": examples.digest()})
        loss = self.loss(model, examples)

        def step(_: int, generator: torch.Generator) -> StepResult:
            return pictures.ascend(lambda images, numbers: loss(images, numbers, generator))

        journal.loop({"pictures": pictures}, provenance, steps=self.steps, seed=seed).run(step)
        return pictures.of(examples)
