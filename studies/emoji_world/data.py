"""Stage 1: fetch the icon sets, render them, align their names, write the splits and the captions.

Writes to ``<work>/data``: ``pictures.safetensors`` (uint8 ``[n, 64, 64, 3]``, white background), ``index.json`` (one
row a picture: object, style, split) and ``splits.json``. About two minutes on two cores.
"""

from __future__ import annotations

import io
import json
import re
import subprocess
import tarfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import vocabulary as v
from PIL import Image
from safetensors.numpy import load_file, save_file
from tqdm import tqdm

PIXELS = 64
OVERSAMPLING = 2  # rendered larger, then Lanczos: resvg's own antialiasing is coarser at 64 px
POOL_GROUPS = (3, 4, 5, 6, 7)  # animals, food, travel, activities, objects of emojibase
POOL_MINIMUM_STYLES = 4
# Meaning carried by text, clock faces, people in all but name.
POOL_EXCLUDED = re.compile(
    r"o.clock|-thirty|place medal|person|man |woman (?!'s)|people|button|mahjong|calendar|post office"
)


@dataclass(frozen=True)
class Picture:
    """One rendered icon: ``split`` is trained, held_out, fold or pool; ``style`` is a caption name of `vocabulary`."""

    object: str
    style: str
    split: str


