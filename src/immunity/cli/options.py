"""Groups of flags that several verbs share."""

import hashlib
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from immunity.checks import generator_seed, unused
from immunity.errors import ImmunityError
from immunity.processes import own_device, started

if TYPE_CHECKING:
    from immunity.deltas import Delta
    from immunity.models import DiffusionModel
    from immunity.worlds import World


USUAL_GUIDANCE = 7.5


def digest(path: Path) -> str:
    """SHA-256 of a file, or of a folder's files; nothing of what is neither, which is refused where it is read."""
    if path.is_file():
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    files = sorted(file for file in path.rglob("*") if file.is_file())
    parts = [f"{file.relative_to(path)} {digest(file)}" for file in files]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest() if parts else ""


@dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """Which model, and where it runs."""

    model: str
    """A diffusers folder, a world (emoji), a hub id (owner/name), or a whole model in one .safetensors or .ckpt."""
    deltas: tuple[Path, ...] = ()
    """What to apply to it, in order: deltas, folders that adapt wrote, adapters of other programs (LoRA, LoHa, LoKr),
    or weights as ESD and IMMA publish them."""
    config: str | None = None
    """For a model in one file: a diffusers folder of the same family, for the sizes, words and sampler that the file
    does not have; or the hub id of one, to be downloaded. Without it the hub's cache is searched, but for 2.x, where
    few files tell which of two kinds they are."""
    device: str = "cpu"
    """cpu, cuda, cuda:1, …"""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Of the denoiser and the text encoder. What trains them (not UCE) refuses float16."""
    compiled: bool = False
    """Compile the denoiser when it first runs (torch.compile): minutes at first, then faster steps on a GPU."""

    def load(self) -> "DiffusionModel":
        from immunity.loading import load

        return load(
            self.model,
            deltas=self.deltas,
            device=self._first,
            dtype=self.dtype,
            config=self.config,
            compiled=self.compiled,
        )

    def load_base(self) -> "LoadedBase":
        """The model without its deltas, which have been tried on it."""
        from immunity.files import read_change
        from immunity.loading import load

        changes = [read_change(path) for path in self.deltas]
        model = load(self.model, device=self._first, dtype=self.dtype, config=self.config, compiled=self.compiled)
        deltas: list[Delta] = []
        with ExitStack() as trial:
            for change in changes:
                deltas.append(change.on(model))
                trial.enter_context(deltas[-1].applied(model))
        return LoadedBase(model, tuple(deltas))

    @property
    def _first(self) -> str:
        """Where the weights are read to."""
        return own_device(self.device)

    def world(self) -> "World | None":
        """The world that the model is of, if its name says so."""
        from immunity.worlds import WORLDS, World

        return World.open(self.model) if self.model in WORLDS and not Path(self.model).exists() else None

    def guidance(self, given: float | None) -> float:
        """What was asked for, if it was; else what becomes a world, and 7.5 of other models."""
        world = self.world()
        return given if given is not None else USUAL_GUIDANCE if world is None else world.guidance

    def described(self) -> dict[str, object]:
        """What tells it from others, for the record of a run: deltas by what is in them, the rest by where it is."""
        places = (self.model, *([self.config] if self.config is not None else []))
        return {
            "model": [str(Path(place).resolve()) if Path(place).exists() else place for place in places],
            "deltas": [f"{path.name} {digest(path)}" for path in self.deltas],
            "dtype": self.dtype,
        }

    @property
    def inputs(self) -> tuple[Path, ...]:
        """What is read and must not be replaced by a result."""
        return (Path(self.model), *self.deltas, *([Path(self.config)] if self.config is not None else []))


@dataclass(frozen=True, kw_only=True)
class TrainedModelOptions(ModelOptions):
    """Which model, and where it runs; several processes may share the work."""

    shard: bool = False
    """Split the denoiser over the processes of `accelerate launch` (FSDP), for models larger than a GPU."""
    whole: str = "attention"
    """With --shard: the group of parameters that stays whole on each GPU. It must hold what is trained or adapted."""

    def __post_init__(self) -> None:
        if not self.shard:
            unused(self, "whole", without="without --shard")

    @property
    def _first(self) -> str:
        """What is to be split is not meant to fit into one GPU."""
        if self.shard and started() == 1:
            raise ImmunityError(
                expected="several processes to share the weights",
                got="--shard in one",
                remedy="accelerate launch --num_processes 2 -m immunity …, or leaving --shard out",
            )
        return "cpu" if self.shard else own_device(self.device)

    def split(self, model: "DiffusionModel") -> None:
        """Splits it, if that is asked for, among processes that are together now."""
        if self.shard:
            from immunity.models.sharding import shard

            shard(model, whole=self.whole, device=own_device(self.device))


@dataclass(frozen=True, eq=False)
class LoadedBase:
    """A model before its deltas, and the deltas."""

    model: "DiffusionModel"
    deltas: "tuple[Delta, ...]"

    def with_deltas(self) -> "DiffusionModel":
        """The same model, now with the deltas in it."""
        for delta in self.deltas:
            delta.apply(self.model)
        return self.model


@dataclass(frozen=True, kw_only=True)
class OutputOptions:
    """Where the result goes."""

    out: Path
    """The file or folder to write."""
    force: bool = False
    """Replace an earlier result."""

    def check_file(self, *suffixes: str, inputs: Iterable[Path]) -> None:
        """Refuses, before the work and not after it, a name that the result cannot have."""
        self._check(inputs)
        if self.out.suffix not in suffixes:
            raise ImmunityError(
                expected=f"a file name that ends in {' or '.join(suffixes)}",
                got=str(self.out),
                remedy=str(self.out) + suffixes[0],
            )
        if self.out.is_dir():
            raise ImmunityError(expected="a file to write", got=f"{self.out}, a folder", remedy="another name")

    def check_folder(self, mark: str, *, saying: str = "", inputs: Iterable[Path]) -> None:
        """The same for a folder; `mark` is a file in every such result, and `saying` is in its text.

        Not even `force` replaces a folder that holds something else.
        """
        self._check(inputs)
        file = self.out / mark
        if not self.out.exists() or (file.is_file() and saying in file.read_text(encoding="utf-8", errors="replace")):
            return
        if not self.out.is_dir() or any(self.out.iterdir()):
            raise ImmunityError(
                expected=f"an earlier result to replace (a folder with {mark}{' of this program' if saying else ''})",
                got=f"{self.out}, which is something else",
                remedy="another path; nothing was changed",
            )

    def _check(self, inputs: Iterable[Path]) -> None:
        from immunity.atomic import refuse_existing

        out = self.out.resolve()
        for path in inputs:
            # Before `force` is advised, which would not help.
            if path.exists() and path.resolve().is_relative_to(out):
                got = f"{self.out} for both" if path.resolve() == out else f"{self.out}, which has {path} in it"
                raise ImmunityError(expected="a result beside what it is made from", got=got, remedy="another path")
        refuse_existing(self.out, force=self.force)


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """How the run goes."""

    seed: int = 0
    """Of everything random in it: the same command with the same seed gives the same tensors."""
    save_every: int = 50
    """Steps between two checkpoints, which stay in <out>.partial until the result is written: after a kill or an
    interruption the same command goes on from there."""

    def __post_init__(self) -> None:
        generator_seed(self.seed)
