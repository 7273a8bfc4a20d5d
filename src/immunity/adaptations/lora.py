"""LoRA: low-rank additions to the attention projections."""

from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from torch import Tensor

from immunity.adaptations.base import Adaptation, Attached
from immunity.adaptations.peft_layers import ADAPTER, PeftLayers, inside_denoiser
from immunity.checks import at_least, positive
from immunity.errors import ImmunityError
from immunity.models import DiffusionModel


@dataclass(frozen=True, kw_only=True)
class Lora(Adaptation):
    """LoRA (Hu et al., ICLR 2022, arXiv 2106.09685): W + (alpha / rank) B A on the attention projections.

    The defaults are the attack of the IMMA paper: 20 pictures for 50 epochs.
    """

    rank: int = 4
    """Rank of B A."""
    alpha: float | None = None
    """Scale of B A, times the rank; None for the rank itself, a scale of one."""
    targets: tuple[str, ...] = ("to_q", "to_k", "to_v", "to_out.0")
    """Ends of the names of the layers that get one."""

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self, 1, "rank")
        if self.alpha is not None:
            positive(self, "alpha")
        if not self.targets:
            raise ImmunityError(expected="layers to adapt", got="no targets", remedy="the default targets")

    def attach(self, model: DiffusionModel, *, seed: int) -> AbstractContextManager[Attached]:
        from peft import LoraConfig, LoraModel

        alpha = self.rank if self.alpha is None else self.alpha
        config = LoraConfig(r=self.rank, lora_alpha=alpha, target_modules=list(self.targets))
        return inside_denoiser(model, _LoraLayers, LoraModel, config, seed=seed)


class _LoraLayers(PeftLayers):
    def initialise(self, name: str, value: Tensor, generator: torch.Generator) -> None:
        """A from N(0, (1 / rank)²), B zero: θ is unchanged at first."""
        if name.endswith("lora_A.weight"):
            value.copy_(torch.randn(value.shape, generator=generator) / len(value))
        else:
            value.zero_()

    def exported(self) -> dict[str, Tensor]:
        """The layout of diffusers and peft, with the scale inside B: every loader agrees on a scale of one."""
        tensors = super().exported()
        for path, layer in self.layers.items():
            tensors[f"{self.component}.{path}.lora_B.weight"] *= layer.scaling[ADAPTER]
        return tensors
