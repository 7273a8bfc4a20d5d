"""Verbs on a model as it is: info, sample, export."""

import json
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from immunity.checks import generator_seed
from immunity.cli.options import ModelOptions, OutputOptions
from immunity.errors import ImmunityError
from immunity.filenames import DELTA_FILE, GRID_FILE, SAMPLE_FILE

if TYPE_CHECKING:
    from torch import Tensor

    from immunity.evaluation.measure import Measurement
    from immunity.models import DiffusionModel
    from immunity.worlds import World


def info(source: str, /, *, concepts: bool = False, device: str = "cpu") -> None:
    """Tell what a model, a world or a file is: what it changes, and where it comes from.

    Args:
        source: A diffusers folder, a world (emoji), a hub id, or a file: a delta, an adapter, a learned token,
            published weights, a whole model (.safetensors, .pt, .bin, .ckpt); or the folder of an adapter.
        concepts: Of a world, name every object and style instead.
        device: Where the model is loaded.
    """
    from immunity.files.describing import is_described
    from immunity.loading import load
    from immunity.worlds import WORLDS, World

    world = World.open(source) if source in WORLDS and not Path(source).exists() else None
    if concepts:
        if world is None:
            raise ImmunityError(
                expected=f"a world, which has concepts: {', '.join(WORLDS)}",
                got=source,
                remedy="leaving --concepts out",
            )
        _print_concepts(world)
        return
    if world is None and is_described(Path(source)):
        _print_file(Path(source))
        return
    if world is not None:
        _print_world(world)
    _print_model(load(source, device=device))


def sample(
    model: ModelOptions,
    output: OutputOptions,
    *,
    prompt: tuple[str, ...],
    count: int = 1,
    seed: int = 0,
    steps: int = 25,
    guidance: float | None = None,
    negative: str = "",
    batch: int = 8,
    tokens: tuple[Path, ...] = (),
) -> None:
    """Draw pictures: a folder with 000.png, …, metadata.csv, grid.png (a row for each prompt) and sample.json.

    The prompts are in metadata.csv too, so that adapt, immunize and poison take the folder as it is (--images).

    Args:
        model: The model.
        output: The result.
        prompt: One or more prompts.
        count: Pictures for each prompt.
        seed: Of the first picture of each prompt; the next ones take the next seeds.
        steps: Denoising steps.
        guidance: Weight of the prompt against no prompt, 7.5 unless given (of a world, its own); 1 turns guidance off.
        negative: What guidance leads away from.
        batch: Pictures drawn at a time.
        tokens: Learned tokens that prompts may use: files of Textual Inversion, or folders that adapt wrote.
    """
    from immunity.atomic import replacing
    from immunity.drawing import draw
    from immunity.files import read_token

    if count < 1 or not prompt:
        raise ImmunityError(
            expected="at least one prompt and one picture each", got=f"{len(prompt)}, {count}", remedy="--count 1"
        )
    generator_seed(seed, count=count)
    output.check_folder(SAMPLE_FILE, inputs=(*model.inputs, *tokens))
    loaded, weight = model.load(), model.guidance(guidance)
    prompts = [text for text in prompt for _ in range(count)]
    seeds = [seed + i for _ in prompt for i in range(count)]
    with ExitStack() as taught:
        for path in tokens:
            _tell_of_delta(path, loaded)
            taught.enter_context(read_token(path).learned(loaded).known_to(loaded))
        pictures = draw(
            loaded, prompts, seeds, label="sample", steps=steps, guidance=weight, negative=negative, batch=batch
        )
    settings = {"steps": steps, "guidance": weight, "negative": negative, "batch": batch, "dtype": model.dtype}
    settings |= {"tokens": [path.name for path in tokens]} if tokens else {}
    with replacing(output.out, force=output.force) as folder:
        _write_pictures(folder, loaded, pictures, prompts, seeds, columns=count, settings=settings)
    print(output.out)


def _tell_of_delta(tokens: Path, model: "DiffusionModel") -> None:
    """Of Custom Diffusion and pivotal tuning, the words are half of what was learned."""
    from immunity.deltas import Delta

    delta = tokens / DELTA_FILE
    if delta.is_file() and Delta.load(delta).hash not in model.parents:
        warnings.warn(
            f"{tokens} changes weights, too, which --tokens alone leaves out: --deltas {tokens}", stacklevel=2
        )


