"""φ of full rank: a tensor beside each trained tensor of θ, added to it in the forward pass."""

from abc import ABC
from collections.abc import Collection, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from immunity.adaptations.attached import AdapterFiles, Attached
from immunity.adaptations.base import Adaptation
from immunity.adaptations.batches import changes_text
from immunity.models import DiffusionModel


@dataclass(frozen=True, kw_only=True)
class FullRank(Adaptation, ABC):
    """An adaptation that trains whole weights."""

    group: str = "denoiser"
    """What is trained: a group of the model's parameters."""
    text_encoder: bool = False
    """Train the text encoder too."""

    def trains_text(self, model: DiffusionModel) -> bool:
        return changes_text(self._trained(model))

    def attach(self, model: DiffusionModel, *, seed: int) -> AbstractContextManager[Attached]:  # noqa: ARG002
        return added(model, self._trained(model))

    def _trained(self, model: DiffusionModel) -> dict[str, nn.Parameter]:
        return model.parameters(self.group) | (model.parameters("text_encoder") if self.text_encoder else {})


class _Sum(nn.Module):
    """θ + φ, computed where the weight is used.

    φ is in a tuple, and so not among the parameters of the model's modules: libraries take a module's dtype from those,
    and φ may be of another.
    """

    def __init__(self, phi: nn.Parameter) -> None:
        super().__init__()
        self._phi = (phi,)
        self.enabled = True

    def forward(self, theta: Tensor) -> Tensor:
        return (theta + self._phi[0]).to(theta.dtype) if self.enabled else theta


class _Place(NamedTuple):
    """Where a parameter is."""

    module: nn.Module
    attribute: str


class AdditivePhi(Attached):
    """The cost is one copy of the trained weights, and what the optimizer keeps for it; θ is not copied.

    Sums θ + φ exist only from a layer's forward pass to its backward pass.
    """

    def __init__(self, theta: Mapping[str, nn.Parameter]) -> None:
        self._theta = dict(theta)
        self._phi = {
            # Small steps on half-precision numbers are lost, so φ is kept whole.
            name: nn.Parameter(
                torch.zeros_like(value, dtype=torch.float32 if value.dtype.itemsize < 4 else value.dtype),
                requires_grad=False,
            )
            for name, value in theta.items()
        }
        self.sums = {name: _Sum(value) for name, value in self._phi.items()}

    def named_parameters(self) -> Mapping[str, nn.Parameter]:
        return self._phi

    def reset(self, seed: int) -> None:  # noqa: ARG002 (nothing is drawn)
        """Zero: the model is θ at first."""
        with torch.no_grad():
            for value in self._phi.values():
                value.zero_()

    @contextmanager
    def disabled(self) -> Iterator[None]:
        for each in self.sums.values():
            each.enabled = False
        try:
            yield
        finally:
            for each in self.sums.values():
                each.enabled = True

    @torch.no_grad()
    def merged(self) -> dict[str, Tensor]:
        return {name: self.sums[name](theta) for name, theta in self._theta.items()}

    def files(self) -> AdapterFiles:
        """None: such fine-tunings circulate as whole models."""
        return {}


@contextmanager
def added(
    model: DiffusionModel, theta: Mapping[str, nn.Parameter], *, kind: type[AdditivePhi] = AdditivePhi
) -> Iterator[AdditivePhi]:
    """φ beside the named parameters of the model, for the length of a block."""
    phi = kind(theta)
    places = _places(model, theta)
    placed: list[_Place] = []
    try:
        for name, place in places.items():
            parametrize.register_parametrization(place.module, place.attribute, phi.sums[name])
            placed.append(place)
        yield phi
    finally:
        for place in placed:
            parametrize.remove_parametrizations(place.module, place.attribute, leave_parametrized=False)


def _places(model: DiffusionModel, names: Collection[str]) -> dict[str, _Place]:
    places = {}
    for name in names:
        component, path = name.split(".", 1)
        owner, _, attribute = path.rpartition(".")
        places[name] = _Place(model.components[component].get_submodule(owner), attribute)
    return places