def slug(name: str) -> str:
    """The icon name that iconify gives to a CLDR short name."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower().replace("’", "").replace("'", "")).strip("-")


def fetch(package: str, version: str, folder: Path) -> dict[str, Any]:
    """Download one npm package (pinned) into ``folder`` unless it is there, and read its JSON files by name."""
    target = folder / f"{package.strip('@').replace('/', '-')}-{version}.tgz"
    if not target.exists():
        folder.mkdir(parents=True, exist_ok=True)
        subprocess.run(
            ["npm", "pack", "--silent", f"{package}@{version}"], cwd=folder, check=True, stdout=subprocess.DEVNULL
        )
    wanted = {"package/icons.json": "icons", "package/en/data.json": "labels"}
    with tarfile.open(target) as archive:
        members = {wanted[m.name]: archive.extractfile(m) for m in archive.getmembers() if m.name in wanted}
        return {name: json.load(file) for name, file in members.items() if file is not None}


class IconSet:
    """The SVG bodies of one iconify package, looked up by CLDR name."""

    def __init__(self, style: v.Style, data: dict[str, Any]) -> None:
        self.style, self._data = style, data
        self._icons, self._aliases = data["icons"], data.get("aliases", {})

    def find(self, name: str) -> str | None:
        key = slug(name)
        if self.style.package == "fxemoji":
            key = v.FXEMOJI_NAMES.get(name, key.replace("-", ""))
        seen = set()
        while key in self._aliases and key not in seen:
            seen.add(key)
            key = self._aliases[key]["parent"]
        return key if key in self._icons else None

    def render(self, key: str) -> np.ndarray:
        """uint8 [64, 64, 3], centred on white; a set whose canvas is not square is padded to a square."""
        import resvg_py

        icon = self._icons[key]
        get = lambda field, default: icon.get(field, self._data.get(field, default))  # noqa: E731
        width, height = get("width", 16), get("height", 16)
        left, top, side = get("left", 0), get("top", 0), max(width, height)
        left, top = left - (side - width) / 2, top - (side - height) / 2
        svg = (
            f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
            f'viewBox="{left} {top} {side} {side}">{icon["body"]}</svg>'
        )
        size = PIXELS * OVERSAMPLING
        png = resvg_py.svg_to_bytes(svg_string=svg, width=size, height=size, skip_system_fonts=True)
        picture = Image.open(io.BytesIO(bytes(png))).convert("RGBA")
        canvas = Image.new("RGBA", picture.size, "white")
        canvas.alpha_composite(picture)
        return np.asarray(canvas.convert("RGB").resize((PIXELS, PIXELS), Image.Resampling.LANCZOS))


def _pool_names(labels: list[dict[str, Any]]) -> Iterator[str]:
    """Other drawable things: they teach the autoencoder and the judges to see, and never stand in a split."""
    taken = {slug(name) for name in v.TRAINED + v.HELD_OUT + v.FOLD}
    # A relative of a hidden concept ("goat" of "mountain goat") would leak it: any shared word keeps a name out of
    # the pool.
    hidden = {word for name in v.HELD_OUT + v.FOLD for word in re.findall(r"[a-z]{3,}", name.lower())} - {
        "with",
        "face",
        "the",
    }
    for row in labels:
        name = row["label"]
        if row.get("group") not in POOL_GROUPS or slug(name) in taken or POOL_EXCLUDED.search(name.lower()):
            continue
        if hidden.isdisjoint(re.findall(r"[a-z]{3,}", name.lower())):
            yield name


def build(work: Path, *, limit: int | None = None) -> None:
    """Render every picture of the splits. ``limit`` keeps the first so many objects of each split (the small
    budget)."""
    out = work / "data"
    if (out / "index.json").exists():
        return
    npm = work / "npm"
    labels = fetch("emojibase-data", v.EMOJIBASE_VERSION, npm)["labels"]
    sets = [
        IconSet(s, fetch(f"@iconify-json/{s.package}", s.version, npm)["icons"]) for s in (*v.STYLES, v.HELD_OUT_STYLE)
    ]
    splits = {"trained": v.TRAINED, "held_out": v.HELD_OUT, "fold": v.FOLD, "pool": tuple(_pool_names(labels))}
    rows: list[Picture] = []
    images: list[np.ndarray] = []
    for split, names in splits.items():
        for name in tqdm(names[:limit], desc=f"render {split}"):
            found = [(s, key) for s in sets if (key := s.find(name)) is not None]
            known = [s for s, _ in found if s.style != v.HELD_OUT_STYLE]
            if split == "pool" and len(known) < POOL_MINIMUM_STYLES:
                continue
            if split == "held_out" and len(known) < 5:
                raise ValueError(
                    f"held-out object {name!r} is drawn by {len(known)} known sets; personalization needs 5"
                )
            if split == "trained" and len(known) < 8:
                missing = {s.name for s in v.STYLES} - {s.style.name for s in known}
                raise ValueError(f"trained object {name!r} is missing in {missing}")
            for icons, key in found:
                if split == "pool" and icons.style == v.HELD_OUT_STYLE:
                    continue
                images.append(icons.render(key))
                rows.append(Picture(name.lower(), icons.style.name, split))
    pictures = np.stack(images)
    out.mkdir(parents=True, exist_ok=True)
    save_file({"pictures": pictures}, out / "pictures.safetensors")
    summary = {split: sorted({r.object for r in rows if r.split == split}) for split in splits}
    (out / "splits.json").write_text(json.dumps(summary, indent=1, ensure_ascii=False))
    (out / "index.json").write_text(json.dumps([asdict(r) for r in rows], ensure_ascii=False))


@dataclass(frozen=True)
class World:
    """The rendered pictures: ``pictures`` uint8 [n, 64, 64, 3] and one `Picture` row for each."""

    pictures: np.ndarray
    rows: list[Picture]

    @classmethod
    def load(cls, work: Path) -> World:
        rows = [Picture(**row) for row in json.loads((work / "data" / "index.json").read_text())]
        return cls(load_file(work / "data" / "pictures.safetensors")["pictures"], rows)

    def where(self, *, splits: tuple[str, ...], styles: tuple[str, ...] | None = None) -> np.ndarray:
        """Indices of the pictures in these splits and styles (by default the styles that the generator knows)."""
        styles = styles or tuple(s.name for s in v.STYLES)
        return np.array([i for i, r in enumerate(self.rows) if r.split in splits and r.style in styles], dtype=np.int64)
