"""Finding a judge's files: in a folder, or in the local cache of the hub. Nothing is ever downloaded here."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch

from immunity.errors import ImmunityError
from immunity.files.hub import UnavailableError, download
from immunity.models.folders import check_complete, quiet_libraries
from immunity.models.trust import check_part

T = TypeVar("T")


def find(source: str | Path, wanted: str) -> Path:
    """The folder that holds the judge: `source` itself, or the cached snapshot of the hub repository of that name.

    `wanted` says what is looked for, in words for the error: "CLIP ViT-B/32".
    """
    folder = Path(source)
    if folder.is_dir():
        if (folder / "config.json").is_file():
            return _checked(wanted, folder)
        raise ImmunityError(
            expected=f"{wanted} in {folder}",
            got="a folder without config.json",
            remedy="the folder that transformers' save_pretrained wrote",
        )
    try:
        return _checked(wanted, download(str(source), local_only=True))
    except UnavailableError as error:
        raise ImmunityError(
            expected=f"{wanted} in a folder or in the local cache",
            got=f"nothing at {os.fspath(source)!r}",
            remedy=f"downloading it once with `hf download {os.fspath(source)}`, or the path of a folder that has it",
        ) from error


def _checked(wanted: str, folder: Path) -> Path:
    loaded(wanted, folder, lambda: check_part(folder))
    return folder


def network(wanted: str, folder: Path, kind: Any, **options: object) -> Any:
    """The network of an auto class of transformers, in float32, with every weight from the folder's files."""

    def load() -> tuple[Any, dict[str, Any]]:
        found: tuple[Any, dict[str, Any]] = kind.from_pretrained(
            folder, dtype=torch.float32, local_files_only=True, output_loading_info=True, **options
        )
        return found

    model, report = loaded(wanted, folder, load)
    check_complete(report, f"{wanted} in {folder}")
    return model


def loaded(wanted: str, folder: Path, load: Callable[[], T]) -> T:
    """What `load` returns; files that are missing or broken become `ImmunityError`."""
    from safetensors import SafetensorError

    try:
        with quiet_libraries():
            return load()
    # transformers raises each of these for files that are missing, cut short, or of another model.
    except (OSError, ValueError, KeyError, RuntimeError, TypeError, SafetensorError) as error:
        raise ImmunityError(
            expected=f"{wanted} in {folder}",
            got=f"{type(error).__name__}: {error}",
            remedy="a complete copy of its folder",
        ) from error
