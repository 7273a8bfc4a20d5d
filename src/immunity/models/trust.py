"""What the settings in somebody's folder may not ask of diffusers and transformers: code, files from elsewhere."""

import json
from collections.abc import Iterator
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from immunity.errors import ImmunityError

_FILES = frozenset({"vocab", "merges", "vocab_file", "merges_file", "tokenizer_file"})
"""Settings of tokenizers that, as texts, are read as names of files; which of them, depends on the version."""


def scheduler_class(entry: object) -> Any:
    """The class that model_index.json names as the scheduler. Any other class would do as it likes with the folder."""
    import diffusers

    library, name = entry if isinstance(entry, list) and len(entry) == 2 else (None, entry)
    kind = getattr(diffusers, name, None) if library == "diffusers" and isinstance(name, str) else None
    if not (isinstance(kind, type) and issubclass(kind, diffusers.SchedulerMixin)):
        raise ImmunityError(
            expected="a scheduler that this installation of diffusers has",
            got=f"{str(entry)[:100]} in model_index.json",
            remedy="the folder that the model was published with",
        )
    return kind


def check_part(folder: Path) -> None:
    """Raises `ImmunityError` where a part's folder leads out of itself, or to anything but plain weights.

    What cannot be read raises what it raises.
    """
    if (folder / "adapter_config.json").exists():
        raise ImmunityError(
            expected="weights alone", got=f"an adapter beside them in {folder}", remedy="--deltas for the adapter"
        )
    for name in ("config.json", "scheduler_config.json", "tokenizer_config.json"):
        if (folder / name).exists():
            content = _read(folder / name)
            if not isinstance(content, dict):  # diffusers would take a text for a name on the hub
                raise ValueError(f"{name} in {folder.name} is no JSON object")
            for setting, value in _settings(content):
                _check_setting(setting, value, folder / name)
    for index in sorted(folder.glob("*.safetensors*.json")):
        for shard in _read(index)["weight_map"].values():
            if not _is_file_name(shard):
                raise _leads_out(f"{shard!r} in {index}")


def _check_setting(name: str, value: object, file: Path) -> None:
    if name == "quantization_config" and value is not None:
        raise ImmunityError(
            expected="weights as they were trained; quantised ones are not supported",
            got=f"{name} in {file}",
            remedy="the unquantised folder of the same model",
        )
    if "attn_implementation" in name and "/" in json.dumps(value):
        raise ImmunityError(
            expected="attention as transformers computes it",
            got=f"{name} {value!r} in {file}, which is code from elsewhere",
            remedy="removing that setting",
        )
    if name == "transformers_weights" and value is not None:
        raise ImmunityError(
            expected="weights under their usual names", got=f"{name} {value!r} in {file}", remedy="renaming them"
        )
    if name in _FILES and isinstance(value, str) and not _is_file_name(value):
        raise _leads_out(f"{name} {value!r} in {file}")


def _read(file: Path) -> Any:
    return json.loads(file.read_text(encoding="utf-8"))


def _settings(content: object) -> Iterator[tuple[str, object]]:
    """Every setting, at whatever depth, and what it is."""
    waiting = [content]
    while waiting:
        match waiting.pop():
            case dict() as entries:
                yield from entries.items()
                waiting += entries.values()
            case list() as entries:
                waiting += entries


def _is_file_name(value: object) -> bool:
    return (
        isinstance(value, str) and value == PurePosixPath(value).name == PureWindowsPath(value).name and value != ".."
    )


def _leads_out(got: str) -> ImmunityError:
    return ImmunityError(
        expected="names of files in the same folder", got=got, remedy="the folder that the model was published with"
    )
