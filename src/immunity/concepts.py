"""What must not be generated: a concept, and pictures of it."""

import csv
import hashlib
import io
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import torch
from torch import Tensor

from immunity.errors import ImmunityError
from immunity.filenames import GRID_FILE, SAMPLE_FILE
from immunity.inside import check_inside

Kind = Literal["object", "style", "person", "unsafe"]

_LARGEST_TABLE = 32 * 2**20  # bytes, which are more captions than pictures that fit into memory
_MOST_PIXELS = 2**27  # of one picture: what it takes to open one is sixteen times that in bytes
_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff"})
# What these are, by what is in them and not by their names. Pillow reads more, some by running another program.
_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF")


@dataclass(frozen=True, kw_only=True)
class Concept:
    """Something that a model should not generate, and how one asks for it.

    `prompts` are made from the name and the kind when they are not given. `neighbours` are names of concepts close to
    this one: those that a careless defence damages first.
    """

    name: str
    kind: Kind = "object"
    prompts: tuple[str, ...] = ()
    neighbours: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.name.strip():
            raise ImmunityError(
                expected="a concept with a name",
                got="an empty name",
                remedy="the word that a prompt would use, e.g. 'church'",
            )
        if self.kind not in get_args(Kind):
            raise ImmunityError(
                expected=f"a kind of concept: {', '.join(get_args(Kind))}", got=repr(self.kind), remedy="one of these"
            )
        if not self.prompts:
            object.__setattr__(self, "prompts", _default_prompts(self.name, self.kind))
        if not all(prompt.strip() for prompt in self.prompts):
            raise ImmunityError(
                expected=f"prompts that name {self.name!r}",
                got="an empty prompt",
                remedy="leaving prompts out, to have them made",
            )
        if self.name in self.neighbours:
            raise ImmunityError(
                expected="neighbours other than the concept itself",
                got=repr(self.name),
                remedy="removing it from neighbours",
            )


def _default_prompts(name: str, kind: Kind) -> tuple[str, ...]:
    if kind == "object":
        thing = f"{'an' if name[0].lower() in 'aeiou' else 'a'} {name}"
        return (f"image of {thing}", f"a picture of {thing}", name)
    if kind == "style":
        return (f"an artwork in the style of {name}", f"an artwork by {name}")
    if kind == "person":
        return (f"a photo of {name}", f"a portrait of {name}")
    return (name,)


def naming(name: str) -> re.Pattern[str]:
    """Finds the name in prompts where it is whole words, in capitals or not; "article" is the a or an before it."""
    # Not by \b, which wants a letter on one side, as some names end or begin in something else ("Monsters, Inc.").
    return re.compile(rf"(?<!\w)(?P<article>an? )?{re.escape(name)}(?!\w)", re.IGNORECASE)


@dataclass(frozen=True, eq=False)
class Examples:
    """Pictures of a concept, one prompt and one source each.

    `images` is float32 [n, 3, h, w] in [0, 1]; `sources` are file names or other words on where each picture is from.
    `name` is what the prompts call it, if they do: an adaptation with a word of its own puts that in its place.
    """

    images: Tensor
    prompts: tuple[str, ...]
    sources: tuple[str, ...]
    name: str = ""

    def __post_init__(self) -> None:
        images = self.images
        if images.dtype != torch.float32 or images.ndim != 4 or images.shape[1] != 3:
            raise ImmunityError(
                expected="images as float32 [n, 3, h, w]",
                got=f"{images.dtype} {list(images.shape)}",
                remedy="images.float(), channels first, with a batch axis",
            )
        if not len(images) == len(self.prompts) == len(self.sources):
            raise ImmunityError(
                expected="one prompt and one source for each image",
                got=f"{len(images)} images, {len(self.prompts)} prompts, {len(self.sources)} sources",
                remedy="repeating the prompt, e.g. (prompt,) * len(images)",
            )
        # One pass that is also false for NaN.
        if images.numel() and not (images.min() >= 0 and images.max() <= 1):
            raise ImmunityError(
                expected="pixel values in [0, 1]",
                got=f"values from {images.min():.3g} to {images.max():.3g}",
                remedy="images / 255 for bytes, (images + 1) / 2 for [-1, 1]",
            )

    @classmethod
    def from_folder(cls, path: str | Path, *, prompt: str | None = None, size: int) -> "Examples":
        """Reads a folder of pictures, in the order of their names.

        Prompts come from `metadata.csv` or `metadata.jsonl` in the folder (columns file_name and text, the layout
        called imagefolder), unless `prompt` gives one for all. Pictures are turned upright, laid on white where
        transparent, cropped to the central square and resized (Lanczos) to `size` × `size` pixels. The grid that
        `sample` draws beside its pictures is none of them.
        """
        folder = Path(path)
        if not folder.is_dir():
            raise ImmunityError(
                expected="a folder of pictures",
                got=f"{folder} ({'a file' if folder.exists() else 'which does not exist'})",
                remedy="the folder that holds the pictures",
            )
        if size < 1:
            raise ImmunityError(expected="a size of at least one pixel", got=str(size), remedy="the model's resolution")
        files = sorted(
            file.relative_to(folder)
            for file in folder.rglob("*")
            if file.suffix.lower() in _SUFFIXES and not file.name.startswith(".") and not _is_grid(file)
        )
        if not files:
            raise ImmunityError(
                expected=f"pictures ({', '.join(sorted(_SUFFIXES))})", got=f"none in {folder}", remedy="another folder"
            )
        for file in files:
            check_inside(folder / file, folder)
        names = tuple(file.as_posix() for file in files)
        prompts = (prompt,) * len(names) if prompt is not None else _prompts_of(folder, names)
        return cls(torch.stack([_read_image(folder / name, size) for name in names]), prompts, names)

    def __len__(self) -> int:
        return len(self.images)

    def take(self, indices: Sequence[int]) -> "Examples":
        """The examples at `indices`, in that order."""
        return Examples(
            self.images[list(indices)],
            tuple(self.prompts[i] for i in indices),
            tuple(self.sources[i] for i in indices),
            self.name,
        )

    def split(self, *sizes: int, seed: int) -> "tuple[Examples, ...]":
        """Disjoint parts of the given sizes, drawn without replacement.

        `attack, defence = examples.split(20, 20, seed=0)`
        """
        if sum(sizes) > len(self) or any(size < 0 for size in sizes):
            raise ImmunityError(
                expected=f"sizes of parts that sum to at most {len(self)}",
                got=" + ".join(map(str, sizes)),
                remedy="smaller parts or more pictures",
            )
        order = torch.randperm(len(self), generator=torch.Generator().manual_seed(seed)).tolist()
        ends = [sum(sizes[: i + 1]) for i in range(len(sizes))]
        return tuple(self.take(order[end - size : end]) for size, end in zip(sizes, ends, strict=True))

    def image_digests(self) -> tuple[str, ...]:
        """One SHA-256 for each picture's pixels: how one sees that two sets share pictures."""
        return tuple(hashlib.sha256(image.contiguous().numpy().tobytes()).hexdigest() for image in self.images.cpu())

    def digest(self) -> str:
        """SHA-256 of the pixels, the prompts in order and the name in them. Sources do not count: a renamed file is the
        same picture."""
        content = [list(self.images.shape), self.image_digests(), self.prompts, *([self.name] if self.name else [])]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def _is_grid(file: Path) -> bool:
    return file.name == GRID_FILE and file.with_name(SAMPLE_FILE).exists()


