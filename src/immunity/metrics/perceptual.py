"""A perceptual distance on deep features: LPIPS's form (Zhang et al., 2018) on a backbone that transformers loads.

    d(x, y) = sum over layers l of  mean over positions of  sum over channels c of  w_lc (x̂_lc - ŷ_lc)²

x̂_l: the activations of layer l, of unit length over channels at each position. w_lc ≥ 0 are in `weights.safetensors`
beside the backbone, one tensor "layer.<l>" for each layer. `lpips.py` has the authors' own AlexNet.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from immunity.errors import ImmunityError
from immunity.metrics.base import Preprocessing, check_images, in_batches
from immunity.metrics.pretrained import find, loaded, network


@dataclass(frozen=True, eq=False)
class PerceptualJudge:
    """A convolutional backbone and a weight for each channel of its layers."""

    model: Any
    weights: tuple[Tensor, ...]
    preprocessing: Preprocessing
    device: str = "cpu"
    batch: int = 64

    @classmethod
    def load(cls, source: str | Path, *, device: str = "cpu", batch: int = 64) -> "PerceptualJudge":
        """From a folder, or by a hub name from the local cache; raises `ImmunityError` if it is in neither."""
        from safetensors.torch import load_file
        from transformers import AutoModel

        folder = find(source, "a perceptual distance")
        model = network("a backbone", folder, AutoModel)
        named = loaded("the channels' weights", folder, lambda: load_file(folder / "weights.safetensors"))
        weights = tuple(named[f"layer.{i}"].float() for i in range(len(named)) if f"layer.{i}" in named)
        if len(weights) != len(named) or any((w < 0).any() or not w.isfinite().all() for w in weights):
            raise ImmunityError(
                expected=f"weights named layer.0, layer.1, … in {folder}, none negative",
                got=", ".join(sorted(named)) or "none",
                remedy="a complete copy of the judge's folder",
            )
        preprocessing = Preprocessing.from_file(folder / "preprocessor_config.json")
        return cls(model.to(device).eval(), weights, preprocessing, device, batch)

    def embedding(self, images: Tensor) -> Tensor:
        """[n, d] whose squared Euclidean distances are d(x, y)."""
        return in_batches(images, self._embedding, self.batch)

    def _embedding(self, images: Tensor) -> Tensor:
        output = self.model(pixel_values=self.preprocessing(images.to(self.device)), output_hidden_states=True)
        parts = []
        for activations, weight in zip(output.hidden_states, self.weights, strict=True):
            unit = F.normalize(activations, dim=1, eps=1e-6)
            positions = activations.shape[-2] * activations.shape[-1]
            parts.append((unit * (weight.to(self.device) / positions).sqrt().view(-1, 1, 1)).flatten(1))
        return torch.cat(parts, 1)

    def distances(self, images: Tensor, references: Tensor) -> Tensor:
        """[n, m]: of every image to every reference. Zero for equal pictures."""
        # The matrix-product form of the distance loses the small ones to rounding.
        return torch.cdist(
            self.embedding(images), self.embedding(references), compute_mode="donot_use_mm_for_euclid_dist"
        ).square()


@dataclass(frozen=True)
class PerceptualSimilarity:
    """1 - distance, mean over the reference pictures: 1 for equal ones. It plays LPIPS's part in the embedded world."""

    judge: PerceptualJudge
    name: str = "lpips"
    higher_is_better: Literal[True] = True

    def __call__(self, images: Tensor, reference: Tensor, /) -> Tensor:
        check_images(images), check_images(reference, "reference pictures")
        return 1 - self.judge.distances(images, reference).mean(1)
