"""Between image tensors and picture files."""

import csv
import io
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from immunity.atomic import replacing


def to_bytes(images: Tensor) -> Tensor:
    """uint8 of the same shape, rounded as diffusers rounds."""
    return (images * 255).round().clamp(0, 255).to(torch.uint8)


def in_eight_bits(images: Tensor) -> Tensor:
    """The images, in float32, as a file would hold them: what anyone can see."""
    return to_bytes(images).to(torch.float32) / 255


def write_png(image: Tensor, path: str | Path, *, force: bool = False) -> None:
    """Writes one image [3, h, w] in [0, 1] as PNG."""
    from PIL import Image

    picture = Image.fromarray(to_bytes(image).permute(1, 2, 0).cpu().numpy())
    with replacing(path, force=force) as temporary:
        picture.save(temporary, format="PNG")


def write_imagefolder(folder: Path, images: Tensor, prompts: Sequence[str], sources: Sequence[str]) -> tuple[str, ...]:
    """Writes images [n, 3, h, w] in [0, 1] into a folder that is there: 000.png, …, and metadata.csv beside them.

    Answers with the names of the pictures.
    """
    digits = max(3, len(str(len(images) - 1)))  # folders are read in the order of their names
    names = tuple(f"{number:0{digits}}.png" for number in range(len(images)))
    table = io.StringIO(newline="")
    rows = csv.writer(table, lineterminator="\n")
    rows.writerow(["file_name", "text", "source"])
    for name, image, prompt, source in zip(names, images, prompts, sources, strict=True):
        write_png(image, folder / name)
        rows.writerow([name, prompt, source])
    (folder / "metadata.csv").write_text(table.getvalue(), encoding="utf-8")
    return names


def grid(images: Tensor, columns: int, *, gap: int = 2) -> Tensor:
    """Images [n, 3, h, w] side by side on white, row by row: [3, H, W]."""
    blank = -len(images) % columns
    padded = F.pad(torch.cat([images, images.new_ones(blank, *images.shape[1:])]), (0, gap, 0, gap), value=1.0)
    count, channels, height, width = padded.shape
    cells = padded.reshape(count // columns, columns, channels, height, width)
    whole = cells.permute(2, 0, 3, 1, 4).reshape(channels, count // columns * height, columns * width)
    return whole[:, : whole.shape[1] - gap, : whole.shape[2] - gap]
