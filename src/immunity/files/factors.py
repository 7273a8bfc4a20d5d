"""What an adapter does to one layer: the small tensors that a file has for it, and the weight that they make.

W is the layer's weight [out, in] or [out, in, kh, kw], R the rank, s = alpha / R the scale:

LoRA (Hu et al., 2022)                W + s B A, and for a convolution the product of B and A as it stands, or with a
                                      small kernel between them (a CP decomposition)
DoRA (Liu et al., 2024)               m (W + s B A) / ‖W + s B A‖, the norm of each output (in old files of each input);
                                      LyCORIS has the same of LoHa and LoKr
LoHa (Hyeon-Woo et al., 2022)         W + s (B₁ A₁) ⊙ (B₂ A₂)
LoKr (Edalati et al., 2022; LyCORIS)  W + s C ⊗ D, each of which may be a product of low rank
Full (LyCORIS)                        W + ΔW
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from immunity.errors import ImmunityError


@dataclass(frozen=True, eq=False)
class Factors(ABC):
    """The tensors of one layer. `tensors` are by their roles, which are the file's own words but for LoRA's."""

    tensors: Mapping[str, Tensor]
    alpha: float | None = None
    """The scale times the rank; None for the rank itself, a scale of one."""
    scale: float | None = None
    """The scale, where something other than alpha / rank determines it."""

    kind: ClassVar[str]
    needs: ClassVar[tuple[frozenset[str], ...]]
    """Sets of roles, one of which a layer of this kind has."""
    may: ClassVar[frozenset[str]] = frozenset()

    @property
    @abstractmethod
    def rank(self) -> int | None:
        """None for full rank."""

    @abstractmethod
    def _sizes(self) -> tuple[int, int]:
        """(outputs, inputs × kernel size) of the addition."""

    @abstractmethod
    def _addition(self) -> Tensor:
        """Without the scale; of any shape with the elements in the weight's order."""

    def merged(self, weight: Tensor, name: str) -> Tensor:
        """The layer's weight with the adapter in it, computed in float32 or finer.

        Sizes are compared before anything is multiplied: factors of a few bytes can make terabytes.
        """
        wanted = (weight.shape[0], weight[:1].numel())
        sizes = self._sizes()
        if sizes != wanted:
            raise ImmunityError(
                expected=f"a {self.kind} of {wanted[0]} × {wanted[1]} for {name}",
                got=f"one of {sizes[0]} × {sizes[1]}",
                remedy="the kind of model that it was made for",
            )
        fine = weight.double() if weight.dtype == torch.float64 else weight.float()
        return self._with(fine, self.scale_in_full() * self._addition().reshape(weight.shape).to(fine))

    def _with(self, weight: Tensor, addition: Tensor) -> Tensor:
        role = next((role for role in ("magnitude", "dora_scale") if role in self.tensors), None)
        if role is None:
            return weight + addition
        magnitude, whole = self._get(role).to(weight), weight + addition
        # LyCORIS once had a magnitude for each input, and says so by the shape alone: [1, in, …] and not [out, 1, …].
        inputs = role == "dora_scale" and magnitude.ndim > 1 and len(magnitude) == 1 and len(weight) > 1
        axis = 1 if inputs else 0
        if magnitude.numel() != weight.shape[axis]:
            raise ImmunityError(
                expected=f"{weight.shape[axis]} magnitudes",
                got=str(list(magnitude.shape)),
                remedy="the kind of model that it was made for",
            )
        norms = whole.transpose(0, axis).flatten(1).norm(dim=1)
        ratio = magnitude.flatten() / norms.clamp_min(torch.finfo(norms.dtype).eps)
        normed: Tensor = whole * ratio.reshape([-1 if i == axis else 1 for i in range(whole.ndim)])
        return normed

    def scale_in_full(self) -> float:
        """What the addition is multiplied by."""
        if self.scale is not None:
            return self.scale
        return 1.0 if self.alpha is None or self.rank is None else self.alpha / self.rank

    def _get(self, role: str) -> Tensor:
        tensor = self.tensors[role]
        return tensor if tensor.dtype == torch.float64 else tensor.float()


class LowRankFactors(Factors):
    kind = "LoRA"
    needs = (frozenset({"down", "up"}),)
    may = frozenset({"mid", "magnitude", "dora_scale"})

    @property
    def rank(self) -> int:
        return len(self.tensors["down"])

    def _sizes(self) -> tuple[int, int]:
        down, up, mid = self.tensors["down"], self.tensors["up"], self.tensors.get("mid")
        if min(tensor.ndim for tensor in (down, up, down if mid is None else mid)) < 2:
            return (-1, -1)
        kernel = 1 if mid is None else mid[:1, :1].numel()
        fits = up[:1].numel() == len(down) if mid is None else mid.shape[:2] == (up[:1].numel(), len(down))
        return (len(up) if fits else -1, down[:1].numel() * kernel)

    def _addition(self) -> Tensor:
        down, up = self._get("down").flatten(1), self._get("up").flatten(1)
        if "mid" in self.tensors:
            return torch.einsum("ij...,oi,jn->on...", self._get("mid"), up, down)
        return up @ down


