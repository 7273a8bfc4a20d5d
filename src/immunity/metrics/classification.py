"""Classifiers: what is on the picture, or in whose style it is drawn."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from immunity.errors import ImmunityError
from immunity.metrics.base import Preprocessing, check_images, in_batches, one_each
from immunity.metrics.pretrained import find, network


@dataclass(frozen=True, eq=False)
class Classifier:
    """An image classifier with a name for each class. Dividing its logits by `temperature` calibrates them."""

    model: Any
    preprocessing: Preprocessing
    classes: tuple[str, ...]
    temperature: float = 1.0
    device: str = "cpu"
    batch: int = 64

    @classmethod
    def load(
        cls, source: str | Path, *, temperature: float = 1.0, device: str = "cpu", batch: int = 64
    ) -> "Classifier":
        """From a folder, or by a hub name from the local cache; raises `ImmunityError` if it is in neither."""
        from transformers import AutoModelForImageClassification

        folder = find(source, "an image classifier")
        model = network("an image classifier", folder, AutoModelForImageClassification)
        classes = tuple(str(model.config.id2label[i]) for i in range(model.config.num_labels))
        preprocessing = Preprocessing.from_file(folder / "preprocessor_config.json")
        return cls(model.to(device).eval(), preprocessing, classes, temperature, device, batch)

    def probabilities(self, images: Tensor) -> Tensor:
        """[n, classes], from images [n, 3, h, w] in [0, 1]."""
        logits = in_batches(
            images, lambda part: self.model(pixel_values=self.preprocessing(part.to(self.device))).logits, self.batch
        )
        return (logits / self.temperature).softmax(1)

    def indices(self, labels: Sequence[str]) -> Tensor:
        """int64 [n], by a class's whole name, one of several that it lists, as ImageNet's "church, church building", or
        its number, as two classes may share a name ("134" is one of ImageNet's cranes).

        A label that names no class, or more than one, raises `ImmunityError`.
        """
        return torch.tensor([self._index(label) for label in labels])

    def _index(self, label: str) -> int:
        found = [i for i, name in enumerate(self.classes) if name == label]
        found = found or [i for i, name in enumerate(self.classes) if label.casefold() in _synonyms(name)]
        found = found or [i for i in range(len(self.classes)) if label == str(i)]
        if len(found) == 1:
            return found[0]
        alike = [f"{self.classes[i]!r} ({i})" for i in found]
        raise ImmunityError(
            expected=f"a label that names one of the classifier's {len(self.classes)} classes",
            got=f"{label!r}, which names {' and '.join(alike)}" if alike else repr(label),
            remedy="the number of one of them"
            if alike
            else f"one of its classes, such as {', '.join(map(repr, self.classes[:3]))}",
        )


def _synonyms(name: str) -> list[str]:
    return [each.strip().casefold() for each in name.split(",")]


@dataclass(frozen=True)
class Accuracy:
    """Does the classifier's first guess equal the label? 1 or 0 an image."""

    judge: Classifier
    name: str
    higher_is_better: Literal[True] = True

    def __call__(self, images: Tensor, reference: Sequence[str], /) -> Tensor:
        labels = self.judge.indices(one_each(reference, len(check_images(images)), "label"))
        return (self.judge.probabilities(images).argmax(1) == labels).float()


@dataclass(frozen=True)
class Probability:
    """The probability that the classifier gives to the label: in [0, 1]. Finer than `Accuracy` on few pictures."""

    judge: Classifier
    name: str
    higher_is_better: Literal[True] = True

    def __call__(self, images: Tensor, reference: Sequence[str], /) -> Tensor:
        labels = self.judge.indices(one_each(reference, len(check_images(images)), "label"))
        return self.judge.probabilities(images).gather(1, labels[:, None])[:, 0]
