"""From a file or folder of any kind that is known to what it is."""

import json
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

from immunity.deltas import Delta, Patchable
from immunity.errors import ImmunityError
from immunity.filenames import DELTA_FILE, DELTA_KEY, LORA_FILE, TOKEN_FILE
from immunity.files.adapters import Adapter
from immunity.files.embeddings import Embedding
from immunity.files.hub import HUB_ID
from immunity.files.kinds import never_weights, seems
from immunity.files.tensors import SUFFIXES, read_metadata, read_tensors
from immunity.files.weights import Weights
from immunity.inside import check_inside

CHANGES = "a delta, an adapter (LoRA, LoHa, LoKr), a learned token, or weights as ESD and IMMA publish them"
_FOLDERS = (
    *("adapter_model.safetensors", "adapter_model.bin", LORA_FILE, "pytorch_lora_weights.bin"),
    *(TOKEN_FILE, "learned_embeds.bin"),
)
"""What folders of adapters hold, the likelier first."""
_CONFIG = "adapter_config.json"
_LARGEST_CONFIG = 2**20  # bytes


class Change(Protocol):
    """What makes another model of a model: a `Delta` is one, and what others publish becomes one."""

    def on(self, model: Patchable) -> Delta:
        """The delta that it is on the model as it stands."""


Content = Delta | Adapter | Weights | Embedding


def read(path: str | Path) -> Content:
    """What a file, or the folder of an adapter, holds. Raises `ImmunityError` if it is nothing that changes a model."""
    path = Path(path)
    if not path.exists() and HUB_ID.fullmatch(str(path)) and path.suffix not in SUFFIXES:
        raise ImmunityError(
            expected="a file or folder that exists here",
            got=str(path),
            remedy=f"if it is on the hub, hf download {path} --local-dir FOLDER, and then the FOLDER",
        )
    return _read_folder(path) if path.is_dir() else _read_file(path)


def read_change(path: str | Path) -> Change:
    """`read`, of what changes a model's weights."""
    content = read(path)
    if isinstance(content, Embedding):
        raise ImmunityError(
            expected="what changes a model's weights",
            got=f"{path}, which teaches it a word and leaves them as they are",
            remedy=f"immunity sample --tokens {path}",
        )
    return content


def read_token(path: str | Path) -> Embedding:
    """`read`, of a learned token; of a folder, the file of the token in it."""
    path = Path(path)
    inside = sorted(path.iterdir(), key=lambda file: (file.name != TOKEN_FILE, file.name)) if path.is_dir() else [path]
    for file in inside:
        if file.suffix not in SUFFIXES or file.name == DELTA_FILE:
            continue
        if path.is_dir():
            check_inside(file, path)
        with suppress(ImmunityError):
            if isinstance(content := read(file), Embedding):
                return content
    if not path.is_dir():
        read(path)  # which has its own word on what is none of the kinds
    raise ImmunityError(
        expected="the file of a learned token, or the folder of an attack that teaches one",
        got=f"{path}, which {'has none' if path.is_dir() else 'changes weights'}",
        remedy=TOKEN_FILE if path.is_dir() else f"--deltas {path}",
    )


def _read_file(path: Path) -> Content:
    header = read_metadata(path) if path.is_file() else None
    if header is not None and DELTA_KEY in header:
        return Delta.load(path)
    file = read_tensors(path)
    if Weights.is_whole_model(file.tensors):
        raise _refused(path, "a whole model in one file", "--model, or only the part that was changed")
    embedding = Embedding.from_file(file)
    if embedding is not None:
        return embedding
    if Adapter.looks_so(file.tensors):
        beside = path.with_name(_CONFIG)
        if not path.name.startswith("adapter_model.") or not beside.is_file():
            return Adapter.from_file(file)
        check_inside(beside, path.parent)
        return Adapter.from_file(file, config=_read_config(beside))
    if Weights.looks_so(file.tensors) and never_weights(file.tensors) is None:
        return Weights(file)
    raise _refused(path, seems(file.tensors), CHANGES)


def _read_folder(folder: Path) -> Content:
    names = {entry.name for entry in folder.iterdir()}
    if DELTA_FILE in names:
        check_inside(folder / DELTA_FILE, folder)
        return Delta.load(folder / DELTA_FILE)
    if "model_index.json" in names:
        raise _refused(folder, "the folder of a whole model", "--model, or only the part that was changed")
    found = next((name for name in _FOLDERS if name in names), None)
    if found is None:
        others = sorted(name for name in names if Path(name).suffix in SUFFIXES)
        if len(others) != 1:
            got = f"a folder with {len(others)} files of tensors" if others else "a folder without any"
            raise _refused(folder, got, "naming the file")
        found = others[0]
    check_inside(folder / found, folder)
    if _CONFIG in names:
        check_inside(folder / _CONFIG, folder)
        config = _read_config(folder / _CONFIG)
        return Adapter.from_file(read_tensors(folder / found), name=folder.resolve().name, config=config)
    return _read_file(folder / found)


def _read_config(path: Path) -> Mapping[str, Any]:
    try:
        if path.stat().st_size > _LARGEST_CONFIG:
            raise ValueError(f"{path.stat().st_size:,} bytes")
        config = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(config, dict):
            raise ValueError("not a JSON object")
    except (OSError, ValueError, RecursionError) as error:
        raise ImmunityError(
            expected="the settings of a PEFT adapter", got=f"{path} ({error})", remedy="downloading the folder again"
        ) from error
    kind = config.get("peft_type", "LORA")
    if kind not in ("LORA", "LOHA", "LOKR"):
        raise ImmunityError(
            expected="a PEFT adapter that adds to weights (LORA, LOHA, LOKR)",
            got=f"{kind} in {path}",
            remedy="merging it first",
        )
    return config


def _refused(path: Path, got: str, remedy: str) -> ImmunityError:
    return ImmunityError(expected=CHANGES, got=f"{path} ({got})", remedy=remedy)
