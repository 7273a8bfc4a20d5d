"""The object judge and the style judge: small ResNets, on pictures augmented so that each sees only what it is asked.

The object judge first learns on small pictures (32 px), where a step costs a quarter, then on larger ones. The pool's
objects are further classes while it trains, for their variety, and are cut off its head at the end.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import augment
import autoencoder
import calibration
import judges
import numpy as np
import torch
import torch.nn.functional as F
import training
from data import Picture, World
from torch import Tensor, nn


@dataclass(frozen=True, kw_only=True)
class Size:
    """A ResNet's width and depth."""

    embedding: int
    hidden: tuple[int, ...]
    depths: tuple[int, ...]
    layer: Literal["basic", "bottleneck"] = "basic"


# Three stages, not four: on 32 px a fourth would work on a single position, where eight of a filter's nine taps never
# learn.
OBJECT = Size(embedding=32, hidden=(32, 96, 192), depths=(1, 1, 2))
# A vendor is known by its palette and its lines: many thresholds on colours in the stem, narrow layers on a fine grid,
# and no deep ones. Layers of 3×3 learned the training pictures (98%) and fewer of the fold's (83%).
STYLE = Size(embedding=192, hidden=(128, 256), depths=(2, 2), layer="bottleneck")
# Shares of the run and the pictures' size in each.
RESOLUTIONS = ((0.75, 32), (0.9, 48), (1.0, 64))

# The style judge learns from pieces of pictures (style is everywhere in them), then from whole ones. Pieces of 32 px
# for most of the run left it at 85%, on pictures that it had seen as on others: it saw too little at a time.
STYLE_PIECES, STYLE_PIECE = 0.6, 48
# The share of its pictures that the style judge sees as the autoencoder renders them.
DECODED = 0.8


def resnet(size: Size, classes: list[str]) -> nn.Module:
    from transformers import ResNetConfig, ResNetForImageClassification

    names = dict(enumerate(classes))
    config = ResNetConfig(
        embedding_size=size.embedding,
        hidden_sizes=list(size.hidden),
        depths=list(size.depths),
        layer_type=size.layer,
        id2label=names,
        label2id={name: i for i, name in names.items()},
    )
    return ResNetForImageClassification(config).to(memory_format=torch.channels_last)


@torch.no_grad()
def logits_of(model: nn.Module, ink: Tensor, batch: int = 128) -> Tensor:
    model.eval()
    return torch.cat([model(judges.normalised(part)).logits.float() for part in ink.split(batch)])


def size_at(step: int, steps: int) -> int:
    return next(size for share, size in RESOLUTIONS if (step + 1) / steps <= share)


def mixed(x: Tensor, labels: Tensor, generator: torch.Generator, share: float = 0.1) -> tuple[Tensor, Tensor, float]:
    """Some batches blend each picture with another (mixup); returns the partner's labels and the first's weight."""
    if torch.rand((), generator=generator) >= share:
        return x, labels, 1.0
    weight = 0.5 + 0.5 * float(torch.rand((), generator=generator))
    partner = torch.randperm(len(x), generator=generator)
    return x.mul(weight).add_(x[partner], alpha=1 - weight), labels[partner], weight


