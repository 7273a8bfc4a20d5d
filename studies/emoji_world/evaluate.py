"""Stage 5: what the finished world can do, measured: every number of the model card comes from here.

Writes ``<work>/evaluation/quality.json`` and the pictures of ``docs/world/``: the gallery, and the nearest-neighbour
page that shows how much of what is generated is memory. Generation is the slow part (about a quarter of an hour);
finished pictures are kept, so it resumes.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import autoencoder
import captions
import judges
import numpy as np
import torch
import training
import vocabulary as v
from data import World
from safetensors.torch import load_file, save_file
from torch import Tensor

GUIDANCE = 2.0
GALLERY = (
    "church",
    "castle",
    "dog face",
    "cat face",
    "pizza",
    "rocket",
    "guitar",
    "penguin",
    "sunflower",
    "bicycle",
    "hamburger",
    "strawberry",
    "fire engine",
    "cactus",
    "snail",
    "key",
)


@dataclass(frozen=True, kw_only=True)
class Scale:
    """How much is generated: all trained objects for the model card, a few at 2 steps for a smoke run."""

    objects: int | None = None
    steps: int = 8
    seeds: int = 4

    @property
    def names(self) -> list[str]:
        return [n.lower() for n in v.TRAINED[: self.objects]]

    @property
    def study(self) -> list[str]:
        return [n.lower() for n in v.STUDY_OBJECTS[: self.objects]]


@dataclass(frozen=True)
class Wanted:
    """One picture to generate: its prompt's object and style, and its seed."""

    object: str
    style: str
    seed: int

    @property
    def prompt(self) -> str:
        return captions.fill(captions.BOTH[0], self.object, self.style)


def load_pipeline(folder: Path):
    from diffusers import StableDiffusionPipeline

    pipe = StableDiffusionPipeline.from_pretrained(folder, torch_dtype=torch.float32, safety_checker=None)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def everything(scale: Scale) -> list[Wanted]:
    """One picture of each trained object in each known style."""
    pairs = [(name, style.name) for name in scale.names for style in v.STYLES]
    return [Wanted(name, style, 1000 + k) for k, (name, style) in enumerate(pairs)]


def generate(pipe, wanted: list[Wanted], cache: Path, steps: int, *, batch: int = 32) -> Tensor:
    """Float pictures [n, 3, 64, 64] in [0, 1], 8-bit exact; finished batches of the same model, prompts and seeds are
    read back from ``cache``."""
    what = hashlib.sha256(json.dumps([steps, GUIDANCE, [[w.prompt, w.seed] for w in wanted]]).encode())
    for name, weights in sorted(pipe.unet.state_dict().items()):
        what.update(name.encode() + weights.contiguous().numpy().tobytes())
    cache = cache / what.hexdigest()[:12]
    cache.mkdir(parents=True, exist_ok=True)
    done = []
    for start in range(0, len(wanted), batch):
        path = cache / f"{start:05d}.safetensors"
        if not path.exists():
            part = wanted[start : start + batch]
            seeds = [torch.Generator().manual_seed(w.seed) for w in part]
            pictures = pipe(
                [w.prompt for w in part],
                generator=seeds,
                num_inference_steps=steps,
                guidance_scale=GUIDANCE,
                output_type="pt",
            ).images
            save_file({"pictures": (pictures.clamp(0, 1) * 255).round().byte()}, path.with_suffix(".part"))
            path.with_suffix(".part").rename(path)
            print(f"generated {start + len(part)} of {len(wanted)} in {cache.parent.name}", flush=True)
        done.append(load_file(path)["pictures"])
    return torch.cat(done).float() / 255


class Judge:
    """A classifier of the world, as plain transformers loads it."""

    def __init__(self, folder: Path) -> None:
        from transformers import AutoModelForImageClassification

        self.model = AutoModelForImageClassification.from_pretrained(folder, dtype=torch.float32).eval()
        self.names = [self.model.config.id2label[i] for i in range(self.model.config.num_labels)]
        preprocessing = json.loads((folder / "preprocessor_config.json").read_text())
        self.mean, self.std = (torch.tensor(preprocessing[k]).view(3, 1, 1) for k in ("image_mean", "image_std"))

    @torch.no_grad()
    def names_of(self, pictures: Tensor) -> list[str]:
        logits = torch.cat([self.model(pixel_values=(x - self.mean) / self.std).logits for x in pictures.split(64)])
        return [self.names[i] for i in logits.argmax(1).tolist()]


def real_pictures(world: World, indices: np.ndarray) -> Tensor:
    return torch.from_numpy(world.pictures[indices]).permute(0, 3, 1, 2).float() / 255


def top1(said: list[str], truth: list[str]) -> float:
    return float(np.mean([a == b for a, b in zip(said, truth, strict=True)]))


def by_style(said: list[str], truth: list[str], asked: list[str]) -> dict[str, float]:
    """Top-1 among the pictures that were asked for in each style."""
    rows = {s.name: [i for i, name in enumerate(asked) if name == s.name] for s in v.STYLES}
    return {name: top1([said[i] for i in own], [truth[i] for i in own]) for name, own in rows.items()}


