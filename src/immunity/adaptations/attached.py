"""φ, the parameters that an adaptation trains, while it is part of a model's forward pass."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager

import torch
from torch import Tensor, nn

from immunity.models.vocabulary import LearnedToken
from immunity.optimize import derived_seed

AdapterFiles = dict[str, dict[str, Tensor]]
"""The tensors of each file, by its name."""


class Attached(ABC):
    """φ while it is part of a model's forward pass. θ is never among its parameters."""

    @abstractmethod
    def named_parameters(self) -> Mapping[str, nn.Parameter]:
        """φ by name. Frozen: who trains it thaws it."""

    @abstractmethod
    def reset(self, seed: int) -> None:
        """Initialises φ as the adaptation does, from the seed alone."""

    @abstractmethod
    def disabled(self) -> AbstractContextManager[None]:
        """In this block the model is θ alone."""

    @abstractmethod
    def merged(self) -> dict[str, Tensor]:
        """The values of θ that do without φ what θ does with it, by the names of `model.parameters`.

        Empty where φ is no change of θ, as a new token is.
        """

    @abstractmethod
    def files(self) -> AdapterFiles:
        """The files in which adapters of this kind circulate, by their usual names; none where whole models do."""

    def tokens(self) -> tuple[LearnedToken, ...]:
        """The words that φ adds to the model's."""
        return ()

    def lr_factors(self) -> Sequence[float]:
        """Of the learning rate, for each parameter."""
        return [1.0] * len(self.named_parameters())

    def parameters(self) -> list[nn.Parameter]:
        return list(self.named_parameters().values())

    def state_dict(self) -> dict[str, Tensor]:
        return {name: value.detach().clone() for name, value in self.named_parameters().items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        with torch.no_grad():
            for name, value in self.named_parameters().items():
                value.copy_(state[name])


class Together(Attached):
    """Several φ as one."""

    def __init__(self, parts: Mapping[str, Attached], lr_factors: Mapping[str, float] | None = None) -> None:
        """`lr_factors`: of the learning rate, for all parameters of a part; all of it for parts without."""
        self._parts = dict(parts)
        self._lr_factors = dict(lr_factors or {})

    def named_parameters(self) -> Mapping[str, nn.Parameter]:
        return {
            f"{part}.{name}": value
            for part, phi in self._parts.items()
            for name, value in phi.named_parameters().items()
        }

    def reset(self, seed: int) -> None:
        for part, phi in self._parts.items():
            phi.reset(derived_seed(seed, part))

    @contextmanager
    def disabled(self) -> Iterator[None]:
        with ExitStack() as stack:
            for phi in self._parts.values():
                stack.enter_context(phi.disabled())
            yield

    def merged(self) -> dict[str, Tensor]:
        return {name: value for phi in self._parts.values() for name, value in phi.merged().items()}

    def files(self) -> AdapterFiles:
        return {name: file for phi in self._parts.values() for name, file in phi.files().items()}

    def tokens(self) -> tuple[LearnedToken, ...]:
        return tuple(token for phi in self._parts.values() for token in phi.tokens())

    def lr_factors(self) -> Sequence[float]:
        return [
            self._lr_factors.get(part, 1.0) * factor for part, phi in self._parts.items() for factor in phi.lr_factors()
        ]


@contextmanager
def together(
    seed: int, parts: Mapping[str, AbstractContextManager[Attached]], lr_factors: Mapping[str, float] | None = None
) -> Iterator[Together]:
    """Attaches the parts in order, initialised from the seed."""
    with ExitStack() as stack:
        phi = Together({name: stack.enter_context(part) for name, part in parts.items()}, lr_factors)
        phi.reset(seed)
        yield phi
