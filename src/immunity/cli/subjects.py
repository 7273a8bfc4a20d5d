"""Flags that say what is erased, what is learned, and what is drawn on the way."""

import dataclasses
import functools
import hashlib
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tyro

from immunity.atomic import load_tensors, save_tensors
from immunity.checks import unused
from immunity.cli.options import ModelOptions, TrainedModelOptions, digest
from immunity.concepts import Concept, Examples, Kind
from immunity.drawing import draw
from immunity.errors import ImmunityError
from immunity.models import DiffusionModel
from immunity.optimize import derived_seed, identity
from immunity.processes import wait
from immunity.worlds import World


@dataclass(frozen=True, kw_only=True)
class ConceptOptions:
    """What is removed."""

    concept: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """Its name; a world has its own, for other models any word will do. Once for each concept."""
    kind: Kind | None = None
    """What a concept is that no world knows; object unless said otherwise."""
    prompt: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """Prompts that ask for it, in place of those that follow from its name and kind."""

    def concepts(self, model: ModelOptions) -> tuple[Concept, ...]:
        if not self.concept:
            raise ImmunityError(expected="a concept", got="none", remedy="--concept church")
        if self.prompt and len(self.concept) > 1:
            raise ImmunityError(
                expected="--prompt with one concept", got=f"{len(self.concept)} concepts", remedy="leaving --prompt out"
            )
        world = model.world()
        return tuple(_concept(name, world, self.kind, self.prompt) for name in self.concept)


@dataclass(frozen=True, kw_only=True)
class PictureOptions:
    """What is learned: pictures from a folder, or of a concept."""

    images: Path | None = None
    """Folder of pictures. Their prompts are in its metadata.csv or metadata.jsonl (file_name, text), or --prompt."""
    prompt: str | None = None
    """One prompt for all pictures."""
    concept: str | None = None
    """In place of a folder: a world's own pictures of this concept; or, with --drawn, any concept."""
    kind: Kind | None = None
    """What a concept is that no world knows; object unless said otherwise."""
    styles: tuple[str, ...] = ()
    """Of a world's pictures, those by these artists: with others for the attack than for the defence, neither has seen
    the other's pictures."""
    drawn: int | None = None
    """This many pictures of the concept, drawn by the model without its deltas; adapt and immunize draw different
    ones."""

    @property
    def inputs(self) -> tuple[Path, ...]:
        return () if self.images is None else (self.images,)

    def described(self) -> dict[str, object]:
        """What tells them from others, for the record of a run: pictures of a folder by what is in their files."""
        values = dataclasses.asdict(self)
        if self.images is not None:
            files = [digest(self.images / name) for name in self._seen.sources]
            what = identity({"files": files, "prompts": self._seen.prompts})
            values["images"] = f"{self.images.name} {hashlib.sha256(what.encode()).hexdigest()}"
        return values

    @functools.cached_property
    def _seen(self) -> Examples:
        """What is in the folder, but for details."""
        assert self.images is not None
        return Examples.from_folder(self.images, prompt=self.prompt, size=1)

    def check(self, model: ModelOptions, out: Path) -> None:
        """Finds what is wrong with the flags and the pictures, as far as that takes no model."""
        if (self.images is None) == (self.concept is None):
            got = "neither" if self.images is None else "both"
            raise ImmunityError(expected="--images or --concept", got=got, remedy="--images FOLDER")
        if self.images is not None and (self.drawn is not None or self.styles or self.kind is not None):
            raise ImmunityError(
                expected="--drawn, --styles and --kind with --concept", got="--images", remedy="leaving them out"
            )
        if self.drawn is not None and (self.drawn < 1 or self.styles):
            raise ImmunityError(
                expected="--drawn with a number of pictures and without --styles",
                got=f"{self.drawn}{' and --styles' if self.styles else ''}",
                remedy="--drawn 20",
            )
        if self.drawn is not None and isinstance(model, TrainedModelOptions) and model.shard:
            raise ImmunityError(
                expected="pictures from a folder for a model that is split over processes",
                got="--drawn, which would draw them before it is",
                remedy="immunity sample, and --images with what it drew",
            )
        world = model.world()
        if self.images is not None:
            # A picture that cannot be read is found now, and not after a model of gigabytes has been loaded.
            _ = self._seen
            if out.resolve().is_relative_to(self.images.resolve()):
                raise ImmunityError(
                    expected="a result beside the folder of pictures",
                    got=f"{out}, which would be read as one of {self.images} the next time",
                    remedy="another path",
                )
        elif self.drawn is None and world is None:
            raise ImmunityError(
                expected=f"pictures of {self.concept!r}",
                got=f"only its name, as {model.model} is a model without a world",
                remedy="--images FOLDER, or --drawn 20 to have them drawn",
            )
        elif self.drawn is None:
            if self.kind is not None:
                self._concept(world)  # which refuses it for what the world knows
            self._samples(world)
        else:
            self._concept(world)

    def read(self, base: DiffusionModel, model: ModelOptions, *, seed: int, verb: str, folder: Path) -> Examples:
        """The pictures, at the size of the model; `base` draws them where they are to be drawn.

        What is drawn is kept in `folder`: who goes on with a run on another device would not draw the same to the bit.
        """
        if self.images is not None:
            return Examples.from_folder(self.images, prompt=self.prompt, size=base.resolution)
        if self.drawn is None:
            return self._samples(model.world())
        concept = self._concept(model.world())
        prompts = tuple(itertools.islice(itertools.cycle(concept.prompts), self.drawn))
        seeds = [derived_seed(seed, "pictures for", verb, number) for number in range(self.drawn)]
        what = identity({"base": base.base_hash, "dtype": model.dtype, "prompts": prompts, "seeds": seeds})
        file = folder / "pictures" / f"{hashlib.sha256(what.encode()).hexdigest()[:16]}.safetensors"
        there = file.exists()
        wait()  # all processes have looked before the first one writes
        if there:
            kept, _ = load_tensors(file, expected="the pictures drawn before", remedy=f"removing {folder}")
            images = kept["images"]
        else:
            images = draw(base, prompts, seeds, label="draw", steps=25, guidance=model.guidance(None))
            save_tensors(file, {"images": images}, {}, force=True)
        return Examples(images, prompts, tuple(f"drawn by {base.name}, seed {one}" for one in seeds), concept.name)

    def _concept(self, world: World | None) -> Concept:
        assert self.concept is not None
        return _concept(self.concept, world, self.kind, () if self.prompt is None else (self.prompt,))

    def _samples(self, world: World | None) -> Examples:
        assert world is not None
        assert self.concept is not None
        examples = world.examples(self.concept, styles=self.styles or None)
        return (
            examples if self.prompt is None else dataclasses.replace(examples, prompts=(self.prompt,) * len(examples))
        )


