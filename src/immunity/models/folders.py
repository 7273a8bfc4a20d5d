"""Reading the pipeline folders of diffusers: what is in them, and a clear word on what is wrong with them."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from immunity.errors import ImmunityError

PIPELINE = "StableDiffusionPipeline"
COMPONENTS = {
    "unet": "UNet2DConditionModel",
    "vae": "AutoencoderKL",
    "text_encoder": "CLIPTextModel",
    "tokenizer": "CLIPTokenizer",
}
REMEDY = f"a diffusers folder of Stable Diffusion 1.x or 2.x (model_index.json with {PIPELINE})"

UNREADABLE = (OSError, ValueError, KeyError, AttributeError, RuntimeError)
"""What diffusers, transformers and safetensors raise on a damaged or incomplete folder."""


def read_index(folder: Path) -> dict[str, Any]:
    """model_index.json. Raises OSError or ValueError if there is none to read."""
    index = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
    if not isinstance(index, dict):
        raise ValueError("not a JSON object")
    return index


def check_folder(folder: Path) -> None:
    """Raises `ImmunityError` unless `folder` is a pipeline of Stable Diffusion 1.x or 2.x."""
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
        raise ImmunityError(expected="a diffusers pipeline folder", got=got, remedy=REMEDY) from error
    except (OSError, ValueError) as error:
        raise ImmunityError(
            expected="a readable model_index.json", got=f"{folder} ({error})", remedy="downloading the folder again"
        ) from error
    if (found := index.get("_class_name")) != PIPELINE:
        raise ImmunityError(expected=f"a {PIPELINE}", got=f"{found} in {folder}", remedy=REMEDY)
    for component, kind in COMPONENTS.items():
        entry = index.get(component)
        found = entry[1] if isinstance(entry, list) and len(entry) == 2 else entry
        # Fast and slow tokenizers of transformers are one class in some versions, two in others.
        if found not in (kind, f"{kind}Fast"):
            raise ImmunityError(expected=f"{kind} as {component}", got=f"{found} in {folder}", remedy=REMEDY)
        if not (folder / component).is_dir():
            raise ImmunityError(
                expected=f"the folder {component} in {folder}", got="none", remedy="downloading the folder again"
            )


def read_weights(kind: Any, folder: Path) -> nn.Module:
    """A component in float32, whatever it is stored in, from safetensors only.

    `kind` is a model class of diffusers or transformers.
    """
    module: nn.Module
    module, report = kind.from_pretrained(
        folder,
        torch_dtype=torch.float32,
        use_safetensors=True,
        variant=_variant(folder),
        local_files_only=True,
        output_loading_info=True,
    )
    # The libraries fill what a file lacks with random numbers, and only warn.
    if missing := sorted(report["missing_keys"]):
        raise ImmunityError(
            expected=f"all weights of {kind.__name__} in {folder}",
            got=f"none for {missing[0]} ({len(missing)} missing)",
            remedy="downloading the folder again",
        )
    return module


def _variant(folder: Path) -> str | None:
    """ "fp16" where a folder holds the half-precision files only."""
    names = [file.name for file in folder.glob("*.safetensors*")]
    return "fp16" if names and all(".fp16." in name for name in names) else None


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