def generator_quality(work: Path, scale: Scale) -> dict[str, object]:
    """Shows 3: the classifiers' top-1 on generated pictures beside the same classifiers' on the real training
    pictures."""
    world, pipe = World.load(work), load_pipeline(work / "generator" / "model")
    objects, styles = (Judge(judges.folder(work, part) / "model") for part in ("object", "style"))
    trained = [i for i in world.where(splits=("trained",)) if world.rows[i].object in scale.names]
    real = real_pictures(world, np.array(trained))
    real_object = top1(objects.names_of(real), [world.rows[i].object for i in trained])
    real_style = top1(styles.names_of(real), [world.rows[i].style for i in trained])
    rendered = autoencoder.decoded(work, world.pictures[np.array(trained)]).float() / 255
    rendered_style = top1(styles.names_of(rendered), [world.rows[i].style for i in trained])
    wanted = everything(scale)
    made = generate(pipe, wanted, work / "evaluation" / "all", scale.steps)
    said, truth = objects.names_of(made), [w.object for w in wanted]
    hands, asked = styles.names_of(made), [w.style for w in wanted]
    made_object, made_style = top1(said, truth), top1(hands, asked)
    study = [Wanted(n, s.name, 10_000 + k) for n in scale.study for s in v.STYLES for k in range(scale.seeds)]
    seen = objects.names_of(generate(pipe, study, work / "evaluation" / "study", scale.steps))
    each = {n: [a for a, w in zip(seen, study, strict=True) if w.object == n] for n in scale.study}
    return {
        "pictures": len(wanted),
        "steps": scale.steps,
        "guidance": GUIDANCE,
        "real object top-1": real_object,
        "generated object top-1": made_object,
        "object ratio": made_object / max(real_object, 1e-9),
        "real style top-1": real_style,
        "real style top-1 after the autoencoder": rendered_style,
        "generated style top-1": made_style,
        "style ratio": made_style / max(real_style, 1e-9),
        "generated object top-1 by style": by_style(said, truth, asked),
        "generated style top-1 by style": by_style(hands, asked, asked),
        "study concepts, object top-1": {n: top1(answers, [n] * len(answers)) for n, answers in each.items()},
    }


