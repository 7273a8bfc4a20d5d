"""What a measure of generated pictures is, and how pictures reach the model that judges them."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from immunity.errors import ImmunityError

R = TypeVar("R", contravariant=True)


class Metric(Protocol[R]):
    """Scores pictures one by one. `R` is what they are held against: pictures (`Tensor`) or texts (`Sequence[str]`)."""

    @property
    def name(self) -> str:
        """How records and reports call it, e.g. "clip"."""

    @property
    def higher_is_better(self) -> bool:
        """Whether a higher score means closer to the reference."""

    def __call__(self, images: Tensor, reference: R, /) -> Tensor:
        """Float32 [n], on the CPU: the score of each of `images` [n, 3, h, w] in [0, 1].

        A reference of pictures [m, 3, h, w] in [0, 1] is a set that every image is held against, and a score is the
        mean over it. A reference of texts has one text for each image, or a single one for all.
        """


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """How a judge wants its pictures: resized (bicubic, antialiased), then `(image - mean) / std` on [0, 1]."""

    height: int
    width: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    crop: bool = False
    """Resize the shorter side and cut the middle out, as CLIP does; otherwise the whole picture is squeezed."""

    def __call__(self, images: Tensor) -> Tensor:
        """Float32 [n, 3, height, width] from images [n, 3, h, w] in [0, 1]."""
        x = images.float()
        if self.crop:
            x = resized(x, *_covering(x.shape[-2], x.shape[-1], self.height, self.width))
            top, left = (x.shape[-2] - self.height) // 2, (x.shape[-1] - self.width) // 2
            x = x[..., top : top + self.height, left : left + self.width]
        else:
            x = resized(x, self.height, self.width)
        mean, std = x.new_tensor(self.mean).view(3, 1, 1), x.new_tensor(self.std).view(3, 1, 1)
        return (x - mean) / std

    @classmethod
    def from_file(cls, path: Path) -> "Preprocessing":
        """Reads a `preprocessor_config.json` of transformers; in old ones a size is one integer."""
        try:
            config = json.loads(path.read_text(encoding="utf-8"))
            crop = bool(config.get("do_center_crop", False))
            height, width = _height_and_width(config["crop_size"] if crop else config["size"])
            mean, std = (tuple(float(value) for value in config[key]) for key in ("image_mean", "image_std"))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ImmunityError(
                expected=f"an image preprocessing of transformers' form in {path}",
                got=f"{type(error).__name__}: {error}",
                remedy="the complete folder of the judge, with its preprocessor_config.json",
            ) from error
        return cls(height=height, width=width, mean=_three(mean, path), std=_three(std, path), crop=crop)


def _three(values: tuple[float, ...], path: Path) -> tuple[float, float, float]:
    if len(values) != 3:
        raise ImmunityError(
            expected=f"one value for each of three colours in {path}",
            got=f"{len(values)}",
            remedy="a judge of colour pictures",
        )
    return values[0], values[1], values[2]


def _height_and_width(size: Any) -> tuple[int, int]:
    if isinstance(size, int):
        return size, size
    if "shortest_edge" in size:
        return int(size["shortest_edge"]), int(size["shortest_edge"])
    return int(size["height"]), int(size["width"])


def _covering(height: int, width: int, wanted_height: int, wanted_width: int) -> tuple[int, int]:
    """The smallest size of the same shape that holds the wanted one; the longer side is rounded down, as CLIP does."""
    scale = max(wanted_height / height, wanted_width / width)
    return max(wanted_height, int(height * scale)), max(wanted_width, int(width * scale))


def resized(images: Tensor, height: int, width: int) -> Tensor:
    """Bicubic with antialiasing, as PIL does it: first across, then down, each pass clipped to [0, 1]."""
    across = images if images.shape[-1] == width else _bicubic(images, images.shape[-2], width)
    return across if across.shape[-2] == height else _bicubic(across, height, width)


def _bicubic(images: Tensor, height: int, width: int) -> Tensor:
    return F.interpolate(images, size=(height, width), mode="bicubic", antialias=True, align_corners=False).clamp(0, 1)


def check_images(images: Tensor, role: str = "images") -> Tensor:
    """The pictures as given, or `ImmunityError`: shape [n, 3, h, w], n > 0, floating point, finite, in [0, 1]."""
    expected = f"{role} as a floating-point tensor [n, 3, h, w] with values in [0, 1]"
    if images.ndim != 4 or images.shape[1] != 3 or not images.is_floating_point() or images.numel() == 0:
        raise ImmunityError(
            expected=expected,
            got=f"{str(images.dtype).removeprefix('torch.')} {list(images.shape)}",
            remedy="stacking at least one colour picture, divided by 255 if it has integer values",
        )
    low, high = images.min().item(), images.max().item()
    # A NaN fails both comparisons.
    if not (low >= -1e-4 and high <= 1 + 1e-4):
        raise ImmunityError(
            expected=expected, got=f"values from {low:g} to {high:g}", remedy="(images + 1) / 2 if they are in [-1, 1]"
        )
    return images


def one_each(texts: Sequence[str], n: int, role: str) -> tuple[str, ...]:
    """One text for each of n images: `texts` itself, or its single entry n times."""
    if isinstance(texts, str):
        raise ImmunityError(expected=f"a sequence of {role}s", got=repr(texts), remedy=f"[{texts!r}] for one {role}")
    if len(texts) not in (1, n):
        raise ImmunityError(
            expected=f"one {role} for each of {n} images, or one for all", got=f"{len(texts)}", remedy=f"{n} {role}s"
        )
    return tuple(texts) * (n if len(texts) == 1 else 1)


@torch.no_grad()
def in_batches(images: Tensor, function: Callable[[Tensor], Tensor], batch: int) -> Tensor:
    """`function` of each `batch` images in turn, joined, in float32 on the CPU; no gradient is kept."""
    return torch.cat([function(part).float().cpu() for part in images.split(batch)])


def mean_cosine(features: Tensor, references: Tensor) -> Tensor:
    """[n]: the mean cosine of each row of `features` [n, d] with all rows of `references` [m, d]."""
    return F.normalize(features, dim=1) @ F.normalize(references, dim=1).mean(0)
