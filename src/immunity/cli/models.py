"""Verbs on a model as it is: info, sample, export."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from immunity.cli.options import ModelOptions, OutputOptions
from immunity.errors import ImmunityError

if TYPE_CHECKING:
    from torch import Tensor

    from immunity.deltas import Delta
    from immunity.models import DiffusionModel
    from immunity.worlds import World


def info(source: str, /, *, device: str = "cpu") -> None:
    """Tell what a model, a world or a delta is.

    Args:
        source: A diffusers folder, a world (emoji), a hub id, or the .safetensors file of a delta.
        device: Where the model is loaded.
    """
    from immunity.deltas import Delta
    from immunity.loading import load
    from immunity.worlds import WORLDS, World

    if source.endswith(".safetensors"):
        _print_delta(Delta.load(source))
        return
    if source in WORLDS and not Path(source).exists():
        _print_world(World.open(source))
    _print_model(load(source, device=device))


def sample(
    model: ModelOptions,
    output: OutputOptions,
    *,
    prompt: tuple[str, ...],
    images: int = 1,
    seed: int = 0,
    steps: int = 25,
    guidance: float = 7.5,
    negative: str = "",
    batch: int = 8,
) -> None:
    """Draw pictures: a folder with 000.png, 001.png, …, grid.png (a row for each prompt) and sample.json.

    Args:
        model: The model.
        output: The result.
        prompt: One or more prompts.
        images: Pictures for each prompt.
        seed: Of the first picture of each prompt; the next ones take the next seeds.
        steps: Denoising steps.
        guidance: Weight of the prompt against no prompt; 1 turns guidance off.
        negative: What guidance leads away from.
        batch: Pictures drawn at a time.
    """
    from tqdm import tqdm

    from immunity.atomic import replacing

    if images < 1 or not prompt:
        raise ImmunityError(
            expected="at least one prompt and one image each", got=f"{len(prompt)}, {images}", remedy="--images 1"
        )
    output.check()
    loaded = model.load()
    prompts = [text for text in prompt for _ in range(images)]
    seeds = [seed + i for _ in prompt for i in range(images)]
    with tqdm(desc="sample", unit="step", delay=3) as bar:

        def report(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        pictures = loaded.sample(
            prompts, seeds=seeds, steps=steps, guidance=guidance, negative=negative, batch=batch, progress=report
        )
    settings = {"steps": steps, "guidance": guidance, "negative": negative, "batch": batch, "dtype": model.dtype}
    with replacing(output.out, force=output.force) as folder:
        _write_pictures(folder, loaded, pictures, prompts, seeds, columns=images, settings=settings)
    print(output.out)


def export(model: ModelOptions, output: OutputOptions) -> None:
    """Write a model, with its deltas in it, as a plain diffusers folder.

    Args:
        model: The model.
        output: The result.
    """
    output.check()
    model.load().export(output.out, force=output.force)
    print(output.out)


def _print_delta(delta: "Delta") -> None:
    made = delta.provenance
    _print_table(
        {
            "delta": delta.hash,
            "method": f"{made.method} {json.dumps(made.config, ensure_ascii=False)}",
            "seed": made.seed,
            "base": f"{made.base} {made.base_hash}",
            "parents": ", ".join(made.parents) or "none",
            "tensors": f"{len(delta.tensors)}, {sum(value.numel() for value in delta.tensors.values()):,} values",
            "made": f"{made.created} with {', '.join(f'{name} {version}' for name, version in made.versions.items())}",
        }
    )


def _print_world(world: "World") -> None:
    counts = Counter(entry.split for entry in world.objects)
    _print_table(
        {
            "world": world.name,
            "styles": ", ".join(f"{entry.name} ({entry.split})" for entry in world.styles),
            "objects": ", ".join(f"{count} {split}" for split, count in counts.items()),
            "prompts": "; ".join((*world.captions.object[:1], *world.captions.style[:1], *world.captions.both[:1])),
        }
    )


def _print_model(model: "DiffusionModel") -> None:
    _print_table({"model": model.name, "hash": model.base_hash, "pictures": f"{model.resolution} px"})
    print("parameters")
    for group in model.groups:
        values = model.parameters(group).values()
        print(f"  {group:22}{sum(value.numel() for value in values):>15,} in {len(values)} tensors")


def _print_table(rows: Mapping[str, object]) -> None:
    for name, value in rows.items():
        print(f"{name:10}{value}")


def _write_pictures(
    folder: Path,
    model: "DiffusionModel",
    pictures: "Tensor",
    prompts: Sequence[str],
    seeds: Sequence[int],
    *,
    columns: int,
    settings: Mapping[str, object],
) -> None:
    from immunity.pictures import grid, write_png

    folder.mkdir()
    files = [f"{i:03}.png" for i in range(len(pictures))]
    for file, picture in zip(files, pictures, strict=True):
        write_png(picture, folder / file)
    write_png(grid(pictures, columns), folder / "grid.png")
    record = {
        "model": model.name,
        "base_hash": model.base_hash,
        "deltas": model.parents,
        "settings": settings,
        "images": [
            {"file": file, "prompt": prompt, "seed": seed}
            for file, prompt, seed in zip(files, prompts, seeds, strict=True)
        ],
    }
    (folder / "sample.json").write_text(json.dumps(record, indent=1, ensure_ascii=False), encoding="utf-8")
