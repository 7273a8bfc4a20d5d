"""The hub: what it has, and what is published there. Nothing but `push` uploads anything."""

import re
from collections.abc import Sequence
from pathlib import Path

from immunity.errors import ImmunityError
from immunity.filenames import DELTA_FILE, LORA_FILE, TOKEN_FILE
from immunity.files.tensors import PICKLES
from immunity.inside import check_all_inside

HUB_ID = re.compile(r"[\w][\w.-]*/[\w][\w.-]*")
_OF_THE_HUB = {".gitattributes"}
_MARKS = ("model_index.json", DELTA_FILE, "adapter_config.json", LORA_FILE, TOKEN_FILE)


class UnavailableError(Exception):
    """Not to be had: no such name, no connection, or not in the cache where nothing else was asked for."""


def download(name: str, *, patterns: Sequence[str] | None = None, local_only: bool = False) -> Path:
    """The folder of a repository in the hub's cache, with what is missing of it, or as it is with `local_only`.

    Raises `UnavailableError`, whose text is the kind of trouble: callers know what was wanted, and what else would do.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    try:
        return Path(snapshot_download(name, allow_patterns=patterns, local_files_only=local_only))
    except Exception as error:
        # What is not in the cache, and a name that cannot be one, are an OSError and a ValueError.
        of_the_hub = isinstance(error, HfHubHTTPError | OfflineModeIsEnabled | OSError | ValueError)
        if not of_the_hub and not _is_of_the_network(error):
            raise
        raise UnavailableError(type(error).__name__) from error


def push(folder: Path, name: str, *, private: bool = False, force: bool = False) -> str:
    """Uploads an exported model, or the folder of an attack, as the repository `name`; answers with its address.

    The repository is made if it does not exist. One that has files is refused without `force`, which replaces those of
    the same names and deletes none. The token is the one that `hf auth login` or HF_TOKEN has set.
    """
    _check(folder, name)
    from huggingface_hub import HfApi, get_token
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    if get_token() is None:
        raise ImmunityError(
            expected="a token of the hub, with the right to write", got="none", remedy="hf auth login, or HF_TOKEN"
        )
    api = HfApi()
    try:
        if api.repo_exists(name):
            there = sorted(set(api.list_repo_files(name)) - _OF_THE_HUB)
            if there and not force:
                raise ImmunityError(
                    expected="a repository that is new or empty",
                    got=f"{name} with {len(there)} files, e.g. {there[0]}",
                    remedy="another name, or --force to replace files of the same names",
                )
        else:
            api.create_repo(name, private=private)
        api.upload_folder(repo_id=name, folder_path=folder, commit_message="Upload with immunity")
    except (HfHubHTTPError, OfflineModeIsEnabled, OSError, ValueError) as error:
        raise ImmunityError(
            expected=f"to upload {folder} to {name}",
            got=f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else 'no answer'}",
            remedy="checking the connection, the name and what the token may do; what was uploaded before is kept",
        ) from error
    except Exception as error:
        if not _is_of_the_network(error):
            raise
        raise ImmunityError(
            expected="the hub to answer", got=f"{type(error).__name__}: {error}", remedy="checking the connection"
        ) from error
    return f"https://huggingface.co/{name}"


def _is_of_the_network(error: Exception) -> bool:
    """Whether it comes from what speaks HTTP for the hub's client: requests once, then httpx, then httpx2."""
    return type(error).__module__.startswith(("httpx", "httpcore", "requests", "urllib3"))


def _check(folder: Path, name: str) -> None:
    if not HUB_ID.fullmatch(name):
        raise ImmunityError(expected="a name such as owner/name", got=repr(name), remedy="your name and the model's")
    if not folder.is_dir() or not any((folder / mark).is_file() for mark in _MARKS):
        raise ImmunityError(
            expected="an exported model, or the folder of an attack",
            got=f"{folder} ({'which does not exist' if not folder.exists() else 'which is something else'})",
            remedy="immunity export --model M --out FOLDER",
        )
    check_all_inside(folder)
    if pickles := sorted(path for path in folder.rglob("*") if path.suffix in PICKLES):
        raise ImmunityError(
            expected="a folder without pickles, which nobody should be asked to trust",
            got=str(pickles[0]),
            remedy="immunity export, which writes safetensors",
        )
