"""Reading the pipeline folders of diffusers: what is in them, and a clear word on what is wrong with them."""

import json
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from immunity.errors import ImmunityError
from immunity.models.trust import check_part, scheduler_class

_TYPES = {"F16": torch.float16, "BF16": torch.bfloat16}
_VARIANTS = {name: re.compile(rf"\.{name}[.-]") for name in ("fp16", "bf16")}
"""How they show in names: `model.fp16.safetensors`, `model.fp16-00001-of-00002.safetensors`, `….index.fp16.json`."""


def read_index(folder: Path) -> dict[str, Any]:
    """model_index.json. Raises OSError or ValueError if there is none to read."""
    try:
        index = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
    except RecursionError as error:
        raise ValueError("brackets in brackets without end") from error
    if not isinstance(index, dict):
        raise ValueError("not a JSON object")
    return index


def pipeline_of(folder: Path, *, supported: Mapping[str, str]) -> str:
    """The pipeline class that a folder names; `supported` maps the classes that are known to the families' names.

    Raises `ImmunityError` if it is not a pipeline folder, or one of another class.
    """
    known = "a diffusers folder of " + "; ".join(f"{family} ({pipeline})" for pipeline, family in supported.items())
    if folder.is_file():
        raise ImmunityError(
            expected="a diffusers pipeline folder",
            got=f"the file {folder}",
            remedy="converting it: StableDiffusionPipeline.from_single_file(file).save_pretrained(folder)",
        )
    try:
        index = read_index(folder)
    except FileNotFoundError as error:
        got = f"{folder}, {'a folder without model_index.json' if folder.is_dir() else 'which does not exist'}"
        raise ImmunityError(expected="a diffusers pipeline folder", got=got, remedy=known) from error
    except (OSError, ValueError) as error:
        raise ImmunityError(
            expected="a readable model_index.json", got=f"{folder} ({error})", remedy="downloading the folder again"
        ) from error
    found = index.get("_class_name")
    if not isinstance(found, str) or found not in supported:
        raise ImmunityError(expected=f"one of {', '.join(supported)}", got=f"{found} in {folder}", remedy=known)
    return found


def check_parts(folder: Path, parts: Mapping[str, str], *, optional: Collection[str]) -> list[str]:
    """The parts that a pipeline folder has, of those that it should; `parts` maps their names to their classes."""
    index = read_index(folder)
    present = []
    for part, kind in parts.items():
        entry = index.get(part)
        found = entry[1] if isinstance(entry, list) and len(entry) == 2 else entry
        if found is None and part in optional:
            continue
        # Fast and slow tokenizers of transformers are one class in some versions, two in others.
        if found not in (kind, f"{kind}Fast"):
            raise ImmunityError(
                expected=f"{kind} as {part}",
                got=f"{found} in {folder}",
                remedy="the folder that the model was published with",
            )
        if not (folder / part).is_dir():
            raise ImmunityError(
                expected=f"the folder {part} in {folder}", got="none", remedy="downloading the folder again"
            )
        present.append(part)
    if not (folder / "scheduler" / "scheduler_config.json").is_file():
        raise ImmunityError(
            expected=f"scheduler/scheduler_config.json in {folder}", got="none", remedy="downloading the folder again"
        )
    for number in ("", "_2", "_3"):
        if (f"text_encoder{number}" in present) != (f"tokenizer{number}" in present):
            raise ImmunityError(
                expected=f"both or neither of text_encoder{number} and tokenizer{number}",
                got=f"one of them in {folder}",
                remedy="downloading the folder again",
            )
    if not any(part.startswith("text_encoder") for part in present):
        raise ImmunityError(
            expected="at least one text encoder", got=f"none in {folder}", remedy="downloading the folder again"
        )
    return present