def train_object(work: Path, *, steps: int, batch: int = 64, seed: int = 11) -> None:
    if judges.done(work, "object"):
        return
    torch.manual_seed(seed)  # the initial weights only
    world, out = World.load(work), judges.folder(work, "object")
    classes = judges.objects_of(world, "trained", "held_out")
    pool = [name for name in judges.objects_of(world, "pool") if name not in classes]
    number = {name: i for i, name in enumerate(classes + pool)}
    main, other = world.where(splits=("trained", "held_out")), world.where(splits=("pool",))
    labels = torch.tensor([number.get(r.object, -1) for r in world.rows])
    test = world.where(splits=("trained", "held_out"), styles=(judges.UNSEEN_STYLE,))
    sizes = sorted({s for _, s in RESOLUTIONS})
    seen = np.concatenate([main, other])
    pictures = {s: (judges.ink(world.pictures[seen], s) * 255).round().byte() for s in sizes}
    seen_labels, unseen = labels[seen], judges.ink(world.pictures[test])
    model = resnet(OBJECT, classes + pool)
    plan = training.Plan(
        steps=steps, rate=3e-3, weight_decay=0.05, decay=0.6, average=0.998, sample_every=500, seed=seed
    )
    run = training.Run({"object": model}, plan, out)
    own = batch * 3 // 4

    def loss(step: int, generator: torch.Generator) -> Tensor:
        model.train()
        size = size_at(step, steps)
        picked = torch.cat(
            [
                torch.randint(len(main), (own,), generator=generator),
                len(main) + torch.randint(max(len(other), 1), (batch - own,), generator=generator),
            ]
        )
        picked = picked.clamp_max(len(seen) - 1)
        x = augment.augment(pictures[size][picked].float() / 255, size, augment.STRONG, generator)
        y = seen_labels[picked]
        x, partner, weight = mixed(x, y, generator)
        with training.lower_precision():
            logits = model(judges.normalised(x)).logits
        logits = logits.float()
        value = weight * F.cross_entropy(logits, y, label_smoothing=0.1)
        return value + (1 - weight) * F.cross_entropy(logits, partner, label_smoothing=0.1) if weight < 1 else value

    def clean(size: int) -> Tensor:
        return judges.normalised(judges.ink(world.pictures[main[:: max(len(main) // 1024, 1)]], size))

    def sample(step: int) -> None:
        size = size_at(
            step - 1, steps
        )  # features learned at one scale say little at another, so each is asked at its own
        judges.recalibrate(model, clean(size))
        right = logits_of(model, judges.ink(world.pictures[test], size))[:, : len(classes)].argmax(1) == labels[test]
        row = {"step": step, "pixels": size, "unseen_style_top1": round(right.float().mean().item(), 4)}
        print(f"object {row}", flush=True)
        with (out / "curve.jsonl").open("a") as file:
            file.write(json.dumps(row) + "\n")

    run.loop(loss, sample=sample, name="object")
    run.use_average()
    head = model.classifier[-1]
    final = resnet(OBJECT, classes)
    state = model.state_dict()
    for name in ("classifier.1.weight", "classifier.1.bias"):
        state[name] = state[name][: len(classes)]
    assert head.out_features == len(number)
    final.load_state_dict(state)
    judges.recalibrate(final, clean(judges.PIXELS))
    judges.save_model(final, out / "model")
    final.float()
    halves = np.array([classes.index(world.rows[i].object) % 2 for i in test]) == 0
    logits = logits_of(final, unseen)
    splits = np.array([world.rows[i].split for i in test])
    right = (logits.argmax(1) == labels[test]).numpy()
    report = calibration.report(
        logits, labels[test], torch.from_numpy(halves), out / "reliability.png", title="object judge, unseen style"
    )
    known = logits_of(final, judges.ink(world.pictures[main]))
    judges.write_report(
        work,
        "object",
        {
            "classes": len(classes),
            "test": f"style {judges.UNSEEN_STYLE!r} (no judge saw it), objects of trained and held_out",
            "pictures": len(test),
            "top1": float(right.mean()),
            "top1_by_split": {s: float(right[splits == s].mean()) for s in sorted(set(splits))},
            "top5": float((logits.topk(min(5, len(classes)), 1).indices == labels[test, None]).any(1).float().mean()),
            "top1_training_pictures": float((known.argmax(1) == labels[main]).float().mean()),
            **report,
            "trained_on": "trained, held_out and pool objects in the eight known styles",
            "steps": steps,
            "batch": batch,
            "seed": seed,
        },
    )


@torch.no_grad()
def start_with_colours(model: nn.Module) -> None:
    """Begin the stem as thresholds on single pixels' colours: a palette is what tells most vendors apart.

    The 7×7 filters keep a tenth of their random weights beside the centre; the norms' offsets are the thresholds.
    """
    convolution, norm = (
        next(m for m in model.modules() if isinstance(m, kind)) for kind in (nn.Conv2d, nn.BatchNorm2d)
    )
    convolution.weight *= 0.1
    convolution.weight[:, :, 3, 3] += torch.randn(convolution.weight.shape[:2]) * 0.3
    norm.bias.uniform_(-2, 2)


def same_objects(rows: list[Picture], styles: list[str]) -> Tensor:
    """int64 [objects, styles]: one picture of each object by every vendor, another object's where one is missing.

    A batch of whole rows shows the same things in all hands, so what differs is the hand.
    """
    table: dict[str, dict[str, int]] = {}
    by_style: dict[str, list[int]] = {style: [] for style in styles}
    for i, row in enumerate(rows):
        table.setdefault(row.object, {})[row.style] = i
        by_style[row.style].append(i)
    return torch.tensor(
        [[own.get(s, by_style[s][n % len(by_style[s])]) for s in styles] for n, own in enumerate(table.values())]
    )


def train_style(work: Path, *, steps: int, batch: int = 64, seed: int = 12) -> None:
    if judges.done(work, "style"):
        return
    torch.manual_seed(seed)
    world, out = World.load(work), judges.folder(work, "style")
    classes = list(judges.KNOWN)
    seen, test = world.where(splits=("trained", "held_out", "pool")), world.where(splits=("fold",))
    labels = torch.tensor([classes.index(r.style) if r.style in classes else -1 for r in world.rows])
    pictures = (judges.ink(world.pictures[seen]) * 255).round().byte()
    # What the generator draws has come out of its autoencoder. A judge that never saw one's traces takes them for a
    # hand.
    decoded = 255 - autoencoder.decoded(work, world.pictures[seen])
    unseen = judges.ink(world.pictures[test])
    sheets = same_objects([world.rows[i] for i in seen], classes)
    model = resnet(STYLE, classes)
    start_with_colours(model)
    plan = training.Plan(
        steps=steps, rate=4e-3, weight_decay=0.05, decay=0.6, average=0.995, sample_every=200, seed=seed
    )
    run = training.Run({"style": model}, plan, out)

    def loss(step: int, generator: torch.Generator) -> Tensor:
        model.train()
        picked = sheets[torch.randint(len(sheets), (batch // len(classes),), generator=generator)].flatten()
        size = STYLE_PIECE if step < STYLE_PIECES * steps else judges.PIXELS
        through = torch.rand(len(picked), 1, 1, 1, generator=generator) < DECODED
        x = augment.pieces(torch.where(through, decoded[picked], pictures[picked]).float() / 255, size, generator)
        with training.lower_precision():
            logits = model(judges.normalised(x)).logits
        return F.cross_entropy(logits.float(), labels[seen][picked], label_smoothing=0.05)

    clean = judges.normalised(judges.ink(world.pictures[seen[:: max(len(seen) // 1024, 1)]]))

    def sample(step: int) -> None:
        judges.recalibrate(model, clean)
        row = {
            "step": step,
            "fold_top1": round((logits_of(model, unseen).argmax(1) == labels[test]).float().mean().item(), 4),
        }
        print(f"style {row}", flush=True)
        with (out / "curve.jsonl").open("a") as file:
            file.write(json.dumps(row) + "\n")

    run.loop(loss, sample=sample, name="style")
    run.use_average()
    judges.recalibrate(model, clean)
    judges.save_model(model, out / "model")
    model.float()
    logits = logits_of(model, unseen)
    right = logits.argmax(1) == labels[test]
    rendered = logits_of(model, 1 - autoencoder.decoded(work, world.pictures[test]).float() / 255)
    known = logits_of(model, judges.ink(world.pictures[seen[::4]])).argmax(1) == labels[seen[::4]]
    fold = judges.objects_of(world, "fold")
    halves = torch.tensor([fold.index(world.rows[i].object) % 2 == 0 for i in test])
    report = calibration.report(
        logits, labels[test], halves, out / "reliability.png", title="style judge, unseen objects"
    )
    judges.write_report(
        work,
        "style",
        {
            "classes": len(classes),
            "test": "objects of the fold (no judge saw them) in the eight known styles",
            "pictures": len(test),
            "top1": float(right.float().mean()),
            "top1_after_the_autoencoder": float((rendered.argmax(1) == labels[test]).float().mean()),
            "top1_by_style": {
                c: float(right[labels[test] == i].float().mean())
                for i, c in enumerate(classes)
                if (labels[test] == i).any()
            },
            "top1_training_pictures": float(known.float().mean()),
            **report,
            "trained_on": "trained, held_out and pool objects in the eight known styles",
            "steps": steps,
            "batch": batch,
            "seed": seed,
        },
    )