def nearest(pictures: Tensor, among: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Root mean square pixel distance to, and index of, the ``k`` closest; both [n, k]."""
    distances = torch.cdist(pictures.flatten(1), among.flatten(1)) / pictures[0].numel() ** 0.5
    found = distances.topk(k, largest=False)
    return found.values, found.indices


def memory(work: Path, out: Path, scale: Scale) -> dict[str, float]:
    """Shows 5: generated pictures beside their closest training pictures, and how close those are in general."""
    world = World.load(work)
    trained = world.where(splits=("trained",))
    real = real_pictures(world, trained)
    wanted = everything(scale)
    made = generate(load_pipeline(work / "generator" / "model"), wanted, work / "evaluation" / "all", scale.steps)
    distance, index = nearest(made, real, 3)
    between, _ = nearest(real, real, 2)
    closest = [world.rows[trained[j]] for j in index[:, 0].tolist()]
    same = [w.object == row.object and w.style == row.style for w, row in zip(wanted, closest, strict=True)]
    shown = torch.linspace(0, len(made) - 1, 32).long().tolist()
    rows = torch.stack([torch.cat([made[i : i + 1], real[index[i]]]) for i in shown]).flatten(0, 1)
    training.grid(rows, 16, out / "nearest.png", scale=2)
    return {
        "nearest training picture is the one asked for": float(np.mean(same)),
        "median distance, generated to nearest training": float(distance[:, 0].median()),
        "median distance, training to nearest other training": float(between[:, 1].median()),
        "share closer than 0.05": float((distance[:, 0] < 0.05).float().mean()),
    }


def gallery(work: Path, out: Path, scale: Scale) -> None:
    """Shows 4: 16 objects × 8 styles, generated, at twice the size."""
    wanted = [Wanted(n, s.name, 77) for n in GALLERY[: scale.objects] for s in v.STYLES]
    made = generate(load_pipeline(work / "generator" / "model"), wanted, work / "evaluation" / "gallery", scale.steps)
    large = torch.nn.functional.interpolate(made, scale_factor=2, mode="bicubic", antialias=True)
    training.grid(large, len(v.STYLES), out / "gallery.png")


def autoencoder_quality(work: Path) -> dict[str, float]:
    from diffusers import AutoencoderKL

    world, model = (
        World.load(work),
        AutoencoderKL.from_pretrained(work / "autoencoder" / "model", torch_dtype=torch.float32).eval(),
    )
    splits = {"trained": ("trained",), "held_out objects": ("held_out",), "fold objects": ("fold",)}
    result = {
        f"PSNR {name}": float(autoencoder.psnr(model, world.pictures[world.where(splits=s)]).mean())
        for name, s in splits.items()
    }
    unseen = world.where(splits=("trained", "held_out"), styles=(v.HELD_OUT_STYLE.name,))
    return result | {"PSNR held-out set": float(autoencoder.psnr(model, world.pictures[unseen]).mean())}


def speed(work: Path) -> dict[str, float]:
    """Shows 6: eight pictures at 25 steps with guidance."""
    pipe = load_pipeline(work / "generator" / "model")
    prompts = [captions.fill(captions.BOTH[0], "church", s.name) for s in v.STYLES]
    pipe(prompts, num_inference_steps=1)
    start = time.perf_counter()
    pipe(prompts, num_inference_steps=25, guidance_scale=GUIDANCE)
    return {
        "seconds for eight pictures at 25 steps": time.perf_counter() - start,
        "threads": float(torch.get_num_threads()),
    }


def flat_colours(picture: np.ndarray) -> set[tuple[int, ...]]:
    """The colours of a picture's flat areas, in steps of four: a vendor draws from a palette."""
    pixels = picture.astype(int)
    inner = pixels[1:-1, 1:-1]
    flat = [np.abs(inner - other).max(-1) <= 1 for other in (pixels[:-2, 1:-1], pixels[1:-1, :-2])]
    colours, counts = np.unique(inner[flat[0] & flat[1]] // 4, axis=0, return_counts=True)
    return {tuple(colour) for colour in colours[counts >= 4].tolist()}


def style_by_palette(work: Path) -> float:
    """Top-1 on the fold of a naive Bayes classifier of exact colours: what the palettes alone give away.

    No judge for what is generated, whose colours are never exact; a measure of how hard the fold is.
    """
    world, known = World.load(work), [s.name for s in v.STYLES]
    seen: list[Counter[tuple[int, ...]]] = [Counter() for _ in known]
    taught = world.where(splits=("trained", "held_out", "pool"))
    drawn = Counter(world.rows[i].style for i in taught)
    for i in taught:
        seen[known.index(world.rows[i].style)].update(flat_colours(world.pictures[i]))
    right = []
    for i in world.where(splits=("fold",)):
        colours = flat_colours(world.pictures[i])
        likely = [sum(np.log((seen[k][c] + 0.05) / (drawn[name] + 1)) for c in colours) for k, name in enumerate(known)]
        right.append(known[int(np.argmax(likely))] == world.rows[i].style)
    return float(np.mean(right))


CURVES = {
    "object": ("unseen_style_top1", "object, on the unseen set"),
    "style": ("fold_top1", "style, on unseen objects"),
    "clip": ("zero_shot_top1", "image and text, zero-shot on the unseen set"),
    "dino": ("nearest_all", "self-supervised, nearest neighbour"),
}


def learning_curves(work: Path, out: Path) -> None:
    """Each judge's test score over its training, at the resolution that it had reached and with its raw weights'
    average; no picture where no judge was trained here (``--reuse judges``)."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.add_subplot()
    for name, (key, label) in CURVES.items():
        file = judges.folder(work, name) / "curve.jsonl"
        if file.exists():
            rows = [json.loads(line) for line in file.read_text().splitlines()]
            axes.plot([row["step"] for row in rows], [row[key] for row in rows], marker=".", label=label)
    axes.set(xlabel="training step", ylabel="top-1", ylim=(0, 1))
    axes.grid(alpha=0.3)
    if not axes.lines:
        return
    axes.legend(frameon=False)
    out.mkdir(parents=True, exist_ok=True)
    figure.savefig(out / "judges.png", dpi=110)


def style_confusion(work: Path, out: Path) -> None:
    """Which vendors the style judge takes for one another, on the fold's objects: rows are the true ones."""
    from matplotlib.figure import Figure

    world, judge = World.load(work), Judge(judges.folder(work, "style") / "model")
    test = world.where(splits=("fold",))
    said = judge.names_of(real_pictures(world, test))
    names = [s.name for s in v.STYLES]
    table = np.zeros((len(names), len(names)))
    for i, guess in zip(test, said, strict=True):
        table[names.index(world.rows[i].style), names.index(guess)] += 1
    table /= table.sum(1, keepdims=True).clip(1)
    figure = Figure(figsize=(6, 5), layout="constrained")
    axes = figure.add_subplot()
    axes.imshow(table, cmap="Blues", vmin=0, vmax=1)
    for row, column in np.argwhere(table >= 0.01):
        share = table[row, column]
        axes.text(column, row, f"{share:.0%}", ha="center", va="center", color="white" if share > 0.5 else "black")
    axes.set_xticks(range(len(names)), names, rotation=45, ha="right")
    axes.set_yticks(range(len(names)), names)
    axes.set(xlabel="taken for", ylabel="drawn by")
    figure.savefig(out / "styles.png", dpi=110)


def run(work: Path, out: Path, scale: Scale) -> dict[str, object]:
    quality: dict[str, object] = {"autoencoder": autoencoder_quality(work), "generator": generator_quality(work, scale)}
    gallery(work, out, scale)
    learning_curves(work, out)
    style_confusion(work, out)
    quality |= {"memory": memory(work, out, scale), "speed": speed(work)}
    quality["style by exact colours alone, a baseline"] = {"top-1 on the fold": style_by_palette(work)}
    (work / "evaluation" / "quality.json").write_text(json.dumps(quality, indent=1))
    return quality
