"""Stage 6: pack the finished parts as the world that the package carries (src/immunity/worlds/emoji).

Copies generator and judges (float16 safetensors), cuts the sample pictures into strips, writes ``world.json`` and the
model card.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import captions
import evaluate
import judges
import numpy as np
import vocabulary as v
from data import PIXELS, World, slug
from PIL import Image

SAMPLE_LIMIT = 4 * 2**20
WEIGHT_LIMIT = 90 * 2**20
STYLE_OBJECTS = (
    40  # objects whose pictures stand for a style: the paper's twenty pictures of an artist, twice over, and spare ones
)


STUDY_ACCURACY = 0.9  # object top-1 that a candidate must reach, generated, to be a concept of the studies


def drawn_well(work: Path) -> list[str]:
    """The candidates that the generator draws well enough to be studied."""
    quality = json.loads((work / "evaluation" / "quality.json").read_text())
    measured = quality["generator"]["study concepts, object top-1"]
    return [n.lower() for n in v.STUDY_OBJECTS if measured.get(n.lower(), 0.0) >= STUDY_ACCURACY]


def _form(form: str) -> str:
    return form.replace("{a}", "{phrase}")


def describe(neighbours: dict[str, list[str]], study_objects: list[str]) -> dict[str, Any]:
    """The content of ``world.json``."""
    splits = (("trained", v.TRAINED), ("held_out", v.HELD_OUT), ("fold", v.FOLD))
    objects = [
        {
            "name": n.lower(),
            "split": split,
            "phrase": captions.with_article(n.lower()),
            "neighbours": neighbours.get(n.lower(), []),
        }
        for split, names in splits
        for n in names
    ]
    styles = [
        {"name": s.name, "split": split, **({"family": v.FAMILIES[s.name]} if s.name in v.FAMILIES else {})}
        for split, them in (("trained", v.STYLES), ("fold", (v.HELD_OUT_STYLE,)))
        for s in them
    ]
    return {
        "name": "emoji",
        "resolution": PIXELS,
        "styles": styles,
        "objects": objects,
        "study_objects": study_objects,
        "guidance": evaluate.GUIDANCE,
        "captions": {
            "object": [_form(f) for f in captions.OBJECT_ONLY],
            "style": list(captions.STYLE_ONLY),
            "both": [_form(f) for f in captions.BOTH],
        },
    }


def sample_rows(world: World) -> list[int]:
    """Pictures that studies and attacks need: the study objects and every held-out object in all sets, and enough of
    each style."""
    whole = {n.lower() for n in v.STUDY_OBJECTS + v.HELD_OUT}
    whole |= {n.lower() for n in v.TRAINED[:: max(len(v.TRAINED) // STYLE_OBJECTS, 1)]}
    return [i for i, r in enumerate(world.rows) if r.object in whole]


def write_samples(world: World, folder: Path) -> None:
    """One strip of square tiles for each object, and ``index.json`` that says what each tile shows."""
    folder.mkdir(parents=True)
    by_object: dict[str, list[int]] = {}
    for i in sample_rows(world):
        by_object.setdefault(world.rows[i].object, []).append(i)
    index = []
    for name, rows in sorted(by_object.items()):
        file = f"{slug(name)}.png"
        Image.fromarray(np.concatenate([world.pictures[i] for i in rows], axis=1)).save(folder / file, optimize=True)
        index += [{"object": name, "style": world.rows[i].style, "file": file, "tile": k} for k, i in enumerate(rows)]
    (folder / "index.json").write_text(json.dumps(index, ensure_ascii=False))


def neighbours(work: Path, count: int = 5) -> dict[str, list[str]]:
    """For each trained object, the others whose pictures the self-supervised judge finds closest on average: likely
    side effects."""
    import torch
    from transformers import AutoModel

    world = World.load(work)
    encoder = AutoModel.from_pretrained(judges.folder(work, "dino") / "model", dtype=torch.float32).eval()
    rows = world.where(splits=("trained",))
    ink = judges.ink(world.pictures[rows])
    with torch.no_grad():
        features = torch.cat(
            [encoder(pixel_values=judges.normalised(x)).pooler_output.flatten(1) for x in ink.split(64)]
        )
    features = torch.nn.functional.normalize(features, dim=1)
    names = sorted({world.rows[i].object for i in rows})
    means = torch.stack([features[[k for k, i in enumerate(rows) if world.rows[i].object == n]].mean(0) for n in names])
    close = torch.nn.functional.normalize(means, dim=1) @ torch.nn.functional.normalize(means, dim=1).T
    close.fill_diagonal_(-1)
    return {
        n: [names[j] for j in close[i].topk(min(count, len(names) - 1)).indices.tolist()] for i, n in enumerate(names)
    }


def size(folder: Path) -> int:
    return sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())


def forget_paths(folder: Path) -> None:
    """Remove from the configurations where a part was loaded from: that is this machine's business."""
    for path in (*folder.rglob("config.json"), *folder.rglob("model_index.json")):
        config = json.loads(path.read_text())
        if config.pop("_name_or_path", None) is not None:
            path.write_text(json.dumps(config, indent=2) + "\n")


def pack(work: Path, target: Path, card: str) -> None:
    """Write the world to ``target`` (through a temporary name), checking the size limits first."""
    part = target.with_name(target.name + ".part")
    if part.exists():
        shutil.rmtree(part)
    part.mkdir(parents=True)
    shutil.copytree(work / "generator" / "model", part / "generator")
    judges.export(work, part / "judges")
    forget_paths(part)
    world = World.load(work)
    write_samples(world, part / "samples")
    (part / "world.json").write_text(
        json.dumps(describe(neighbours(work), drawn_well(work)), indent=1, ensure_ascii=False)
    )
    (part / "README.md").write_text(card)
    shutil.copyfile(Path(__file__).with_name("NOTICE"), part / "NOTICE")
    weights, samples = size(part / "generator") + size(part / "judges"), size(part / "samples")
    if weights > WEIGHT_LIMIT or samples > SAMPLE_LIMIT:
        raise ValueError(
            f"weights {weights / 2**20:.1f} MiB of 90, samples {samples / 2**20:.1f} MiB of 4: too large to ship"
        )
    if target.exists():
        shutil.rmtree(target)
    part.rename(target)
    print(f"shipped: weights {weights / 2**20:.1f} MiB, samples {samples / 2**20:.2f} MiB")
