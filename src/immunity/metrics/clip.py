"""The image–text judge: CLIP (Radford et al., 2021), or any dual encoder of transformers' with the same questions.

The paper's is ViT-B/32 at 224 px. The embedded world has one of its own (`worlds/emoji/judges/clip`).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from immunity.errors import ImmunityError
from immunity.metrics.base import Preprocessing, check_images, in_batches, mean_cosine, one_each
from immunity.metrics.pretrained import find, loaded, network

VIT_B_32 = "openai/clip-vit-base-patch32"


@dataclass(frozen=True, eq=False)
class ClipJudge:
    """An image encoder and a text encoder into one space."""

    model: Any
    tokenizer: Any
    preprocessing: Preprocessing
    device: str = "cpu"
    batch: int = 64

    @classmethod
    def load(cls, source: str | Path = VIT_B_32, *, device: str = "cpu", batch: int = 64) -> "ClipJudge":
        """From a folder, or by a hub name from the local cache; raises `ImmunityError` if it is in neither."""
        from transformers import AutoConfig, AutoModel, AutoTokenizer

        folder = find(source, "a CLIP model")
        config = loaded("a CLIP model", folder, lambda: AutoConfig.from_pretrained(folder))
        if config.model_type not in ("clip", "vision-text-dual-encoder"):
            raise ImmunityError(
                expected="a model of images and texts (clip, vision-text-dual-encoder)",
                got=f"{config.model_type} in {folder}",
                remedy="the folder of a CLIP model",
            )
        model = network("a CLIP model", folder, AutoModel)
        tokenizer = loaded("a CLIP tokenizer", folder, lambda: AutoTokenizer.from_pretrained(folder))
        preprocessing = Preprocessing.from_file(folder / "preprocessor_config.json")
        return cls(model.to(device).eval(), tokenizer, preprocessing, device, batch)

    def image_features(self, images: Tensor) -> Tensor:
        """[n, d] of unit length, from images [n, 3, h, w] in [0, 1]."""
        features = in_batches(
            images,
            lambda part: _pooled(self.model.get_image_features(self.preprocessing(part.to(self.device)))),
            self.batch,
        )
        return F.normalize(features, dim=1)

    @torch.no_grad()
    def text_features(self, texts: Sequence[str]) -> Tensor:
        """[n, d] of unit length; a text longer than the model reads is cut."""
        length = min(self.tokenizer.model_max_length, self._text_positions())
        tokens = self.tokenizer(
            list(texts), padding="max_length", max_length=length, truncation=True, return_tensors="pt"
        ).to(self.device)
        features = _pooled(
            self.model.get_text_features(input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"])
        )
        return F.normalize(features.float().cpu(), dim=1)

    def logits(self, images: Tensor, texts: Sequence[str]) -> Tensor:
        """[n, len(texts)]: cosines times the model's own learned scale."""
        scale: Tensor = self.model.logit_scale.detach().float().exp().cpu()
        cosines = self.image_features(images) @ self.text_features(texts).T
        return scale * cosines

    def _text_positions(self) -> int:
        return int(self.model.config.text_config.max_position_embeddings)


def _pooled(output: Any) -> Tensor:
    """transformers 4 returns the projected features, transformers 5 a record that holds them."""
    features = output if isinstance(output, Tensor) else output.pooler_output
    assert isinstance(features, Tensor)
    return features


@dataclass(frozen=True)
class ClipSimilarity:
    """Cosine of image embeddings, mean over the reference pictures: in [-1, 1]. "CLIP" in the paper's tables."""

    judge: ClipJudge
    name: str = "clip"
    higher_is_better: Literal[True] = True

    def __call__(self, images: Tensor, reference: Tensor, /) -> Tensor:
        features = self.judge.image_features(check_images(images))
        return mean_cosine(features, self.judge.image_features(check_images(reference, "reference pictures")))


@dataclass(frozen=True)
class ClipScore:
    """Cosine of an image with its text (Hessel et al., 2021, without their factor 2.5 and without clipping at zero)."""

    judge: ClipJudge
    name: str = "clip_score"
    higher_is_better: Literal[True] = True

    def __call__(self, images: Tensor, reference: Sequence[str], /) -> Tensor:
        texts = one_each(reference, len(check_images(images)), "prompt")
        distinct = list(dict.fromkeys(texts))
        features = self.judge.text_features(distinct)[[distinct.index(text) for text in texts]]
        return (self.judge.image_features(images) * features).sum(1)


@dataclass(frozen=True)
class ZeroShot:
    """Is the image nearest to the prompt of its label, of all classes' prompts? 1 or 0 an image."""

    judge: ClipJudge
    classes: tuple[str, ...]
    prompts: tuple[str, ...]
    """One for each class: "image of a church"."""
    name: str = "zero_shot"
    higher_is_better: Literal[True] = True

    def __post_init__(self) -> None:
        if len(self.classes) != len(self.prompts):
            raise ImmunityError(
                expected=f"one prompt for each of {len(self.classes)} classes",
                got=f"{len(self.prompts)}",
                remedy="as many prompts as classes",
            )

    def __call__(self, images: Tensor, reference: Sequence[str], /) -> Tensor:
        labels = one_each(reference, len(check_images(images)), "label")
        unknown = sorted(set(labels) - set(self.classes))
        if unknown:
            raise ImmunityError(
                expected="labels among the classes", got=", ".join(map(repr, unknown)), remedy="adding them to classes"
            )
        guesses = self.judge.logits(images, self.prompts).argmax(1)
        return (guesses == torch.tensor([self.classes.index(label) for label in labels])).float()
