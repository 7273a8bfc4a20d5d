"""The self-supervised judge, which plays DINO's part: no label, no text, only that two augmentations show one picture.

A ResNet (the image–text judge's tower is a ConvNext), trained by contrast of two views as SimCLR (Chen et al.,
2020), with the same strong augmentations as the object judge. Features of the backbone itself are contrasted beside
those of a projection head: the features are what ships.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import augment
import judges
import numpy as np
import torch
import torch.nn.functional as F
import training
from data import World
from torch import Tensor, nn

HIDDEN = (32, 96, 192)  # three stages, as the object judge and for its reason
DEPTHS = (1, 1, 1)
TEMPERATURE = 0.15
RESOLUTIONS = ((0.8, 32), (0.92, 48), (1.0, 64))
# Pairs of vendors that draw alike: a neighbour in the other one is no proof.
RELATIVES = {"noto": "blob", "fluent": "fluent flat", "emojione": "emojione v1"}


def build() -> nn.Module:
    from transformers import ResNetConfig, ResNetModel

    config = ResNetConfig(embedding_size=HIDDEN[0], hidden_sizes=list(HIDDEN), depths=list(DEPTHS), layer_type="basic")
    return ResNetModel(config).to(memory_format=torch.channels_last)


class Projector(nn.Module):
    """Thrown away after training."""

    def __init__(self, width: int = HIDDEN[-1], out: int = 128) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(width, width, bias=False), nn.BatchNorm1d(width), nn.ReLU(), nn.Linear(width, out)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


def two_views(a: Tensor, b: Tensor, temperature: float) -> Tensor:
    """NT-Xent: each view must find its partner among all other views of the batch."""
    x = F.normalize(torch.cat([a, b]), dim=1)
    n = len(a)
    logits = (x @ x.T / temperature).masked_fill(torch.eye(2 * n, dtype=torch.bool), -torch.inf)
    return F.cross_entropy(logits, torch.arange(2 * n).roll(n))


def features(model: nn.Module, ink: Tensor, batch: int = 128) -> Tensor:
    model.eval()
    with torch.no_grad():
        return torch.cat([model(judges.normalised(part)).pooler_output.flatten(1) for part in ink.split(batch)])


def nearest(x: Tensor, objects: list[str], styles: list[str], *, without_relatives: bool = False) -> np.ndarray:
    """bool [n]: is the nearest picture by cosine, of all those in other styles, of the same object?"""
    x = F.normalize(x, dim=1)
    twins = RELATIVES | {b: a for a, b in RELATIVES.items()}
    hands = sorted(set(styles))
    hidden = torch.tensor([[h == s or (without_relatives and twins.get(s) == h) for h in hands] for s in hands])
    hand = torch.tensor([hands.index(s) for s in styles])
    scores = (x @ x.T).masked_fill(hidden[hand][:, hand], -torch.inf)
    names = np.array(objects)
    return names[scores.argmax(1).numpy()] == names


def pixels(ink: Tensor) -> Tensor:
    """The baseline that training must beat: 16×16 colours, centred on the mean picture."""
    small = F.adaptive_avg_pool2d(ink, 16).flatten(1)
    return small - small.mean(0)


def scores(x: Tensor, rows: list[Any]) -> dict[str, Any]:
    """Nearest neighbours over all splits together and within each: all styles, then without each vendor's relative."""
    objects, styles, splits = [r.object for r in rows], [r.style for r in rows], np.array([r.split for r in rows])
    result: dict[str, Any] = {}
    for relatives in (True, False):
        right = nearest(x, objects, styles, without_relatives=not relatives)
        row = {"all": float(right.mean()), **{s: float(right[splits == s].mean()) for s in sorted(set(splits))}}
        result["nearest" if relatives else "nearest_without_relatives"] = row
    return result


def train_dino(work: Path, *, steps: int, batch: int = 128, seed: int = 14) -> None:
    if judges.done(work, "dino"):
        return
    torch.manual_seed(seed)
    world, out = World.load(work), judges.folder(work, "dino")
    seen = world.where(splits=("trained", "held_out", "pool"))
    sizes = sorted({s for _, s in RESOLUTIONS})
    pictures = {s: (judges.ink(world.pictures[seen], s) * 255).round().byte() for s in sizes}
    tested = world.where(splits=("trained", "held_out", "fold"))
    stranger = world.where(splits=("trained", "held_out", "fold"), styles=(*judges.KNOWN, judges.UNSEEN_STYLE))
    model, projector = build(), Projector()
    plan = training.Plan(
        steps=steps, rate=2e-3, weight_decay=0.02, decay=0.5, average=0.995, sample_every=100, seed=seed
    )
    run = training.Run({"dino": model, "projector": projector}, plan, out)

    def size_at(step: int) -> int:
        return next(size for share, size in RESOLUTIONS if (step + 1) / steps <= share)

    def loss(step: int, generator: torch.Generator) -> Tensor:
        model.train()
        size = size_at(step)
        picked = torch.randint(len(seen), (batch,), generator=generator)
        source = pictures[size][picked].float() / 255
        views = torch.cat([augment.augment(source, size, augment.STRONG, generator) for _ in range(2)])
        with training.lower_precision():
            x = model(judges.normalised(views)).pooler_output.flatten(1)
        a, b = x.float().chunk(2)
        c, d = projector(x.float()).chunk(2)
        return two_views(a, b, TEMPERATURE) + two_views(c, d, TEMPERATURE)

    def recalibrate(size: int) -> None:
        judges.recalibrate(
            model, judges.normalised(judges.ink(world.pictures[seen[:: max(len(seen) // 1024, 1)]], size))
        )

    def sample(step: int) -> None:
        size = size_at(step - 1)
        recalibrate(size)
        found = scores(features(model, judges.ink(world.pictures[tested], size)), [world.rows[i] for i in tested])
        row = {
            "step": step,
            "pixels": size,
            **{f"{k}_{s}": round(value, 4) for k, part in found.items() for s, value in part.items()},
        }
        print(f"dino {row}", flush=True)
        with (out / "curve.jsonl").open("a") as file:
            file.write(json.dumps(row) + "\n")

    run.loop(loss, sample=sample, name="dino")
    run.use_average()
    recalibrate(judges.PIXELS)
    judges.save_model(model, out / "model")
    model.float()
    ink, rows = judges.ink(world.pictures[tested]), [world.rows[i] for i in tested]
    with_stranger = judges.ink(world.pictures[stranger])
    strange_rows = [world.rows[i] for i in stranger]
    strange = np.array([r.style == judges.UNSEEN_STYLE for r in strange_rows])
    names = ([r.object for r in strange_rows], [r.style for r in strange_rows])
    judges.write_report(
        work,
        "dino",
        {
            "test": "query: each picture of the eight known styles; gallery: all pictures of the other styles, of "
            "trained, held_out and fold objects; by split of the query (fold: objects that no judge saw)",
            "pictures": len(tested),
            **scores(features(model, ink), rows),
            "pixels_16x16": scores(pixels(ink), rows),
            "unseen_style_query": float(nearest(features(model, with_stranger), *names)[strange].mean()),
            "unseen_style_query_pixels": float(nearest(pixels(with_stranger), *names)[strange].mean()),
            "trained_on": "pictures alone, of trained, held_out and pool objects in the eight known styles",
            "steps": steps,
            "batch": batch,
            "seed": seed,
        },
    )