def export(model: ModelOptions, output: OutputOptions, *, measured: tuple[Path, ...] = ()) -> None:
    """Write a model, with its deltas in it, as a plain diffusers folder with a model card.

    The card, README.md, says what was erased, immunized and measured, as far as the deltas and the scores tell.
    Weights are written in the type that --dtype says (float32 without it, whatever the folder has), and those of the
    autoencoder in float32. A safety checker is left out, and named.

    Args:
        model: The model.
        output: The result.
        measured: Scores that `immunity measure` wrote of this very model with these deltas, for the card.
    """
    from immunity.atomic import replacing
    from immunity.evaluation.card import model_card

    # The card, as anybody's model has the other files.
    output.check_folder("README.md", saying='tags: ["immunity"', inputs=(*model.inputs, *measured))
    base = model.load_base()
    name = base.model.name
    loaded = base.with_deltas()
    card = model_card(
        output.out.resolve().name,
        base=name,
        base_hash=loaded.base_hash,
        deltas=base.deltas,
        measured=[_measured(path, loaded) for path in measured],
    )
    if loaded.left_out:
        card += f"\nLeft out, though the base model has it: {', '.join(loaded.left_out)}.\n"
    with replacing(output.out, force=output.force) as folder:
        loaded.export(folder)
        (folder / "README.md").write_text(card, encoding="utf-8")
    print(output.out)


def _measured(path: Path, model: "DiffusionModel") -> "Measurement":
    from immunity.evaluation.measure import Measurement

    found = Measurement.load(path)
    if (found.base_hash, found.deltas) != (model.base_hash, model.parents):
        raise ImmunityError(
            expected=f"scores of {model.name} with these deltas",
            got=f"{path}, of {found.model or 'pictures from a folder'}"
            + (" with others" if found.base_hash == model.base_hash else ""),
            remedy="immunity measure with the same --model and --deltas",
        )
    if not found.pictures or not all(found.scores.get(metric.name) for metric in found.metrics):
        raise ImmunityError(expected="scores of pictures", got=f"none in {path}", remedy="immunity measure")
    return found


def _print_file(path: Path) -> None:
    from immunity.files.describing import describe

    rows, made = describe(path)
    _print_table(rows)
    if made is None:
        return
    _print_table(
        {
            "method": made.method,
            "seed": made.seed,
            "base": f"{made.base} {made.base_hash}",
            "dtype": made.dtype or "unknown",
            "parents": ", ".join(made.parents) or "none",
            "made": f"{made.created} with {', '.join(f'{name} {version}' for name, version in made.versions.items())}",
        }
    )
    print("settings")
    for name, value in _flat(made.config):
        print(f"  {name:30}{json.dumps(value, ensure_ascii=False)}")


def _flat(values: Mapping[str, object], before: str = "") -> Iterator[tuple[str, object]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{before}{name}.")
        else:
            yield f"{before}{name}", value


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


def _print_concepts(world: "World") -> None:
    for title, entries in (("objects", world.objects), ("styles", world.styles)):
        print(title)
        for entry in entries:
            near = f"  near {', '.join(entry.neighbours)}" if entry.neighbours else ""
            print(f"  {entry.name:30}{entry.split}{near}")


def _print_model(model: "DiffusionModel") -> None:
    _print_table(
        {"model": model.name, "family": model.family, "hash": model.base_hash, "pictures": f"{model.resolution} px"}
    )
    print("parameters")
    for group in model.groups:
        values = model.parameters(group).values()
        print(f"  {group:22}{sum(value.numel() for value in values):>15,} in {len(values)} tensors")


def _print_table(rows: Mapping[str, object]) -> None:
    for name, value in rows.items():
        # A file says of itself what it likes: nothing that moves the cursor reaches the terminal.
        print(f"{name:9} {value}" if str(value).isprintable() else f"{name:9} {value!r}")


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
    from immunity.pictures import grid, write_imagefolder, write_png

    folder.mkdir()
    sources = [f"drawn by {model.name}, seed {seed}" for seed in seeds]
    files = write_imagefolder(folder, pictures, prompts, sources)
    write_png(grid(pictures, columns), folder / GRID_FILE)
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
    (folder / SAMPLE_FILE).write_text(json.dumps(record, indent=1, ensure_ascii=False), encoding="utf-8")
