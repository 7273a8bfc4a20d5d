"""Who teaches a concept and who judges it: what a study needs to know of concepts, and not of methods.

A `Bench` is the choice, cheap to make and to write down. Opened it becomes a `Panel`, which has the judges
in memory and answers questions about one concept (or benign subject) at a time.
"""

import dataclasses
import itertools
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

from torch import Tensor

from immunity.concepts import Concept, Examples
from immunity.records import MetricSpec

T = TypeVar("T")

Purpose = Literal["attack", "defence", "reference"]
"""What pictures of a concept are for: the attacker's, the defender's, or those that results are compared with."""

Scores = Mapping[str, tuple[float, ...]]
"""For each metric, one score a picture."""


@dataclass(frozen=True)
class ToDraw:
    """Pictures that the base model is to draw, one for each prompt: how the paper gets those of a known concept."""

    prompts: tuple[str, ...]
    captions: tuple[str, ...] | None = None
    """What the pictures are called when they are learned from, if not by the prompts that made them."""


class Panel(ABC):
    """A bench with its judges in memory."""

    metrics: tuple[MetricSpec, ...]

    @abstractmethod
    def concept(self, name: str) -> Concept:
        """The concept with every prompt that it is asked for by, as an eraser needs it.

        Raises `ImmunityError` for a name that the bench does not know or that its judges cannot judge.
        """

    @abstractmethod
    def pictures(self, name: str, purpose: Purpose, *, seed: int, alone: bool) -> Examples | ToDraw:
        """The pictures for a purpose. For one `seed`, attack and defence have none in common.

        `alone`: there is no defence against this subject, so the attack need not share with one.
        """

    @abstractmethod
    def origin(self, name: str, purpose: Purpose, *, alone: bool = False) -> str:
        """Where the `pictures` for a purpose come from, in words: the same words for the same source."""

    @abstractmethod
    def questions(self, name: str, count: int, *, attacked: bool = False) -> tuple[str, ...]:
        """The prompts by which a model is asked for the concept; an `attacked` one, by the attacker's words for it."""

    @abstractmethod
    def scores(self, name: str, images: Tensor, references: Tensor) -> Scores:
        """Of pictures that were asked for with `questions`, by every one of `metrics`."""

    @abstractmethod
    def others(self, name: str) -> Mapping[str, tuple[str, ...]]:
        """The prompts for each other concept that is watched for side effects; empty if nobody can judge them."""

    @abstractmethod
    def recognised(self, name: str, images: Tensor) -> tuple[float, ...]:
        """1 or 0 a picture: whether a judge sees what was asked for, of a name among `others`."""


@dataclass(frozen=True, kw_only=True)
class Bench(ABC):
    """The choice of a base model, of who teaches its concepts, and of who judges them."""

    @property
    @abstractmethod
    def source(self) -> str:
        """The base model, as `load` takes it."""

    @abstractmethod
    def open(self, *, device: str, size: int) -> Panel:
        """Loads the judges, and the user's pictures at `size` pixels: those of the model."""

    def described(self) -> dict[str, object]:
        """The choice as plain values for a study's plan, without the paths of this machine."""
        return {"bench": type(self).__name__, **dataclasses.asdict(self)}


def spread_over(things: Sequence[T], count: int) -> tuple[T, ...]:
    """At most `count` of the things at even distances: a choice that nobody made to please."""
    count = min(count, len(things))
    return tuple(things[i * len(things) // count] for i in range(count))


def taking_turns(things: Sequence[T], count: int) -> tuple[T, ...]:
    """`count` in all, from the first to the last and again."""
    return tuple(itertools.islice(itertools.cycle(things), count))


def floats(scores: Tensor) -> tuple[float, ...]:
    return tuple(scores.double().tolist())
