"""Finding a judge's files: in a folder, or in the local cache of the hub. Nothing is ever downloaded here."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from immunity.errors import ImmunityError
from immunity.files.hub import UnavailableError, download
from immunity.models.folders import quiet_libraries
from immunity.models.trust import check_part

T = TypeVar("T")


def find(source: str | Path, wanted: str) -> Path:
    """The folder that holds the judge: `source` itself, or the cached snapshot of the hub repository of that name.

    `wanted` says what is looked for, in words for the error: "CLIP ViT-B/32".
    """
    folder = Path(source)
    if folder.is_dir():
        if (folder / "config.json").is_file():
            loaded(wanted, folder, lambda: check_part(folder))
            return folder
        raise ImmunityError(
            expected=f"{wanted} in {folder}",
            got="a folder without config.json",
            remedy="the folder that transformers' save_pretrained wrote",
        )
    try:
        return download(str(source), local_only=True)
    except UnavailableError as error:
        raise ImmunityError(
            expected=f"{wanted} in a folder or in the local cache",
            got=f"nothing at {os.fspath(source)!r}",
            remedy=f"downloading it once with `hf download {os.fspath(source)}`, or the path of a folder that has it",
        ) from error


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