class Hadamard(Factors):
    kind = "LoHa"
    needs = (frozenset({"hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"}),)
    may = frozenset({"hada_t1", "hada_t2", "dora_scale"})

    @property
    def rank(self) -> int:
        return len(self.tensors["hada_w1_b"])

    def _sizes(self) -> tuple[int, int]:
        first, second = (self._product_sizes(number) for number in (1, 2))
        cores = (self.tensors.get(f"hada_t{number}") for number in (1, 2))
        kernels = {None if core is None else core.shape[2:] for core in cores}
        return first if first == second and len(kernels) == 1 else (-1, -1)

    def _product_sizes(self, number: int) -> tuple[int, int]:
        a, b = self.tensors[f"hada_w{number}_a"], self.tensors[f"hada_w{number}_b"]
        core = self.tensors.get(f"hada_t{number}")
        return _sizes_of_product(a, b, core)

    def _addition(self) -> Tensor:
        first, second = (
            _product(
                self._get(f"hada_w{number}_a"),
                self._get(f"hada_w{number}_b"),
                self._get(f"hada_t{number}") if f"hada_t{number}" in self.tensors else None,
            )
            for number in (1, 2)
        )
        return first * second


class Kronecker(Factors):
    kind = "LoKr"
    needs = tuple(
        frozenset({*first, *second})
        for first in (("lokr_w1",), ("lokr_w1_a", "lokr_w1_b"))
        for second in (("lokr_w2",), ("lokr_w2_a", "lokr_w2_b"))
    )
    may = frozenset({"lokr_t2", "dora_scale"})

    @property
    def rank(self) -> int | None:
        # LyCORIS has no scale where both factors are whole, as there is no rank then.
        return next((len(self.tensors[role]) for role in ("lokr_w1_b", "lokr_w2_b") if role in self.tensors), None)

    def _sizes(self) -> tuple[int, int]:
        first, second = self._factor_sizes(1), self._factor_sizes(2)
        return (first[0] * second[0], first[1] * second[1]) if min(*first, *second) > 0 else (-1, -1)

    def _factor_sizes(self, number: int) -> tuple[int, int]:
        whole = self.tensors.get(f"lokr_w{number}")
        if whole is not None:
            return (len(whole), whole[:1].numel()) if whole.ndim > 1 else (-1, -1)
        core = self.tensors.get("lokr_t2") if number == 2 else None
        return _sizes_of_product(self.tensors[f"lokr_w{number}_a"], self.tensors[f"lokr_w{number}_b"], core)

    def _addition(self) -> Tensor:
        first, second = self._factor(1).flatten(1), self._factor(2)
        # Inputs and kernel are one axis here: the kernel is all in the second factor, whose last axis it is.
        return torch.kron(first, second.flatten(1))

    def _factor(self, number: int) -> Tensor:
        if f"lokr_w{number}" in self.tensors:
            return self._get(f"lokr_w{number}")
        core = self._get("lokr_t2") if number == 2 and "lokr_t2" in self.tensors else None
        return _product(self._get(f"lokr_w{number}_a"), self._get(f"lokr_w{number}_b"), core)


class Whole(Factors):
    kind = "full difference"
    needs = (frozenset({"diff"}),)

    @property
    def rank(self) -> None:
        return None

    def _sizes(self) -> tuple[int, int]:
        addition = self.tensors["diff"]
        return (len(addition), addition[:1].numel())

    def _addition(self) -> Tensor:
        return self._get("diff")


KINDS: tuple[type[Factors], ...] = (LowRankFactors, Hadamard, Kronecker, Whole)


def _sizes_of_product(a: Tensor, b: Tensor, core: Tensor | None) -> tuple[int, int]:
    """Of `_product`; (−1, −1) if its factors do not fit together."""
    # A kernel is in the second factor or in the core.
    if a.ndim != 2 or b.ndim < 2 or (core is not None and (b.ndim != 2 or core.ndim < 3)):
        return (-1, -1)
    if core is None:
        return (len(a), b[:1].numel()) if a.shape[1] == len(b) else (-1, -1)
    return (a.shape[1], b.shape[1] * core[0, 0].numel()) if core.shape[:2] == (len(a), len(b)) else (-1, -1)


def _product(a: Tensor, b: Tensor, core: Tensor | None) -> Tensor:
    """a b; with a core [R, R, kh, kw] and a [R, out], b [R, in] the Tucker decomposition of a kernel."""
    return a @ b.flatten(1) if core is None else torch.einsum("ij...,io,jn->on...", core, a, b)
