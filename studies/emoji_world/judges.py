"""Stage 3: the judges, which score what the generator draws and share no weight with it.

Each lives in ``<work>/judges/<name>/``: a resumable checkpoint while it trains, then ``model/`` (a standard
transformers folder in float16) and ``report.json`` (what was measured on the files that ship). `build_all` trains
what is missing, one after the other, and gathers ``<work>/judges/judges.json``; `export` copies only what ships.

Who may see what: every judge trains on pictures of the eight known styles only. The objects of the fold and the style
"firefox" are seen by none of them while training, and serve to score them.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
import vocabulary as v
from data import World
from torch import Tensor, nn

PIXELS = 64
# White becomes zero, so the zero padding of the convolutions continues the white paper.
MEAN, STD = 1.0, 0.5
KNOWN = tuple(s.name for s in v.STYLES)
UNSEEN_STYLE = v.HELD_OUT_STYLE.name
NAMES = ("object", "style", "clip", "dino", "lpips")


@dataclass(frozen=True, kw_only=True)
class Budget:
    """Training steps, of 64 pictures each (clip and dino: 128). The default ships; `SMOKE` only shows that all runs."""

    object: int = 4500
    style: int = 4000
    clip: int = 1800
    dino: int = 1500
    lpips: int = 300


SMOKE = Budget(object=4, style=4, clip=4, dino=4, lpips=4)


def folder(work: Path, name: str) -> Path:
    return work / "judges" / name


def ink(pictures: np.ndarray, size: int = PIXELS) -> Tensor:
    """uint8 [n, 64, 64, 3] on white to float ink [n, 3, size, size] in [0, 1], white being zero."""
    x = 1 - torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 255
    return x if size == PIXELS else F.interpolate(x, size=(size, size), mode="bicubic", antialias=True).clamp(0, 1)


def normalised(ink_: Tensor) -> Tensor:
    """What a judge is fed: (image - mean) / std, in the layout that is fastest here."""
    return ((1 - ink_ - MEAN) / STD).contiguous(memory_format=torch.channels_last)


def recalibrate(model: nn.Module, inputs: Tensor, batch: int = 128) -> None:
    """Measure the batch norms' statistics anew, on whole clean pictures: averaged weights need their own.

    Nothing else changes. ``inputs`` are normalised pictures.
    """
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    if not norms:
        return
    momenta = [m.momentum for m in norms]
    for m in norms:
        m.reset_running_stats()
        m.momentum = None  # the plain mean over the batches
    was_training = model.training
    model.train()
    with torch.no_grad():
        for part in inputs.split(batch):
            model(part)
    model.train(was_training)
    for m, momentum in zip(norms, momenta, strict=True):
        m.momentum = momentum


def objects_of(world: World, *splits: str) -> list[str]:
    return sorted({r.object for r in world.rows if r.split in splits})


def save_model(model: nn.Module, out: Path, *, pixels: int = PIXELS) -> None:
    """Write a transformers model as float16 safetensors, with the image preprocessing beside it."""
    out.mkdir(parents=True, exist_ok=True)
    model.eval().half().save_pretrained(out)  # type: ignore[operator]
    preprocessing = {
        "image_processor_type": "ViTImageProcessor",
        "do_resize": True,
        "size": {"height": pixels, "width": pixels},
        "resample": 3,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": [MEAN] * 3,
        "image_std": [STD] * 3,
    }
    (out / "preprocessor_config.json").write_text(json.dumps(preprocessing, indent=1))


def write_report(work: Path, name: str, report: dict[str, Any]) -> None:
    part = folder(work, name) / "report.part"
    part.write_text(json.dumps(report, indent=1, ensure_ascii=False))
    part.replace(folder(work, name) / "report.json")


def done(work: Path, name: str) -> bool:
    return (folder(work, name) / "report.json").exists()


def build_all(work: Path, budget: Budget | None = None) -> None:
    """Train every judge that is missing (each resumes from its checkpoint), then write ``judges.json``."""
    import judges_classifier
    import judges_clip
    import judges_dino
    import judges_lpips

    budget = budget or Budget()
    judges_classifier.train_object(work, steps=budget.object)
    judges_classifier.train_style(work, steps=budget.style)
    judges_clip.train_clip(work, steps=budget.clip)
    judges_dino.train_dino(work, steps=budget.dino)
    judges_lpips.train_lpips(work, steps=budget.lpips)
    summarise(work)


def summarise(work: Path) -> None:
    """Gather what was measured: ``judges.json`` has one entry a judge, and what they share."""
    summary: dict[str, Any] = {
        "preprocessing": {
            "pixels": PIXELS,
            "mean": [MEAN] * 3,
            "std": [STD] * 3,
            "range": "[0, 1] before mean and std",
        },
        "seen_by_judges": {"splits": ["trained", "held_out", "pool"], "styles": list(KNOWN)},
        "never_seen": {"split": "fold", "style": UNSEEN_STYLE},
    }
    for name in NAMES:
        report = json.loads((folder(work, name) / "report.json").read_text())
        model = folder(work, name) / "model"
        summary[name] = report | {"bytes": sum(f.stat().st_size for f in model.iterdir())}
    part = folder(work, "judges.part")
    part.write_text(json.dumps(summary, indent=1, ensure_ascii=False))
    part.replace(folder(work, "judges.json"))


def export(work: Path, destination: Path) -> None:
    """Copy what ships to an empty ``destination``: a folder a judge, ``judges.json`` and the reliability curves."""
    destination.mkdir(parents=True, exist_ok=True)
    for name in NAMES:
        shutil.copytree(folder(work, name) / "model", destination / name)
        if (folder(work, name) / "reliability.png").exists():
            shutil.copy2(folder(work, name) / "reliability.png", destination / name / "reliability.png")
    shutil.copy2(folder(work, "judges.json"), destination / "judges.json")


def reuse(shipped: Path, work: Path) -> None:
    """Take the judges that `export` once wrote to ``shipped`` as trained and measured, where ``work`` has none."""
    summary = json.loads((shipped / "judges.json").read_text())
    for name in NAMES:
        if not folder(work, name).exists():
            shutil.copytree(shipped / name, folder(work, name) / "model")
            (folder(work, name) / "model" / "reliability.png").unlink(missing_ok=True)
            if (shipped / name / "reliability.png").exists():
                shutil.copy2(shipped / name / "reliability.png", folder(work, name))
            write_report(work, name, {key: value for key, value in summary[name].items() if key != "bytes"})
