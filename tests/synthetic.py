"""Made-up records of a study: smooth curves, coloured shapes. Nothing in them comes from a model, and it shows."""

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from immunity.records import Arm, Cell, MetricSpec, Plan, Point, RecordFolder, Records, Run

STEPS = (0, 15, 50, 100, 200)
OTHERS = ("castle", "house", "pizza", "dog face")

ARMS = (
    Arm(name="base", role="base", label="Base model"),
    Arm(name="erased", role="erased", label="Erased (ESD-x)", config={"method": "Esd", "lr": 1e-5, "steps": 1000}),
    Arm(name="control", role="control", label="Control"),
    Arm(
        name="imma",
        role="defended",
        label="Immunized (IMMA)",
        config={"method": "Imma", "inner_lr": 1e-4, "outer_lr": 1e-5, "group": "attention"},
    ),
    Arm(name="ascent", role="baseline", label="Ascent only", config={"method": "AscentOnly", "lr": 1e-5}),
    Arm(name="noise", role="baseline", label="Random, equal norm", config={"method": "RandomPerturbation"}),
)
METRICS = (
    MetricSpec(name="clip", label="CLIP similarity"),
    MetricSpec(name="dino", label="DINO similarity"),
    MetricSpec(name="lpips", label="1 − LPIPS"),
    MetricSpec(name="accuracy", kind="accuracy", label="Classifier accuracy"),
)

SLOWNESS = {"control": 30.0, "imma": 110.0, "ascent": 45.0, "noise": 31.0}
"""Steps in which an arm's concept comes back to 1 − 1/e of the base model's level, when the attack teaches it."""


def plan(**changes) -> Plan:
    made = Plan(
        title="Relearning church on a made-up model",
        concepts=("church",),
        seeds=(0, 1, 2),
        arms=ARMS,
        metrics=METRICS,
        benign=("teapot",),
        settings={"attack": {"method": "Lora", "rank": 4, "lr": 1e-3, "steps": 200, "batch": 4}, "guidance": 7.5},
    )
    return dataclasses.replace(made, **changes)


def level(arm: str, step: int, *, slowness: Mapping[str, float], benign: bool) -> float:
    """How much of the subject is there, from 0 to 1."""
    if arm == "base":
        return 1.0
    if arm == "erased":
        return 0.1
    slow = slowness["control"] * (1.05 if arm == "imma" else 1.0) if benign else slowness[arm]
    start = 0.1 if arm == "control" else 0.1 * slowness["control"] / slow
    return start + (0.95 - start) * (1 - math.exp(-step / slow))


def picture(amount: float, *, seed: int, size: int = 64, benign: bool = False) -> Image.Image:
    """A house with as much of a tower on it as there is of the concept; a teapot-like blob for a benign subject."""
    random = np.random.default_rng(seed)
    hue = tuple(int(value) for value in random.integers(90, 220, 3))
    image = Image.new("RGB", (size, size), (250, 248, 244))
    draw = ImageDraw.Draw(image)
    left = size // 6 + int(random.integers(-3, 4))
    if benign:
        grown = size * (0.12 + 0.25 * amount)
        draw.ellipse([size / 2 - grown, size / 2 - grown, size / 2 + grown, size / 2 + grown], fill=hue)
        return image
    draw.rectangle([left, size * 0.55, size * 0.85, size * 0.9], fill=hue)
    height = size * 0.55 * amount
    draw.rectangle([left, size * 0.55 - height * 0.7, left + size * 0.22, size * 0.9], fill=hue)
    tip = size * 0.55 - height
    draw.polygon(
        [
            (left, size * 0.55 - height * 0.7),
            (left + size * 0.22, size * 0.55 - height * 0.7),
            (left + size * 0.11, tip),
        ],
        fill=(120, 40, 40),
    )
    return image


def pictures(amount: float, *, count: int, benign: bool = False) -> Tensor:
    arrays = [np.asarray(picture(amount, seed=i, benign=benign)) for i in range(count)]
    return torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2).float() / 255


