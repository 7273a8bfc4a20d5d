"""Tensors out of files that anybody may have written: nothing in them runs, and nothing large is made before it is
checked.

Safetensors are mapped into memory. PyTorch's own files (.pt, .bin, .ckpt) are zip archives with a pickle in them.
Before PyTorch's restricted reader sees one, the archive must be plain (nothing compressed, nothing overlapping) and
the pickle may name nothing but what tensors are rebuilt with. The older files, one bare pickle, are refused.
"""

import hashlib
import pickletools
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from immunity.atomic import load_tensors
from immunity.deltas import REAL
from immunity.errors import ImmunityError

PICKLES = frozenset({".pt", ".pth", ".bin", ".ckpt"})
SUFFIXES = frozenset({".safetensors", *PICKLES})

_HEADER = 8  # bytes before the header of a safetensors file, which hold its length
_LONGEST_PICKLE = 4 * 2**20  # bytes; that of all weights of SDXL has half a megabyte
_MOST_OPERATIONS = 10**6
_MOST_ENTRIES = 10**5
_STORAGES = frozenset(
    f"torch {kind}Storage"
    for kind in ("Float", "Half", "BFloat16", "Double", "Long", "Int", "Short", "Char", "Byte", "Bool")
)
_HARMLESS = _STORAGES | {
    "collections OrderedDict",
    "torch._utils _rebuild_parameter",
    "torch._utils _rebuild_tensor_v2",
    "torch Size",
    "torch.storage UntypedStorage",
    "__builtin__ set",
    "builtins set",
}
_STAND_INS = {
    "pytorch_lightning.callbacks.model_checkpoint ModelCheckpoint",  # in Stable Diffusion's own .ckpt files, as a key
    "torch.nn.modules.container ParameterDict",  # around the vectors of Textual Inversion's own code
}
"""Classes that known files name and of which nothing is needed but what is in them."""


class _StandIn:
    """In the place of such a class: it has the attributes that the file gives it, and none of its code."""

    _parameters: Mapping[str, Any] = MappingProxyType({})


@dataclass(frozen=True, eq=False)
class TensorFile:
    """What a file holds."""

    path: Path
    tensors: Mapping[str, Tensor]
    """By dotted name: dictionaries in dictionaries are one."""
    metadata: Mapping[str, str]
    """Of a safetensors file, its header's; of others the names and numbers that stand between the tensors."""

    @property
    def values(self) -> int:
        return sum(tensor.numel() for tensor in self.tensors.values())

    @property
    def types(self) -> str:
        return ", ".join(sorted({_short(tensor.dtype) for tensor in self.tensors.values()}))

    def digest(self) -> str:
        """SHA-256 of the file."""
        with self.path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()


def is_real(tensor: Tensor) -> bool:
    """Whether there are real numbers in it, along one axis or more. It may still have NaN among them."""
    return tensor.ndim > 0 and tensor.numel() > 0 and tensor.dtype in REAL


def type_and_shape(tensor: Tensor) -> str:
    return f"{_short(tensor.dtype)} {list(tensor.shape)}"


def read_tensors(path: str | Path) -> TensorFile:
    """Reads a .safetensors, .pt, .pth, .bin or .ckpt file by what is in it, whatever it is called."""
    path = Path(path)
    if not path.is_file():
        raise ImmunityError(
            expected="a file of tensors",
            got=f"{path} ({'a folder' if path.is_dir() else 'which does not exist'})",
            remedy="a .safetensors, .pt, .bin or .ckpt file",
        )
    with path.open("rb") as file:
        start = file.read(_HEADER + 1)
    if start.startswith(b"PK"):
        return _read_archive(path)
    if start[_HEADER:] == b"{":
        return _read_safetensors(path)
    if start.startswith((b"\x80", b"(", b"c")):
        raise _refused_pickle(path, "a bare pickle, not PyTorch's archive of tensors")
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    raise ImmunityError(
        expected="a file of tensors (.safetensors, or .pt, .bin, .ckpt as PyTorch writes them)",
        got=f"{path}, which is {_looks_like(start)}",
        remedy="downloading it again",
    )


