"""Custom Diffusion: a new word, and the keys and values by which the denoiser reads text."""

from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch

from immunity.adaptations.additive import AdditivePhi, added
from immunity.adaptations.attached import AdapterFiles, Attached, together
from immunity.adaptations.new_token import NewToken, new_rows
from immunity.adaptations.prior import PriorPreservation
from immunity.models import DiffusionModel

_FILE = "pytorch_custom_diffusion_weights.safetensors"


@dataclass(frozen=True, kw_only=True)
class CustomDiffusion(NewToken, PriorPreservation):
    """Custom Diffusion (Kumari et al., CVPR 2023, arXiv 2212.04488): W_k and W_v of cross-attention, and a new word.

    Its regularisation is prior preservation here: with pictures that the model makes of the class, where the paper
    prefers real ones, and off without a class prompt and a number of them, where the paper always has it.
    """

    lr: float = 1e-5
    """Learning rate, the highest where it varies."""
    steps: int = 500
    """Training steps."""

    def attach(self, model: DiffusionModel, *, seed: int) -> AbstractContextManager[Attached]:
        projections = added(model, model.parameters("text_kv"), kind=_KeysAndValues)
        return together(seed, {"token": new_rows(model, self, seed=seed), "projections": projections})


class _KeysAndValues(AdditivePhi):
    def files(self) -> AdapterFiles:
        """The layout of diffusers for U-Nets: the new weights, by the layer; self-attention is named as untouched."""
        tensors = {}
        for name, value in self.merged().items():
            component, path = name.split(".", 1)
            if component != "unet":
                return {}
            layer, projection, _ = path.rsplit(".", 2)
            tensors[f"{layer}.processor.{projection}_custom_diffusion.weight"] = value
            tensors[f"{layer.removesuffix('attn2')}attn1.processor"] = torch.empty(0)
        return {_FILE: tensors}
