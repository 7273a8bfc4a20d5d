"""One step of one level: gradients of its own parameters alone, a clip, an optimizer, in whatever precision they are.

`optimize.py` makes loops of such steps.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from immunity import processes
from immunity.errors import ImmunityError
from immunity.models.sharding import is_shard
from immunity.optimizers import AnyOptimizer, Parameters


class DivergedError(ImmunityError):
    """The loss or its gradient became infinite or NaN, after `step` steps where that is known."""

    def __init__(
        self,
        result: "StepResult",
        step: int | None = None,
        *,
        remedy: str = "a lower learning rate, or a gradient clip",
    ) -> None:
        self.result, self.step = result, step
        super().__init__(
            expected="a finite loss and gradient",
            got=f"loss {result.loss:.3g} and gradient norm {result.gradient_norm:.3g}"
            + ("" if step is None else f" after {step} steps"),
            remedy=remedy,
        )


class StepResult(NamedTuple):
    """What one step saw: the loss before it, and the norm of the gradient before clipping."""

    loss: float
    gradient_norm: float


class Stepper:
    """One level of an optimization: parameters, an optimizer over them, a clip.

    Gradients are taken with respect to these parameters alone, so two steppers over disjoint parameters can use losses
    through both, and nothing gathers in the `.grad` of anything else. Weights in half precision are updated through a
    float32 copy, as small steps would round to nothing.
    """

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        optimizer: AnyOptimizer,
        *,
        clip: float | None = None,
        maximize: bool = False,
        lr_factors: Sequence[float] | None = None,
    ) -> None:
        """`lr_factors`: of the learning rate, for each parameter."""
        self.parameters = list(parameters)
        if not self.parameters:
            raise ImmunityError(expected="parameters to train", got="none", remedy="another group of parameters")
        if any(map(is_shard, self.parameters)):
            raise ImmunityError(
                expected="to train what every process has whole",
                got="weights that are split over the processes",
                remedy="--whole with a group of parameters that holds them (denoiser holds all)",
            )
        if clip is not None and not clip > 0:
            raise ImmunityError(expected="a gradient clip above zero", got=str(clip), remedy="1.0, or None for no clip")
        self._settings, self._clip, self._maximize = optimizer, clip, maximize
        self._lr_factors = None if lr_factors is None or set(lr_factors) == {1.0} else list(lr_factors)
        self.reset()

    def reset(self) -> None:
        """Forgets the optimizer's moments, as after the parameters were initialised anew."""
        self._taken = 0
        self._masters = [
            value.detach().float() if value.dtype in (torch.float16, torch.bfloat16) else value
            for value in self.parameters
        ]
        self._optimizer = self._settings.build(self._groups(), maximize=self._maximize)
        self._rates: list[float] = [group["lr"] for group in self._optimizer.param_groups]

    def _groups(self) -> Parameters:
        if self._lr_factors is None:
            return self._masters
        return [
            {
                "params": [
                    master for master, own in zip(self._masters, self._lr_factors, strict=True) if own == factor
                ],
                "lr": self._settings.lr * factor,
            }
            for factor in dict.fromkeys(self._lr_factors)
        ]

    def step(self, loss: Tensor | Iterable[Tensor], *, lr_factor: float = 1.0) -> StepResult:
        """One step down `loss` (up, with `maximize`). The parameters must be `thawed`.

        Several losses are averaged; each is computed only after the gradient of the one before has been taken.
        `lr_factor` is of the learning rate, for this step. Raises `DivergedError`, and leaves the parameters as they
        were, if the loss or its gradient is not finite.
        """
        mean, gradients = self._mean_gradients([loss] if isinstance(loss, Tensor) else loss)
        norm = torch.nn.utils.get_total_norm([gradient for gradient in gradients if gradient is not None])
        result = StepResult(mean, float(norm))
        if not (math.isfinite(result.loss) and math.isfinite(result.gradient_norm)):
            raise DivergedError(result)
        # Out of place, as two of these gradients may be one tensor.
        factor = 1.0 if self._clip is None else (self._clip / (norm + 1e-6)).clamp(max=1.0)
        for i, master in enumerate(self._masters):
            gradient, gradients[i] = gradients[i], None  # the copy takes its place
            master.grad = None if gradient is None else _laid_out(gradient, master).mul_(factor)
        lr_factor *= self._settings.schedule.factor(self._taken)
        for group, rate in zip(self._optimizer.param_groups, self._rates, strict=True):
            group["lr"] = rate * lr_factor
        self._optimizer.step()
        self._taken += 1
        with torch.no_grad():
            for value, master in zip(self.parameters, self._masters, strict=True):
                master.grad = None
                if master is not value:
                    value.copy_(master)
        return result

    def _mean_gradients(self, losses: Iterable[Tensor]) -> tuple[float, list[Tensor | None]]:
        values: list[Tensor] = []
        total: list[Tensor | None] = [None] * len(self.parameters)
        for loss in losses:
            if loss.requires_grad:
                gradients = torch.autograd.grad(loss, self.parameters, allow_unused=True)
                total = [_sum(*pair) for pair in zip(total, gradients, strict=True)]
            values.append(loss.detach().float())
        if processes.count() > 1:  # once a step, however many parts it has
            total = self._averaged(values, total)
        if all(gradient is None for gradient in total):
            raise ImmunityError(
                expected="a loss that depends on the parameters in training",
                got="one that none of them can change",
                remedy="another group of parameters, or prompts that have the adaptation's own token in them",
            )
        mean = sum(value.item() for value in values) / len(
            values
        )  # asked for last: the device is not waited for before
        return mean, total if len(values) == 1 else [None if each is None else each / len(values) for each in total]

    def _averaged(self, losses: Sequence[Tensor], gradients: Sequence[Tensor | None]) -> list[Tensor | None]:
        """Over the processes, some of whose rows may not depend on a parameter on which others' do; the losses in
        place."""
        depends = torch.tensor([float(each is not None) for each in gradients], device=losses[0].device)
        # Copies, as two of these gradients may be one tensor; in one order of memory, which a sum takes for granted.
        filled = [
            torch.zeros(value.shape, device=value.device)
            if each is None
            else torch.empty(value.shape, device=value.device).copy_(each)
            for value, each in zip(self.parameters, gradients, strict=True)
        ]
        processes.average([*losses, depends, *filled])
        return [each if somewhere else None for each, somewhere in zip(filled, depends.tolist(), strict=True)]

    def state_dict(self) -> dict[str, Tensor]:
        """The parameters' values and the optimizer's moments, as tensors only, beside the model's device."""
        state = {"taken": torch.tensor(self._taken)}
        state |= {f"value.{i}": _kept(master) for i, master in enumerate(self._masters)}
        for i, moments in self._optimizer.state_dict()["state"].items():
            for name, value in moments.items():
                if value is not None:
                    state[f"moment.{i}.{name}"] = _kept(torch.as_tensor(value))
        return state

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Puts back what `state_dict` gave, bit for bit."""
        moments: dict[int, dict[str, Tensor]] = {}
        for key, value in state.items():
            if key.startswith("moment."):
                _, index, *name = key.split(".")
                moments.setdefault(int(index), {})[name[0]] = value.clone()
        self.reset()
        ordered = [master for group in self._optimizer.param_groups for master in group["params"]]
        for i, own in moments.items():
            like = ordered[i]
            own |= {name: _laid_out(value, like) for name, value in own.items() if value.shape == like.shape}
        self._taken = int(state["taken"])
        with torch.no_grad():
            for i, (value, master) in enumerate(zip(self.parameters, self._masters, strict=True)):
                master.copy_(state[f"value.{i}"])
                if master is not value:
                    value.copy_(master)
        self._optimizer.load_state_dict(
            {"state": moments, "param_groups": self._optimizer.state_dict()["param_groups"]}
        )


def _laid_out(value: Tensor, like: Tensor) -> Tensor:
    """A copy of the values, in `like`'s type, device and order in memory, which fused optimizers take for granted.

    Convolutions give gradients in another order than their weights' where their input is in that order.
    """
    return torch.empty_like(like).copy_(value)


def _kept(value: Tensor) -> Tensor:
    """A copy in the main memory: on the device there may be no room for two."""
    return value.detach().to("cpu", copy=True)


def _sum(one: Tensor | None, other: Tensor | None) -> Tensor | None:
    if one is None or other is None:
        return one if other is None else other
    return one.float() + other.float() if one.dtype.itemsize < 4 else one + other  # small sums vanish in half precision
