"""LoRA: low-rank additions to the attention projections."""

from abc import ABC
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from torch import Tensor

from immunity.adaptations.attached import AdapterFiles, Attached
from immunity.adaptations.peft_layers import ADAPTER, LayerAdaptation, PeftLayers, inside_denoiser
from immunity.filenames import LORA_FILE
from immunity.models import DiffusionModel


@dataclass(frozen=True, kw_only=True)
class LowRank(LayerAdaptation, ABC):
    """An adaptation whose φ, or a part of it, is LoRA's."""

    def attach(self, model: DiffusionModel, *, seed: int) -> AbstractContextManager[Attached]:
        from peft import LoraConfig, LoraModel

        alpha = self.rank if self.alpha is None else self.alpha
        config = LoraConfig(r=self.rank, lora_alpha=alpha, target_modules=list(self.targets))
        return inside_denoiser(model, LoraLayers, LoraModel, config, seed=seed)


@dataclass(frozen=True, kw_only=True)
class Lora(LowRank):
    """LoRA (Hu et al., ICLR 2022, arXiv 2106.09685): W + (alpha / rank) B A on the attention projections.

    The defaults are the IMMA paper's attack, 20 pictures for 50 epochs, but for mirror images: the authors' scripts
    flip pictures at random, in attack and defence, for which there is `mirror`.
    """


class LoraLayers(PeftLayers):
    """LoRA's φ, and DoRA's, which is LoRA's with a magnitude for each output."""

    in_float32 = False

    def initialise(self, name: str, value: Tensor, base: Tensor, generator: torch.Generator) -> None:
        """A from N(0, (1 / rank)²), B zero, the magnitudes those of θ: θ is unchanged at first."""
        if name.endswith("lora_A.weight"):
            value.copy_(torch.randn(value.shape, generator=generator) / len(value))
        elif name.endswith("lora_magnitude_vector.weight"):
            value.copy_(base.to(value.dtype).flatten(1).norm(dim=1).reshape(value.shape))
        else:
            value.zero_()

    def files(self) -> AdapterFiles:
        """The layout of diffusers and peft, with the scale inside B: every loader agrees on a scale of one."""
        tensors = {
            f"{self.component}.{name.replace('lora_magnitude_vector.weight', 'lora_magnitude_vector')}": value
            for name, value in self.state_dict().items()
        }
        for path, layer in self.layers.items():
            tensors[f"{self.component}.{path}.lora_B.weight"] *= layer.scaling[ADAPTER]
        return {LORA_FILE: tensors}