def cell(
    arm: str,
    *,
    concept: str = "church",
    subject: str | None = None,
    seed: int = 0,
    steps: tuple[int, ...] = STEPS,
    count: int = 8,
    slowness: Mapping[str, float] = SLOWNESS,
    noise: float = 0.03,
    **changes,
) -> Cell:
    subject = subject or concept
    benign = subject != concept
    # The picture's own difficulty is the same in every arm: that is what pairing takes out.
    shared = np.random.default_rng([seed, len(subject)]).normal(0, noise, (4, count))
    own = np.random.default_rng([seed, *arm.encode()])
    points = []
    for step in steps if arm not in ("base", "erased") else (0,):
        amount = level(arm, step, slowness=slowness, benign=benign)
        scores = {
            "clip": tuple(0.35 + 0.5 * amount + shared[0] + own.normal(0, noise / 3, count)),
            "dino": tuple(0.10 + 0.7 * amount + shared[1] + own.normal(0, noise / 3, count)),
            "lpips": tuple(0.30 + 0.3 * amount + shared[2] + own.normal(0, noise / 3, count)),
            "accuracy": tuple(float(amount + 4 * shared[3][i] > 0.5) for i in range(count)),
        }
        scores = {name: tuple(map(float, values)) for name, values in scores.items()}
        kept = {"base": 1.0, "erased": 0.97, "control": 0.97}.get(arm, 0.95)
        others = {name: tuple(float(value < kept) for value in own.random(40)) for name in OTHERS} if step == 0 else {}
        points.append(Point(step=step, scores=scores, others=others))
    attacked = arm not in ("base", "erased")
    start = {"imma": 0.31, "ascent": 0.2}.get(arm, 0.148)
    losses = tuple(
        0.045 + (start - 0.045) * math.exp(-t / slowness[arm]) * (1 + 0.2 * own.normal()) for t in range(max(steps))
    ) if attacked else ()  # fmt: skip
    deltas = {} if arm == "base" else {"erase": f"{seed}e" * 32}
    if arm in ("imma", "ascent", "noise"):
        deltas["immunize"] = f"{seed}{arm[0]}" * 32
    fields = {
        "concept": concept,
        "seed": seed,
        "arm": arm,
        "subject": subject,
        "prompts": tuple(f"image of a {subject}" for _ in range(count)),
        "picture_seeds": tuple(1000 * seed + i for i in range(count)),
        "points": tuple(points),
        "losses": losses,
        "run": Run(
            base="made-up model",
            base_hash="ab" * 32,
            method={"imma": "Imma", "ascent": "AscentOnly", "noise": "RandomPerturbation", "erased": "Esd"}.get(
                arm, ""
            ),
            config={"outer_lr": 1e-5} if arm == "imma" else {},
            attack={"method": "Lora", "rank": 4, "lr": 1e-3} if attacked else {},
            deltas=deltas,
            examples={
                "attack": tuple(f"a{i}" for i in range(20)) if attacked else (),
                "defence": tuple(f"d{i}" for i in range(20)) if arm == "imma" else (),
            },
            versions={"immunity": "0.1.0", "torch": "2.13.0", "diffusers": "0.42.1"},
            machine="a made-up machine, 2 cores",
            wall_seconds=61.5 if attacked else 4.2,
            peak_bytes=1_450_000_000,
            created="2026-01-01T00:00:00+00:00",
        ),
    }
    return Cell(**(fields | changes))


def write_study(folder: Path, made: Plan | None = None, **options) -> RecordFolder:
    """A whole study on disk, pictures and all. `options` go to `cell`."""
    made = made or plan()
    target = RecordFolder.create(folder, made)
    slowness = options.get("slowness", SLOWNESS)
    for key in made.cells():
        if not target.has(key):
            record = cell(key.arm, concept=key.concept, subject=key.subject, seed=key.seed, **options)
            benign = key.subject != key.concept
            shown = {
                step: pictures(level(key.arm, step, slowness=slowness, benign=benign), count=4, benign=benign)
                for step in record.steps
            }
            target.write(record, shown)
    return target


def study(folder: Path, made: Plan | None = None, **options) -> Records:
    """A whole study in memory, without pictures."""
    made = made or plan()
    cells = (cell(key.arm, concept=key.concept, subject=key.subject, seed=key.seed, **options) for key in made.cells())
    return Records(folder, made, tuple(cells))
