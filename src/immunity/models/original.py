"""The values that parameters had before a method trained them."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import nn


class Original:
    """Copies of some of a model's parameters, put back when the block ends: methods answer with a delta, not by change.

    `swapped_in()` runs the model as it was, for the price of these tensors and not of a second model. Where nobody
    asks for that (`at_hand`), they wait in the main memory, and not on the device.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], *, at_hand: bool) -> None:
        self.parameters, self._at_hand = dict(parameters), at_hand

    def __enter__(self) -> "Original":
        self.values = [
            value.detach().to(value.device if self._at_hand else "cpu", copy=True) for value in self.parameters.values()
        ]
        return self

    def __exit__(self, *_: object) -> None:
        with torch.no_grad():
            for parameter, value in zip(self.parameters.values(), self.values, strict=True):
                parameter.copy_(value)

    @contextmanager
    def swapped_in(self) -> Iterator[None]:
        """The parameters have their old values in this block.

        Storage is exchanged, nothing is copied; call it only while no autograd graph is pending.
        """
        assert self._at_hand, "said when it was made"
        self._swap()
        try:
            with torch.no_grad():
                yield
        finally:
            self._swap()

    def _swap(self) -> None:
        for number, parameter in enumerate(self.parameters.values()):
            self.values[number], parameter.data = parameter.data, self.values[number]
