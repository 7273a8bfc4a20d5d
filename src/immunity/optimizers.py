"""The optimizers that people fine-tune with, and how the learning rate goes over a run. PyTorch's own, as settings."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from immunity.checks import at_least, one_of
from immunity.errors import ImmunityError

ScheduleKind = Literal["constant", "cosine"]
OptimizerKind = Literal["adamw", "sgd", "adafactor"]

Parameters = Sequence[Tensor] | Sequence[Mapping[str, Any]]
"""Tensors, or PyTorch's groups of them with settings of their own."""


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """The learning rate over a run, as a share of its highest value."""

    kind: ScheduleKind = "constant"
    """After the warm-up: constant, or half a cosine that ends near zero."""
    warmup: int = 0
    """Steps over which it rises from zero in a straight line."""
    steps: int = 0
    """Of the whole run; matters to the cosine alone."""

    def __post_init__(self) -> None:
        one_of(self, "kind", get_args(ScheduleKind))
        at_least(self, 0, "warmup", "steps")

    def factor(self, step: int) -> float:
        """In step `step`, from 0. No step has a rate of zero, as it would teach nothing."""
        if step < self.warmup:
            return (step + 1) / (self.warmup + 1)
        if self.kind == "constant":
            return 1.0
        progress = (step - self.warmup) / max(1, self.steps - self.warmup)
        return 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))


_CONSTANT = Schedule()


@dataclass(frozen=True, kw_only=True)
class AdamW:
    """Adam with decoupled weight decay (Loshchilov & Hutter, 2019)."""

    lr: float = 1e-4
    """Learning rate, the highest where it varies."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Decay of the running means of the gradient and of its square."""
    weight_decay: float = 1e-2
    """Per unit of learning rate."""
    schedule: Schedule = _CONSTANT

    def __post_init__(self) -> None:
        _check_lr(self.lr)

    def build(self, parameters: Parameters, *, maximize: bool) -> torch.optim.Optimizer:
        return torch.optim.AdamW(
            parameters,  # type: ignore[arg-type]
            lr=self.lr,
            betas=self.betas,
            weight_decay=self.weight_decay,
            maximize=maximize,
            fused=True,  # one pass over each tensor and not ten, on processors as on GPUs
        )


@dataclass(frozen=True, kw_only=True)
class Sgd:
    """Plain stochastic gradient descent."""

    lr: float = 1e-4
    """Learning rate, the highest where it varies."""
    momentum: float = 0.0
    """Share of the last step that is taken again."""
    schedule: Schedule = _CONSTANT

    def __post_init__(self) -> None:
        _check_lr(self.lr)

    def build(self, parameters: Parameters, *, maximize: bool) -> torch.optim.Optimizer:
        return torch.optim.SGD(
            parameters,  # type: ignore[arg-type]
            lr=self.lr,
            momentum=self.momentum,
            maximize=maximize,
        )


@dataclass(frozen=True, kw_only=True)
class Adafactor:
    """Adafactor (Shazeer & Stern, 2018, arXiv 1804.04235) with steps of the size that the rate says.

    The paper makes steps relative to the size of a parameter, which stops those that begin at zero, as most of φ does.
    Fine-tuners turn that off ("scale_parameter=False"). PyTorch's has no such switch, but a floor for that size, and a
    floor of one comes to the same unless a parameter's root mean square is above one, as DoRA's magnitudes may be.
    """

    lr: float = 1e-4
    """Learning rate, the highest where it varies."""
    weight_decay: float = 0.0
    """Per unit of learning rate."""
    schedule: Schedule = _CONSTANT

    def __post_init__(self) -> None:
        _check_lr(self.lr)

    def build(self, parameters: Parameters, *, maximize: bool) -> torch.optim.Optimizer:
        return torch.optim.Adafactor(
            parameters,  # type: ignore[arg-type]
            lr=self.lr,
            eps=(1e-15, 1.0),  # the first is squared; its default would drown φ's gradients, which are about 1e-5
            weight_decay=self.weight_decay,
            maximize=maximize,
        )


AnyOptimizer = AdamW | Sgd | Adafactor


def optimizer_of(kind: OptimizerKind, *, lr: float, weight_decay: float, schedule: Schedule) -> AnyOptimizer:
    """The one of that name; SGD has no weight decay."""
    if kind == "sgd":
        return Sgd(lr=lr, schedule=schedule)
    if kind == "adafactor":
        return Adafactor(lr=lr, weight_decay=weight_decay, schedule=schedule)
    return AdamW(lr=lr, weight_decay=weight_decay, schedule=schedule)


def _check_lr(lr: float) -> None:
    if not (math.isfinite(lr) and lr >= 0):
        raise ImmunityError(expected="a learning rate that is finite and not negative", got=str(lr), remedy="1e-4")
