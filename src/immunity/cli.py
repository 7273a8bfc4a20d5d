"""The command line: each verb is load, call, save. Parsing and printing only.

A verb is one function in `COMMANDS`; its arguments are its flags, their descriptions its help. What it needs is
imported inside, so that help does not wait for PyTorch.
"""

import difflib
import importlib.metadata
import json
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from immunity.errors import ImmunityError

if TYPE_CHECKING:
    from torch import Tensor

    from immunity.deltas import Delta
    from immunity.models import DiffusionModel
    from immunity.worlds import World

PROGRAM = "immunity"


@dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """Which model, and where it runs."""

    model: str
    """A diffusers folder, a world (emoji), or a hub id (owner/name)."""
    deltas: tuple[Path, ...] = ()
    """Deltas to apply to it, in order."""
    device: str = "cpu"
    """cpu, cuda, cuda:1, …"""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Of the denoiser and the text encoder."""

    def load(self) -> "DiffusionModel":
        from immunity.loading import load

        return load(self.model, deltas=self.deltas, device=self.device, dtype=self.dtype)


@dataclass(frozen=True, kw_only=True)
class OutputOptions:
    """Where the result goes."""

    out: Path
    """The file or folder to write."""
    force: bool = False
    """Replace what is there."""

    def check(self) -> None:
        """Refuses an existing result before the work and not after it."""
        from immunity.atomic import refuse_existing

        refuse_existing(self.out, force=self.force)


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


COMMANDS: dict[str, Callable[..., None]] = {"info": info, "sample": sample, "export": export}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the program; the answer is its exit code: 0, 2 for bad input, 130 when interrupted."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    warnings.showwarning = _warn
    try:
        if not given or given[0] in ("-h", "--help"):
            print(_help())
            return 0
        if given[0] == "--version":
            print(importlib.metadata.version(PROGRAM))
            return 0
        _run(given[0], given[1:])
    except ImmunityError as error:
        print(f"{PROGRAM}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(
            f"{PROGRAM}: interrupted; what was written before is whole, nothing half-written is left", file=sys.stderr
        )
        return 130
    return 0


def _run(verb: str, arguments: Sequence[str]) -> None:
    if verb not in COMMANDS:
        near = difflib.get_close_matches(verb, COMMANDS, n=1)
        raise ImmunityError(
            expected=f"a command: {', '.join(COMMANDS)}",
            got=repr(verb),
            remedy=f"{PROGRAM} {near[0]}" if near else f"{PROGRAM} --help",
        )
    import tyro

    tyro.cli(
        COMMANDS[verb],
        prog=f"{PROGRAM} {verb}",
        args=arguments,
        # `--model` and not `--model.model`: the groups of options are for the reader of this file.
        config=(tyro.conf.OmitArgPrefixes, tyro.conf.FlagCreatePairsOff),
    )


def _help() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:{width}}  {(verb.__doc__ or '').splitlines()[0]}" for name, verb in COMMANDS.items()]
    return "\n".join(
        [
            f"usage: {PROGRAM} COMMAND …",
            "",
            "Erase a concept from a text-to-image model, attack the result, immunize it, and report the evidence.",
            "",
            *lines,
            "",
            f"{PROGRAM} COMMAND --help tells more.",
        ]
    )


def _warn(message: Warning | str, category: type[Warning], *_: object, **__: object) -> None:
    # A user's warning is one line; a library's deprecations are no business of the user's.
    if issubclass(category, UserWarning):
        print(f"{PROGRAM}: {' '.join(str(message).split())}", file=sys.stderr)


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
