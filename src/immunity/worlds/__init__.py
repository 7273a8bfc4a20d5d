"""Worlds: a base model with its concepts, example pictures and judges. One is shipped inside the package.

The folder of a world holds

    world.json        its styles and objects with their splits, and how captions are formed
    generator/        the text-to-image model, a diffusers folder
    judges/<part>/    the models that score pictures: clip, dino, lpips, object, style
    samples/          real pictures: PNG strips of square tiles, and index.json that says what each tile shows
"""

import difflib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from immunity.concepts import Concept, Examples
from immunity.errors import ImmunityError

WORLDS = ("emoji",)

Split = Literal["trained", "held_out", "fold"]
"""trained: the generator saw it; held_out: only the judges did; fold: nobody did, it scores the judges themselves."""

Part = Literal["clip", "dino", "lpips", "object", "style"]


@dataclass(frozen=True, kw_only=True)
class Captions:
    """The forms of a world's captions; {phrase} is an object with its article, {style} the name of a style."""

    object: tuple[str, ...]
    style: tuple[str, ...]
    both: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A style or an object of a world."""

    name: str
    split: Split
    phrase: str = ""
    """An object with its article, as captions have it: "a church", "grapes"."""
    neighbours: tuple[str, ...] = ()
    family: str = ""
    """Of a style that has a near relative, what both are of: much of what one drew the other has nearly copied."""


@dataclass(frozen=True, kw_only=True)
class World:
    """What is in a world; the weights are opened only when they are asked for."""

    name: str
    folder: Path
    resolution: int
    styles: tuple[Entry, ...]
    objects: tuple[Entry, ...]
    captions: Captions
    study_objects: tuple[str, ...] = ()
    """The objects that the published studies use."""
    guidance: float = 7.5
    """Weight of the prompt against no prompt with which the generator draws best."""

    @classmethod
    def open(cls, name: str) -> "World":
        """A world of the package, by its name."""
        if name not in WORLDS:
            raise ImmunityError(expected=f"a world: {', '.join(WORLDS)}", got=repr(name), remedy="one of these")
        return cls.from_folder(Path(__file__).parent / name)

    @classmethod
    def from_folder(cls, folder: str | Path) -> "World":
        folder = Path(folder)
        try:
            values = json.loads((folder / "world.json").read_text(encoding="utf-8"))
            return cls(
                name=values["name"],
                folder=folder,
                resolution=values["resolution"],
                styles=tuple(_entry(row) for row in values["styles"]),
                objects=tuple(_entry(row) for row in values["objects"]),
                captions=Captions(**{kind: tuple(forms) for kind, forms in values["captions"].items()}),
                study_objects=tuple(values.get("study_objects", ())),
                guidance=values.get("guidance", cls.guidance),
            )
        except FileNotFoundError as error:
            raise _absent(folder, "world.json") from error
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ImmunityError(
                expected=f"a readable {folder.name}/world.json",
                got=f"{type(error).__name__}: {error}",
                remedy="installing the package again",
            ) from error

    @property
    def generator(self) -> Path:
        """The diffusers folder of the base model."""
        return self._existing("generator")

    def judge(self, part: Part) -> Path:
        """The folder of a judge."""
        if part not in get_args(Part):
            raise ImmunityError(expected=f"a judge: {', '.join(get_args(Part))}", got=repr(part), remedy="one of these")
        return self._existing(f"judges/{part}")

    def knows(self, name: str) -> bool:
        return any(entry.name == name for entry in (*self.objects, *self.styles))

    def concept(self, name: str) -> Concept:
        """An object or a style as a concept, with the prompts that this world's captions use."""
        for entry in self.objects:
            if entry.name == name:
                prompts = tuple(form.format(phrase=entry.phrase, object=name) for form in self.captions.object)
                return Concept(name=name, prompts=prompts, neighbours=entry.neighbours)
        for entry in self.styles:
            if entry.name == name:
                prompts = tuple(form.format(style=name) for form in self.captions.style)
                return Concept(name=name, kind="style", prompts=prompts, neighbours=entry.neighbours)
        names = [entry.name for entry in (*self.objects, *self.styles)]
        near = difflib.get_close_matches(name, names, n=3) or names[:5]
        raise ImmunityError(
            expected=f"an object or a style of the world {self.name}", got=repr(name), remedy=f"e.g. {', '.join(near)}"
        )

    def family(self, style: str) -> str:
        """What a style and its relatives have in common; itself where it has none."""
        return next((entry.family for entry in self.styles if entry.name == style), "") or style

    def concepts(self, kind: Literal["object", "style"], split: Split) -> tuple[Concept, ...]:
        """All concepts of a kind in a split, in the order of world.json."""
        entries = self.objects if kind == "object" else self.styles
        return tuple(self.concept(entry.name) for entry in entries if entry.split == split)

    def prompt(self, name: str, style: str, form: int = 0) -> str:
        """A caption that names an object and a style."""
        entry = next((entry for entry in self.objects if entry.name == name), None)
        phrase = entry.phrase if entry is not None else name
        return self.captions.both[form].format(phrase=phrase, object=name, style=style)

    def examples(self, concept: str, *, styles: Sequence[str] | None = None) -> Examples:
        """Real pictures of an object or in a style, each with the concept's first prompt; `styles` chooses the artists.

        Sources read "<world>/<object>/<style>".
        """
        prompt = self.concept(concept).prompts[0]
        index = self._existing("samples/index.json")
        rows = [
            row
            for row in json.loads(index.read_text(encoding="utf-8"))
            if concept in (row["object"], row["style"]) and (styles is None or row["style"] in styles)
        ]
        if not rows:
            raise ImmunityError(
                expected=f"sample pictures of {concept!r}" + (f" by {', '.join(styles)}" if styles else ""),
                got="none in this world",
                remedy="another concept or style, or a folder of your own pictures",
            )
        return Examples(
            self._tiles(rows),
            (prompt,) * len(rows),
            tuple(f"{self.name}/{row['object']}/{row['style']}" for row in rows),
            concept,
        )

    def _tiles(self, rows: Sequence[dict[str, Any]]) -> Tensor:
        import numpy as np
        from PIL import Image

        side = self.resolution
        tiles = []
        for row in rows:
            with Image.open(self.folder / "samples" / row["file"]) as strip:
                left = row.get("tile", 0) * side
                tiles.append(np.array(strip.convert("RGB").crop((left, 0, left + side, side))))
        return torch.from_numpy(np.stack(tiles)).permute(0, 3, 1, 2).contiguous().float() / 255

    def _existing(self, part: str) -> Path:
        path = self.folder / part
        if not path.exists():
            raise _absent(self.folder, part)
        return path


def _entry(row: dict[str, Any]) -> Entry:
    return Entry(**(row | {"neighbours": tuple(row.get("neighbours", ()))}))


def _absent(folder: Path, part: str) -> ImmunityError:
    return ImmunityError(
        expected=f"{part} of the world {folder.name} in the installed package",
        got="none: this copy was built without the world's weights",
        remedy="`make world`, which trains them, or a diffusers folder of your own",
    )
