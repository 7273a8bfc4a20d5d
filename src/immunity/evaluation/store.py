"""What a study keeps beside its records, so that nothing is made twice.

    deltas/<arm>-<key>.safetensors       each change of the model, once
    adapters/<arm>-<key>/                each attack's φ, in the files in which such adapters circulate
    pictures/<purpose>-<key>/            what attack and defence learned from and results were compared with, a folder
                                         of pictures with metadata.csv
    claims/<key>.lock                    which process is at what
    work/<key>/                          checkpoints and pictures of what is under way; removed when it is finished

A key is the hash of everything that determines the content, and so is known before the content is made. Studies that
share deltas and pictures keep these two in one folder for all.
"""

import hashlib
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from immunity.adaptations import AttackResult
from immunity.atomic import load_tensors, replacing, save_tensors
from immunity.concepts import Examples
from immunity.deltas import Delta
from immunity.errors import ImmunityError
from immunity.optimize import identity
from immunity.pictures import to_bytes, write_imagefolder
from immunity.stepping import DivergedError

if TYPE_CHECKING:
    from filelock import FileLock

Recipe = Mapping[str, object]
"""Everything that determines what is made, as plain values."""


@dataclass(frozen=True)
class Store:
    """The part of a study's folder that is not records."""

    folder: Path
    shared: Path | None = None
    """Where deltas and pictures are, if not in the folder itself."""
    _diverged: dict[str, DivergedError] = field(default_factory=dict)

    @property
    def _common(self) -> Path:
        return self.shared or self.folder

    def delta_path(self, name: str, recipe: Recipe) -> Path:
        return self._common / "deltas" / f"{_slug(name)}-{_key(recipe)}.safetensors"

    def delta(self, name: str, recipe: Recipe, make: Callable[[Path], Delta]) -> Delta:
        """The delta of that recipe; `make` is called with a folder for its checkpoint if there is none yet."""
        path = self.delta_path(name, recipe)
        self._once(path, recipe, lambda work: make(work).save(path))
        return Delta.load(path)

    def keep_adapter(self, name: str, recipe: Recipe, result: AttackResult) -> None:
        """A fine-tuning of whole weights circulates as a model and has no such files: it is not kept."""
        if result.files:
            result.save_files(self.folder / "adapters" / f"{_slug(name)}-{_key(recipe)}", force=True)

    def pictures(self, purpose: str, recipe: Recipe, *, size: int, make: Callable[[Path], Examples]) -> Examples:
        """The pictures of that recipe as their files have them, eight bits a colour: what anyone can use again."""
        path = self._common / "pictures" / f"{_slug(purpose)}-{_key(recipe)}"

        def write(work: Path) -> None:
            made = make(work)
            with replacing(path) as temporary:
                temporary.mkdir(parents=True)
                write_imagefolder(temporary, made.images, made.prompts, made.sources)

        self._once(path, recipe, write)
        return Examples.from_folder(path, size=size)

    @contextmanager
    def claim(self, name: str) -> Iterator[bool]:
        """Whether this process, and no other that works in the folder, has `name` for the length of the block.

        The operating system ends a claim with its process, however that dies.
        """
        from filelock import Timeout

        lock = _lock(_made(self.folder / "claims") / _key({"claim": name}))
        try:
            lock.acquire(timeout=0)
        except Timeout:
            yield False
            return
        try:
            yield True
        finally:
            lock.release()

    def _once(self, path: Path, recipe: Recipe, write: Callable[[Path], None]) -> None:
        """Writes what is not there yet, unless another process that is at it already does.

        `write` is called with a folder for its checkpoint.
        """
        key = _key(recipe)
        if key in self._diverged:  # other cells that need it need not wait for it to diverge again
            raise self._diverged[key]
        if path.exists():
            return
        with _lock(_made(self._common / "claims") / key):
            if path.exists():
                return
            try:
                write(self.work(recipe))
            except DivergedError as error:
                self._diverged[key] = error
                raise
            finally:
                # Also after a divergence: to go on from the checkpoint would only diverge again.
                if path.exists() or key in self._diverged:
                    self.finished(recipe)

    def work(self, recipe: Recipe) -> Path:
        """A folder for what is under way."""
        return _made(self.folder / "work" / _key(recipe))

    def finished(self, recipe: Recipe) -> None:
        """Forgets what was under way. Call it when the result has been written."""
        shutil.rmtree(self.folder / "work" / _key(recipe), ignore_errors=True)


def keep_drawn(work: Path, step: int, images: Tensor) -> None:
    """Keeps what was drawn in the middle of an attack, until the attack is over."""
    save_tensors(work / f"drawn-{step:06d}.safetensors", {"images": to_bytes(images)}, {}, force=True)


def drawn(work: Path, step: int) -> Tensor:
    kept, _ = load_tensors(
        work / f"drawn-{step:06d}.safetensors",
        expected="the pictures drawn before this study was interrupted",
        remedy=f"removing {work}, which begins that attack anew",
    )
    return kept["images"].float() / 255


def _lock(path: Path) -> "FileLock":
    from filelock import FileLock

    return FileLock(path.with_suffix(".lock"))


def _made(path: Path) -> Path:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ImmunityError(
            expected="a folder for records that can be written",
            got=f"{path} ({error.strerror})",
            remedy="another folder",
        ) from error
    return path


def _key(recipe: Recipe) -> str:
    return hashlib.sha256(identity(recipe).encode()).hexdigest()[:16]


def _slug(name: str) -> str:
    """For people who look into the folder; the key is what tells files apart."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:40]
