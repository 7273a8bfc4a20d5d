"""What `immunity info` tells of a file."""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from immunity.deltas import Delta, Provenance
from immunity.errors import ImmunityError
from immunity.filenames import ADAPTER_KEY, DELTA_KEY
from immunity.files.checkpoints import describe_checkpoint
from immunity.files.layers import family_of, summary
from immunity.files.reading import read
from immunity.files.tensors import SUFFIXES, read_metadata, read_tensors
from immunity.files.weights import Weights


class Description(NamedTuple):
    rows: Mapping[str, object]
    """What it is, what it changes, how large it is, by short words."""
    provenance: Provenance | None
    """Of what this package made."""


def is_described(path: Path) -> bool:
    """Whether a path is a file, or the folder of an adapter, and not a model or nothing that is there."""
    if path.is_dir():
        return not (path / "model_index.json").exists() and any(entry.suffix in SUFFIXES for entry in path.iterdir())
    return path.is_file() or path.suffix in SUFFIXES


def describe(path: Path) -> Description:
    """Raises `ImmunityError` on what is of no kind that is known here, saying what it seems to be."""
    if path.is_file():
        file = None if _is_ours(path) else read_tensors(path)
        if file is not None and Weights.is_whole_model(file.tensors):
            return Description(describe_checkpoint(file), None)
    content = read(path)
    if isinstance(content, Delta):
        paths = dict.fromkeys(name.rsplit(".", 1)[0] for name in content.tensors)
        values = sum(value.numel() for value in content.tensors.values())
        rows: dict[str, object] = {
            "delta": content.hash,
            **summary(paths),
            "for": family_of(paths) or "unknown",
            "tensors": f"{len(content.tensors)}, {values:,} values",
        }
        return Description(rows, content.provenance)
    return Description(content.describe(), _provenance_of_adapter(path))


def _is_ours(path: Path) -> bool:
    return DELTA_KEY in (read_metadata(path) or {})


def _provenance_of_adapter(path: Path) -> Provenance | None:
    header = (read_metadata(path) or {}).get(ADAPTER_KEY) if path.is_file() else None
    if header is None:
        return None
    try:
        return Provenance.from_json(header)
    except ImmunityError:
        return None  # a header that somebody has edited makes the adapter none the less one
