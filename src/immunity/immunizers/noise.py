"""The control for the size of a change: a random one of the same norm."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from immunity.adaptations import Foreseen
from immunity.checks import at_least
from immunity.concepts import Examples
from immunity.deltas import Delta, Provenance
from immunity.models import DiffusionModel
from immunity.optimize import Journal


@dataclass(frozen=True, kw_only=True)
class RandomPerturbation:
    """Gaussian noise on θ_S. If it protects as well as a method that changes θ_S as much, that method does nothing."""

    group: str = "attention"
    """S, the part of θ that changes: a group of the model's parameters. With `like`, the tensors of that delta."""
    norm: float = 1.0
    """Euclidean norm of the whole change. With `like`, each tensor's own."""
    like: str | None = None
    """File of a delta made on this model as it stands, whose change each tensor's change equals in norm. In a study,
    the name of the defence whose delta that is."""

    def __post_init__(self) -> None:
        at_least(self, 0, "norm")

    @torch.no_grad()
    def __call__(
        self,
        model: DiffusionModel,
        examples: Examples,  # noqa: ARG002 (one signature for all immunizers)
        against: Foreseen,  # noqa: ARG002
        *,
        seed: int,
        journal: Journal | None = None,  # noqa: ARG002
    ) -> Delta:
        """The new values of θ_S; `model` is left as it is. Neither the pictures nor the adaptation matter."""
        # Of the path only the name is kept: the rest says more of the machine than of the delta.
        named = self if self.like is None else dataclasses.replace(self, like=Path(self.like).name)
        if self.like is None:
            provenance = Provenance.of(named, model, seed=seed)
            theta = model.parameters(self.group)
            noise = _gaussian(theta, seed)
            total = torch.stack([value.norm() for value in noise.values()]).norm()
            factors = dict.fromkeys(noise, self.norm / total)
        else:
            delta = Delta.load(self.like)
            provenance = Provenance.of(named, model, seed=seed, inputs={"like": delta.hash})
            with delta.applied(model):  # which refuses a delta of another model
                theta = {name: model.parameters("all")[name] for name in delta.tensors}
                changed = {name: _double(value).clone() for name, value in theta.items()}
            noise = _gaussian(theta, seed)
            factors = {name: (changed[name] - _double(theta[name])).norm() / noise[name].norm() for name in noise}
        tensors = {name: _moved(value, factors[name] * noise[name]) for name, value in theta.items()}
        return Delta.capture(tensors, provenance)


def _moved(value: Tensor, change: Tensor) -> Tensor:
    """θ and the change, with the change's norm also where half precision rounds most of it away, or up."""
    before, wanted = _double(value), float(change.norm())
    moved = (before + change).to(value.dtype)
    if value.dtype.itemsize < 4 and wanted:
        factor = 1.0
        for _ in range(8):
            factor *= min(4.0, wanted / max(float((_double(moved) - before).norm()), 0.25 * wanted))
            moved = (before + factor * change).to(value.dtype)
    return moved


def _double(value: Tensor) -> Tensor:
    return value.detach().to("cpu", torch.float64)


def _gaussian(theta: Mapping[str, Tensor], seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(value.shape, generator=generator, dtype=torch.float64) for name, value in theta.items()}
