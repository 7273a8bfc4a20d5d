"""Writing that never leaves half a result and never destroys a whole one; and reading such tensors back."""

import shutil
import tempfile
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from immunity import processes
from immunity.errors import ImmunityError

if TYPE_CHECKING:
    from torch import Tensor


def refuse_existing(path: str | Path, *, force: bool) -> None:
    """Raises if `path` exists and may not be replaced. Call it before long work whose result goes to `path`."""
    path = Path(path)
    # Nothing can be written beside such a path and renamed to it; and who is in a folder would be left in none.
    if path.name in ("", ".."):
        raise ImmunityError(expected="a path that ends in a name", got=str(path), remedy=str(path / "result"))
    if path.exists() and not force:
        raise ImmunityError(
            expected="a path that does not exist yet",
            got=f"{path}",
            remedy="another path, or force (--force) to replace it",
        )


@contextmanager
def replacing(path: str | Path, *, force: bool = False) -> Iterator[Path]:
    """Yields a temporary path beside `path`, for a file or a folder, and renames it to `path` when the block succeeds.

    The suffix is kept, as writers choose their format by it. If the block fails, whatever stood at `path` is untouched
    and the temporary is removed. A full disk and a folder that may not be written become `ImmunityError`. Of several
    processes at one training only the first writes here; what the others are given is for the bin.
    """
    path = Path(path)
    if not processes.is_first():
        with tempfile.TemporaryDirectory() as bin_:
            yield Path(bin_, path.name)
        return
    refuse_existing(path, force=force)
    temporary = path.with_name(f".{path.stem}.{uuid.uuid4().hex[:8]}.part{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        _give_usual_mode(temporary)
        _rename(temporary, path)
    except OSError as error:
        raise ImmunityError(
            expected=f"to be able to write {path}",
            got=error.strerror or str(error),
            remedy="a folder that can be written, on a disk with space left; nothing was changed",
        ) from error
    finally:
        _remove(temporary)


def save_tensors(
    path: str | Path, tensors: "Mapping[str, Tensor]", metadata: Mapping[str, str], *, force: bool = False
) -> None:
    """Writes one safetensors file."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    path = Path(path)
    if path.suffix != ".safetensors":
        raise ImmunityError(
            expected="a file name that ends in .safetensors",
            got=str(path),
            remedy=str(path.with_suffix(".safetensors")),
        )
    if not processes.is_first():
        return  # before gigabytes are written for the bin
    plain = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    with replacing(path, force=force) as temporary:
        try:
            save_file(plain, temporary, metadata={"format": "pt", **metadata})
        except SafetensorError as error:  # which is how safetensors reports a full disk
            raise OSError(str(error)) from error


def load_tensors(path: str | Path, *, expected: str, remedy: str) -> "tuple[dict[str, Tensor], Mapping[str, str]]":
    """The tensors of a safetensors file, and the entries of its header.

    Raises `ImmunityError`, in these words, if there is no such file or not all of it.
    """
    from safetensors import SafetensorError, safe_open

    # What safetensors, and PyTorch after it, raise of a header that lies.
    damage = (SafetensorError, OSError, RuntimeError, ValueError, TypeError, KeyError, AttributeError)
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in sorted(file.keys())}, dict(file.metadata() or {})
    except damage as error:
        raise ImmunityError(expected=expected, got=f"{path} ({error})", remedy=remedy) from error


def _give_usual_mode(path: Path) -> None:
    """The permissions that a new file has here: safetensors leaves its files readable by their owner alone."""
    usual = path.with_name(path.name + ".mode")
    try:
        usual.touch()
        for file in [path] if path.is_file() else path.rglob("*"):
            if file.is_file() and not file.is_symlink():
                shutil.copymode(usual, file)
    finally:
        usual.unlink(missing_ok=True)


def _rename(source: Path, destination: Path) -> None:
    if not destination.is_dir():
        source.replace(destination)
        return
    # A folder cannot be renamed over one that has content: the old one steps aside first, and back if that fails.
    aside = source.with_name(source.name + ".old")
    destination.replace(aside)
    try:
        source.replace(destination)
    except OSError:
        aside.replace(destination)
        raise
    _remove(aside)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):  # it may never have been made, nor its folder
            path.unlink()