def read_parts(
    folder: Path, parts: Mapping[str, str], *, optional: Collection[str], dtypes: Callable[[str], torch.dtype]
) -> dict[str, Any]:
    """The parts of a pipeline folder, and its scheduler; nothing for an optional part it lacks.

    `dtypes` says what a part will be used in. It is read in that where it is stored so, else in float32.
    """
    with readable(folder), quiet_libraries():
        import diffusers
        import transformers

        present = check_parts(folder, parts, optional=optional)
        scheduler = scheduler_class(read_index(folder).get("scheduler"))
        check_part(folder / "scheduler")
        read = {"scheduler": scheduler.from_pretrained(folder / "scheduler", local_files_only=True)}
        for part in present:
            check_part(folder / part)
            kind = getattr(transformers if part.startswith(("text", "token")) else diffusers, parts[part])
            if part.startswith("tokenizer"):
                read[part] = kind.from_pretrained(folder / part, local_files_only=True)
            else:
                read[part] = read_weights(kind, folder / part, dtype=dtypes(part))
            if part.startswith("text_encoder"):
                # T5 has two modules with one table between them: one module, so that words are added in one place.
                read[part].set_input_embeddings(read[part].get_input_embeddings())
    return read


@contextmanager
def readable(folder: Path) -> Iterator[None]:
    """What goes wrong in the block is the folder's fault, but for memory: a wrong setting may lead to anything."""
    try:
        yield
    except (ImmunityError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        raise ImmunityError(
            expected="a complete diffusers folder with safetensors weights",
            got=f"{folder} ({str(error).strip() or type(error).__name__})",
            remedy="downloading it again, or saving it with pipe.save_pretrained(folder)",
        ) from error


def read_weights(kind: Any, folder: Path, *, dtype: torch.dtype = torch.float32) -> nn.Module:
    """A component, from safetensors only: in `dtype` if all of it is stored so, else in float32.

    So nothing is rounded in reading, and half-precision weights for half-precision work never take twice their room.
    `kind` is a model class of diffusers or transformers.
    """
    variant = _variant(folder)
    module: nn.Module
    module, report = kind.from_pretrained(
        folder,
        torch_dtype=dtype if _stored(folder, variant) == {dtype} else torch.float32,
        use_safetensors=True,
        variant=variant,
        local_files_only=True,
        output_loading_info=True,
    )
    check_complete(report, f"{kind.__name__} in {folder}")
    return module


def check_complete(report: Mapping[str, Any], what: str) -> None:
    """Raises `ImmunityError` where `from_pretrained` reports that the files lack weights.

    The libraries fill them with random numbers, and only warn.
    """
    if missing := sorted(report["missing_keys"]):
        raise ImmunityError(
            expected=f"all weights of {what}",
            got=f"none for {missing[0]} ({len(missing)} missing)",
            remedy="downloading the folder again, or a complete copy of it",
        )


def _variant(folder: Path) -> str | None:
    """ "fp16" or "bf16" where a folder holds such files only."""
    names = [file.name for file in folder.glob("*.safetensors*")]
    found = (name for name, mark in _VARIANTS.items() if names and all(map(mark.search, names)))
    return next(found, None)


def _stored(folder: Path, variant: str | None) -> set[torch.dtype]:
    """The types of the weights, by the headers of the files alone; nothing where they cannot be read."""
    from safetensors import SafetensorError, safe_open

    found = set()
    try:
        for file in folder.glob("*.safetensors"):
            if variant is None or _VARIANTS[variant].search(file.name):
                with safe_open(file, framework="pt") as tensors:
                    found |= {tensors.get_slice(name).get_dtype() for name in tensors.keys()}  # noqa: SIM118
    except SafetensorError:
        return set()  # who reads the weights says what is wrong with them
    return {_TYPES.get(name, torch.float32) for name in found}


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Holds back the progress bars and import-time advice of diffusers and transformers, and puts both back after."""
    from diffusers.utils import logging as diffusers_log
    from transformers.utils import logging as transformers_log

    logs = (diffusers_log, transformers_log)
    levels = [log.get_verbosity() for log in logs]
    bars = [log.is_progress_bar_enabled() for log in logs]
    try:
        for log in logs:
            log.set_verbosity_error()
            log.disable_progress_bar()
        yield
    finally:
        for log, level, bar in zip(logs, levels, bars, strict=True):
            log.set_verbosity(level)
            if bar:
                log.enable_progress_bar()