def _prompts_of(folder: Path, names: tuple[str, ...]) -> tuple[str, ...]:
    table = next((folder / name for name in ("metadata.csv", "metadata.jsonl") if (folder / name).is_file()), None)
    if table is None:
        raise ImmunityError(
            expected="a prompt for each picture",
            got=f"neither a prompt nor a metadata.csv or metadata.jsonl in {folder}",
            remedy="one prompt for all (--prompt), or a metadata.csv with the columns file_name and text",
        )
    texts: dict[str, str] = {}
    for number, row in enumerate(_rows(table), start=1):
        name, text = row.get("file_name"), row.get("text")
        if not isinstance(name, str) or not isinstance(text, str):
            raise ImmunityError(
                expected="rows with file_name and text",
                got=f"{dict(row)} (row {number} of {table})",
                remedy="adding both columns",
            )
        if texts.setdefault(name, text) != text:
            raise ImmunityError(
                expected="one text a picture", got=f"two for {name} in {table}", remedy="removing one of the two rows"
            )
    if missing := [name for name in names if name not in texts]:
        raise ImmunityError(
            expected=f"a row in {table} for each picture",
            got=f"none for {missing[0]}",
            remedy="adding the row or moving the file",
        )
    if absent := [name for name in texts if name not in names]:
        raise ImmunityError(
            expected=f"a picture for each row of {table}",
            got=f"no file {absent[0]}",
            remedy="removing the row or adding the file",
        )
    return tuple(texts[name] for name in names)


def _rows(table: Path) -> list[Mapping[str, object]]:
    check_inside(table, table.parent)
    if (size := table.stat().st_size) > _LARGEST_TABLE:
        raise ImmunityError(
            expected=f"a table of captions of at most {_LARGEST_TABLE // 2**20} MiB",
            got=f"{size // 2**20} MiB in {table}",
            remedy="the captions of these pictures alone",
        )
    try:
        text = table.read_text(encoding="utf-8-sig")
        if table.suffix == ".csv":
            return list(csv.DictReader(io.StringIO(text, newline="")))
        # Not `splitlines`, which also breaks lines where JSON does not: at U+2028, among others.
        rows = [json.loads(line) for line in text.split("\n") if line.strip()]
    except (ValueError, RecursionError, csv.Error) as error:
        raise ImmunityError(
            expected=f"a readable {table}", got=str(error), remedy="repairing the file (UTF-8)"
        ) from error
    return [row if isinstance(row, dict) else {} for row in rows]


def _read_image(path: Path, size: int) -> Tensor:
    import numpy as np
    from PIL import Image, ImageOps

    try:
        with Image.open(path, formats=_FORMATS) as opened:
            if opened.width * opened.height > _MOST_PIXELS:
                raise ValueError(f"{opened.width} × {opened.height} pixels, more than {_MOST_PIXELS:,}")
            upright = ImageOps.exif_transpose(opened).convert("RGBA")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        # PIL reports a broken PNG as SyntaxError.
        raise ImmunityError(
            expected="a picture that can be read", got=f"{path} ({error})", remedy="removing or replacing that file"
        ) from error
    white = Image.new("RGBA", upright.size, "white")
    flat = Image.alpha_composite(white, upright).convert("RGB")
    square = ImageOps.fit(flat, (size, size), method=Image.Resampling.LANCZOS)
    return torch.from_numpy(np.array(square)).permute(2, 0, 1).contiguous().float() / 255
