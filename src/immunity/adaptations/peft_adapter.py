"""LoRA's relatives, as peft has them: DoRA, LoHa, LoKr, OFT, BOFT."""

from collections.abc import Collection, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from immunity.adaptations.attached import AdapterFiles, Attached
from immunity.adaptations.lora import LoraLayers
from immunity.adaptations.peft_layers import (
    ADAPTER,
    CONVOLUTIONS,
    LayerAdaptation,
    PeftLayers,
    inside_denoiser,
    is_target,
)
from immunity.checks import one_of
from immunity.errors import ImmunityError
from immunity.models import DiffusionModel

Kind = Literal["dora", "loha", "lokr", "oft", "boft"]


@dataclass(frozen=True, kw_only=True)
class PeftAdapter(LayerAdaptation):
    """One of LoRA's relatives on the attention projections.

    dora: LoRA with a magnitude for each output (Liu et al., 2024, arXiv 2402.09353). loha: a Hadamard product of two
    low ranks (Hyeon-Woo et al., 2022, arXiv 2108.06098). lokr: a Kronecker product (Edalati et al., 2022, arXiv
    2212.10650). oft: rotations of the inputs (Qiu et al., 2023, arXiv 2306.07280). boft: products of sparse ones (Liu
    et al., 2024, arXiv 2311.06243).
    """

    kind: Kind = "dora"
    """Which of them."""
    rank: int = 4
    """Of the factors; for oft and boft the width of the blocks that are rotated."""
    convolutions: bool = False
    """A U-Net's convolutions get one too. Not with rotations."""

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of(self, "kind", get_args(Kind))
        if self._rotates and (self.convolutions or self.alpha is not None or self.rank < 2):
            raise ImmunityError(
                expected=f"{self.kind} with blocks of two or more, without alpha, and on linear layers",
                got=f"rank={self.rank}, alpha={self.alpha}, convolutions={self.convolutions}",
                remedy="dora, loha or lokr",
            )

    @property
    def _rotates(self) -> bool:
        return self.kind in ("oft", "boft")

    def attach(self, model: DiffusionModel, *, seed: int) -> AbstractContextManager[Attached]:
        import peft

        shared: dict[str, Any] = {"target_modules": [*self.targets, *(CONVOLUTIONS if self.convolutions else ())]}
        scaled = {**shared, "r": self.rank, "alpha": self.rank if self.alpha is None else self.alpha}
        if self.kind == "dora":
            config = peft.LoraConfig(**shared, r=self.rank, lora_alpha=scaled["alpha"], use_dora=True)
            return inside_denoiser(model, _Decomposed, peft.LoraModel, config, seed=seed)
        if self.kind == "loha":
            return inside_denoiser(model, _Products, peft.LoHaModel, peft.LoHaConfig(**scaled), seed=seed)
        if self.kind == "lokr":
            return inside_denoiser(model, _Products, peft.LoKrModel, peft.LoKrConfig(**scaled), seed=seed)
        if self.kind == "oft":
            _check_blocks(model, self.targets, self.rank)
            rotations = peft.OFTConfig(**shared, r=0, oft_block_size=self.rank)
            return inside_denoiser(model, _Rotations, peft.OFTModel, rotations, seed=seed)
        butterflies = peft.BOFTConfig(**shared, boft_block_size=self.rank)
        return _without_compiling(inside_denoiser(model, _Rotations, peft.BOFTModel, butterflies, seed=seed))


class _Decomposed(LoraLayers):
    """DoRA's: its magnitudes move by less than bfloat16 can tell from one."""

    in_float32 = True


class _Products(PeftLayers):
    """LoHa and LoKr: products of which one factor is zero at first."""

    def initialise(self, name: str, value: Tensor, base: Tensor, generator: torch.Generator) -> None:  # noqa: ARG002
        factor = name.rsplit(".", 1)[-1]
        if factor in ("hada_w2_b", "lokr_w1", "lokr_w1_a"):
            value.zero_()
            return
        bound = value[0].numel() ** -0.5  # as peft has it, and PyTorch for its own layers
        value.copy_((2 * torch.rand(value.shape, generator=generator) - 1) * bound)

    def files(self) -> AdapterFiles:
        """The layout of LyCORIS, in which such files circulate, with this family's names of layers."""
        tensors = {}
        for name, value in self.state_dict().items():
            path, factor = name.rsplit(".", 1)
            tensors[f"{self._prefix(path)}.{factor}"] = value
        for path, layer in self.layers.items():
            prefix = self._prefix(path)
            if f"{prefix}.lokr_w1" in tensors and f"{prefix}.lokr_w2" in tensors:
                # Of two whole factors, LyCORIS ignores alpha and peft does not: the scale goes into one of them.
                tensors[f"{prefix}.lokr_w1"] *= layer.scaling[ADAPTER]
            tensors[f"{prefix}.alpha"] = torch.tensor(float(layer.alpha[ADAPTER]))
        return {"lycoris.safetensors": tensors}

    def _prefix(self, path: str) -> str:
        component = "unet" if self.component == "unet" else "transformer"
        return f"lora_{component}_{path.replace('.', '_')}"


class _Rotations(PeftLayers):
    """OFT and BOFT: no rotation and no scaling at first."""

    def initialise(self, name: str, value: Tensor, base: Tensor, generator: torch.Generator) -> None:  # noqa: ARG002
        value.fill_(1.0 if name.rsplit(".", 1)[-1] == "boft_s" else 0.0)


@contextmanager
def _without_compiling(attached: AbstractContextManager[Attached]) -> Iterator[Attached]:
    """peft would compile a CUDA extension for BOFT where it can, once for each layer where it cannot.

    Without it BOFT has one butterfly factor, wherever it runs.
    """
    from peft.tuners.boft import layer

    before = layer._FBD_CUDA
    layer._FBD_CUDA = False
    try:
        with attached as phi:
            yield phi
    finally:
        layer._FBD_CUDA = before


def _check_blocks(model: DiffusionModel, targets: Collection[str], width: int) -> None:
    """Raises where peft would take blocks of another width than was asked for, layer by layer."""
    for path, layer in model.components[model.denoiser].named_modules():
        inputs = getattr(layer, "in_features", width)
        if is_target(path, targets) and inputs % width:
            raise ImmunityError(
                expected=f"a rank, the width of oft's blocks, that divides the {inputs} inputs of {path}",
                got=str(width),
                remedy="--rank 4",
            )
