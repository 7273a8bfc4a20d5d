"""The self-supervised judge: DINO (Caron et al., 2021), or any image encoder trained without texts and labels.

The paper's is ViT-S/16 at 224 px, whose feature is the class token after the last normalisation. The embedded world
has a convolutional one of its own, whose feature is the mean over the picture.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from immunity.metrics.base import Preprocessing, check_images, in_batches, mean_cosine
from immunity.metrics.pretrained import find, loaded, network

VIT_S_16 = "facebook/dino-vits16"


@dataclass(frozen=True, eq=False)
class DinoJudge:
    """An image encoder."""

    model: Any
    preprocessing: Preprocessing
    device: str = "cpu"
    batch: int = 64

    @classmethod
    def load(cls, source: str | Path = VIT_S_16, *, device: str = "cpu", batch: int = 64) -> "DinoJudge":
        """From a folder, or by a hub name from the local cache; raises `ImmunityError` if it is in neither."""
        from transformers import AutoConfig, AutoModel

        folder = find(source, "a self-supervised image encoder")
        config = loaded("a self-supervised image encoder", folder, lambda: AutoConfig.from_pretrained(folder))
        # DINO has no pooler: transformers would make a random one for it.
        options = {"add_pooling_layer": False} if config.model_type == "vit" else {}
        model = network("a self-supervised image encoder", folder, AutoModel, **options)
        return cls(model.to(device).eval(), Preprocessing.from_file(folder / "preprocessor_config.json"), device, batch)

    def features(self, images: Tensor) -> Tensor:
        """[n, d]: the class token of a transformer, the spatial mean of a convolutional network."""
        return in_batches(images, self._features, self.batch)

    def _features(self, images: Tensor) -> Tensor:
        last: Tensor = self.model(pixel_values=self.preprocessing(images.to(self.device))).last_hidden_state
        return last[:, 0] if last.ndim == 3 else last.mean((2, 3))


@dataclass(frozen=True)
class DinoSimilarity:
    """Cosine of image features, mean over the reference pictures: in [-1, 1]. "DINO" in the paper's tables."""

    judge: DinoJudge
    name: str = "dino"
    higher_is_better: Literal[True] = True

    def __call__(self, images: Tensor, reference: Tensor, /) -> Tensor:
        features = self.judge.features(check_images(images))
        return mean_cosine(features, self.judge.features(check_images(reference, "reference pictures")))