def read_metadata(path: str | Path) -> Mapping[str, str] | None:
    """The header's entries of a safetensors file; None of any other file."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            return dict(file.metadata() or {})
    except (SafetensorError, OSError, ValueError):
        return None


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _read_safetensors(path: Path) -> TensorFile:
    tensors, metadata = load_tensors(
        path, expected="a whole safetensors file, whose header tells the truth", remedy="downloading it again"
    )
    return TensorFile(path, tensors, metadata)


def _read_archive(path: Path) -> TensorFile:
    replaced = _check_archive(path)
    try:
        with torch.serialization.safe_globals([(_StandIn, entry.replace(" ", ".")) for entry in replaced]):
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # PyTorch's reader raises what it likes of a damaged file
        raise _refused_pickle(path, str(error).splitlines()[0] if str(error) else type(error).__name__) from error
    tensors: dict[str, Tensor] = {}
    metadata: dict[str, str] = {}
    for name, value in _flattened(content, path, iter(range(_MOST_ENTRIES))):
        if isinstance(value, Tensor):
            _check_whole(name, value, path)
            tensors[name] = value.detach()
        elif isinstance(value, str | int | float):
            metadata[name] = str(value)
    return TensorFile(path, tensors, metadata)


def _check_archive(path: Path) -> set[str]:
    """Raises on an archive that is more than tensors; answers with the classes in it that need a stand-in."""
    replaced: set[str] = set()
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
                raise _refused_pickle(path, "an archive with something compressed in it, as PyTorch never writes")
            if sum(entry.file_size for entry in entries) > path.stat().st_size:
                raise _refused_pickle(path, "an archive that claims to hold more than the file has")
            pickles = [entry for entry in entries if entry.filename.rsplit("/", 1)[-1] == "data.pkl"]
            if len(pickles) != 1:
                raise _refused_pickle(path, "a zip archive, but not one that PyTorch wrote")
            if pickles[0].file_size > _LONGEST_PICKLE:
                raise _refused_pickle(path, f"an index of {pickles[0].file_size:,} bytes, as no model needs")
            content = archive.read(pickles[0])
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, EOFError) as error:
        raise _refused_pickle(path, f"a damaged archive: {error}") from error
    try:
        for number, (operation, argument, _) in enumerate(pickletools.genops(content)):
            named = argument if operation.name in ("GLOBAL", "INST") else operation.name
            if named in _STAND_INS:
                replaced.add(named)
            if number > _MOST_OPERATIONS:
                raise _refused_pickle(path, "an index of more than a million steps, as no model needs")
            if operation.name == "STACK_GLOBAL" or (
                operation.name in ("GLOBAL", "INST") and named not in _HARMLESS | _STAND_INS
            ):
                raise _refused_pickle(path, f"a pickle that calls for {named!r}, which is no tensor")
    except (ValueError, KeyError, IndexError, UnicodeDecodeError) as error:
        raise _refused_pickle(path, f"a damaged index: {error}") from error
    return replaced


def _flattened(
    content: Any, path: Path, budget: Iterator[int], before: str = "", depth: int = 0
) -> Iterator[tuple[str, Any]]:
    # A few dictionaries that hold one another many times over would be walked for ever.
    if depth > 8 or next(budget, None) is None:
        raise _refused_pickle(path, "dictionaries deeper, or with more in them, than any model's")
    if isinstance(content, _StandIn):
        content = content._parameters
    if isinstance(content, Mapping):
        for name, value in content.items():
            # "state_dict" is how trainers wrap the weights, and says nothing.
            inner = before if name == "state_dict" and not before else f"{before}{name}."
            yield from _flattened(value, path, budget, inner, depth + 1)
    elif before or isinstance(content, Tensor):
        yield before.rstrip("."), content
    else:
        raise _refused_pickle(path, f"a {type(content).__name__} where a dictionary of tensors should be")


def _check_whole(name: str, value: Tensor, path: Path) -> None:
    """A few bytes can be told to be a tensor of any size, by strides of zero."""
    if value.numel() * value.element_size() > value.untyped_storage().nbytes():
        raise _refused_pickle(path, f"{name} of shape {list(value.shape)}, of which the file has only a part")


def _refused_pickle(path: Path, what: str) -> ImmunityError:
    return ImmunityError(
        expected="a file of tensors and nothing else",
        got=f"{path} ({what})",
        remedy="a .safetensors file; pickles are read only where they hold plain tensors, and never run",
    )


def _looks_like(start: bytes) -> str:
    if not start:
        return "empty"
    if start.startswith(b"version https://git-lfs"[: len(start)]):
        return "a pointer of git-lfs and not the file itself"
    known = {
        b"GGUF": "a GGUF file (quantised weights)",
        b"\x89PNG": "a PNG picture",
        b"\xff\xd8": "a JPEG picture",
        b"<": "a web page",
        b"{": "a JSON file",
        b"\x89HDF": "an HDF5 file",
    }
    return next((name for mark, name in known.items() if start.startswith(mark)), "none of the kinds known here")