@dataclass(frozen=True, kw_only=True)
class SampleOptions:
    """Pictures on the way."""

    sample_at: tuple[int, ...] = ()
    """After each of these numbers of steps (0 for before the first), draw a grid: <out>/samples/<steps>.png."""
    sample_prompt: tuple[str, ...] = ()
    """A row each; unless given, the first things that the method learns to call the pictures."""
    sample_count: int = 4
    """Pictures in a row: with --seed and the numbers after it as their seeds, so the same in every grid."""
    sample_steps: int = 25
    """Denoising steps."""
    sample_guidance: float | None = None
    """Weight of the prompt against no prompt; 7.5 unless given, of a world its own."""

    def check(self, steps: int) -> None:
        if self.sample_count < 1 or self.sample_steps < 1:
            raise ImmunityError(
                expected="at least one picture in a row and one denoising step",
                got=f"{self.sample_count} and {self.sample_steps}",
                remedy="--sample-count 4 --sample-steps 25",
            )
        if not self.sample_at:
            flags = "sample_prompt", "sample_count", "sample_steps", "sample_guidance"
            unused(self, *flags, without="without --sample-at")
        if late := [step for step in self.sample_at if not 0 <= step <= steps]:
            raise ImmunityError(
                expected=f"--sample-at within the {steps} steps of the run", got=str(late[0]), remedy=f"0 to {steps}"
            )

    def draw(self, model: DiffusionModel, prompts: Sequence[str], file: Path, *, seed: int, guidance: float) -> None:
        """Writes one grid; `prompts` are what the pictures that are learned from are called."""
        from immunity.pictures import grid, write_png

        rows = self.sample_prompt or tuple(dict.fromkeys(prompts))[:4]
        images = draw(
            model,
            [prompt for prompt in rows for _ in range(self.sample_count)],
            [seed + number for _ in rows for number in range(self.sample_count)],
            label=f"samples/{file.name}",
            steps=self.sample_steps,
            guidance=guidance,
        )
        write_png(grid(images, self.sample_count), file, force=True)


def _concept(name: str, world: World | None, kind: Kind | None, prompts: tuple[str, ...]) -> Concept:
    if world is not None and kind is not None and world.knows(name):
        raise ImmunityError(
            expected="--kind for a concept that no world knows",
            got=f"--kind {kind}, and {name!r}, which this world knows",
            remedy="leaving --kind out",
        )
    if world is not None and kind is None:
        known = world.concept(name)
        return dataclasses.replace(known, prompts=prompts or known.prompts)
    return Concept(name=name, kind=kind or "object", prompts=prompts)
