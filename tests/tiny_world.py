"""A whole tiny world: a random model, random judges, coloured squares for pictures. Everything is there but sense."""

import json
from pathlib import Path

import numpy as np
from PIL import Image

from tests import tiny, tiny_judges

STYLES = ("noto", "blob", "firefox")
OBJECTS = tiny_judges.CLASSES
"""All known to the object judge; the last is held out of training."""
SIDE = 16


def build(folder: Path, family: tiny.Family = "sd2") -> Path:
    """Writes a world's folder. There are no samples of "castle"."""
    tiny.build(folder / "generator", family)
    tiny_judges.world(folder, styles=STYLES[:2])
    objects = [
        {"name": "church", "phrase": "a church", "split": "trained", "neighbours": ["castle"]},
        {"name": "castle", "phrase": "a castle", "split": "trained"},
        {"name": "dog face", "phrase": "a dog face", "split": "held_out"},
    ]
    description = {
        "name": "toy",
        "resolution": SIDE,
        "styles": [{"name": name, "split": "fold" if name == "firefox" else "trained"} for name in STYLES],
        "objects": objects,
        "captions": {
            "object": ["image of {phrase}", "{object}"],
            "style": ["art by {style}"],
            "both": ["{phrase}, {style}"],
        },
    }
    (folder / "world.json").write_text(json.dumps(description))
    _samples(folder / "samples")
    return folder


def _samples(folder: Path) -> None:
    folder.mkdir()
    rows = []
    for place, name in enumerate(("church", "dog face")):
        strip = np.random.default_rng(place).integers(0, 256, (SIDE, SIDE * len(STYLES), 3), dtype=np.uint8)
        Image.fromarray(strip).save(folder / f"{place}.png")
        rows += [{"file": f"{place}.png", "tile": i, "object": name, "style": style} for i, style in enumerate(STYLES)]
    (folder / "index.json").write_text(json.dumps(rows))
