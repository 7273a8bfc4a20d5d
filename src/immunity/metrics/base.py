"""What a measure of generated pictures is, and how pictures reach the model that judges them."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, TypeVar

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


Filter = Literal["bilinear", "bicubic"]

_FILTERS: Mapping[int, Filter] = {2: "bilinear", 3: "bicubic"}
"""By PIL's numbers for them, which are what a file has."""


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """How a judge wants its pictures: resized (antialiased), then `(image - mean) / std` on [0, 1]."""

    height: int
    width: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    shorter: int | None = None
    """Resize the shorter side to this and cut the middle out, as CLIP does; None: the whole picture is squeezed."""
    filter: Filter = "bicubic"

    def __call__(self, images: Tensor) -> Tensor:
        """Float32 [n, 3, height, width] from images [n, 3, h, w] in [0, 1]."""
        x = images.float()
        if self.shorter is None:
            x = resized(x, self.height, self.width, self.filter)
        else:
            x = resized(x, *_with_shorter(self.shorter, x.shape[-2], x.shape[-1]), self.filter)
            top, left = (x.shape[-2] - self.height) // 2, (x.shape[-1] - self.width) // 2
            x = x[..., top : top + self.height, left : left + self.width]
        mean, std = x.new_tensor(self.mean).view(3, 1, 1), x.new_tensor(self.std).view(3, 1, 1)
        return (x - mean) / std

    @classmethod
    def from_file(cls, path: Path) -> "Preprocessing":
        """Reads a `preprocessor_config.json` of transformers; in old ones a size is one integer."""
        try:
            return cls._from_config(json.loads(path.read_text(encoding="utf-8")), path)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ImmunityError(
                expected=f"an image preprocessing of transformers' form in {path}",
                got=f"{type(error).__name__}: {error}",
                remedy="the complete folder of the judge, with its preprocessor_config.json",
            ) from error

    @classmethod
    def _from_config(cls, config: dict[str, Any], path: Path) -> "Preprocessing":
        height, width = _height_and_width(config["size"])
        shorter = None
        if config.get("do_center_crop", False):
            shorter = min(height, width)
            height, width = _height_and_width(config["crop_size"])
        elif "crop_pct" in config and height < _NEVER_CROPPED:  # ConvNeXt's way to say the same
            shorter = int(height / (config["crop_pct"] or 224 / 256))
        normalised = config.get("do_normalize", True)
        colours = (config["image_mean"], config["image_std"]) if normalised else ([0] * 3, [1] * 3)
        mean, std = (_three(tuple(float(value) for value in each), path) for each in colours)
        number, factor = config.get("resample", 3), config.get("rescale_factor", 1 / 255)
        odd = {
            f"resample={number}": number not in _FILTERS,
            f"a crop of {height}×{width} from less": shorter is not None and max(height, width) > shorter,
            f"rescale_factor={factor}": abs(factor * 255 - 1) > 1e-3,
        }
        if any(odd.values()):
            raise ImmunityError(
                expected="bilinear or bicubic resizing of pictures in [0, 1], and a crop within them",
                got=f"{', '.join(what for what, is_so in odd.items() if is_so)} in {path}",
                remedy="another judge",
            )
        return cls(height=height, width=width, mean=mean, std=std, shorter=shorter, filter=_FILTERS[number])


_NEVER_CROPPED = 384
"""From this size on, ConvNeXt squeezes pictures whatever its `crop_pct`."""


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


def _with_shorter(wanted: int, height: int, width: int) -> tuple[int, int]:
    """The size of the same shape whose shorter side is the wanted one; the longer is rounded down, as CLIP does."""
    longer = int(wanted * max(height, width) / min(height, width))
    return (wanted, longer) if height <= width else (longer, wanted)


def resized(images: Tensor, height: int, width: int, how: Filter = "bicubic") -> Tensor:
    """With antialiasing, as PIL does it: first across, then down, each pass clipped to [0, 1]."""
    across = images if images.shape[-1] == width else _interpolated(images, images.shape[-2], width, how)
    return across if across.shape[-2] == height else _interpolated(across, height, width, how)


def _interpolated(images: Tensor, height: int, width: int, how: Filter) -> Tensor:
    return F.interpolate(images, size=(height, width), mode=how, antialias=True, align_corners=False).clamp(0, 1)


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
