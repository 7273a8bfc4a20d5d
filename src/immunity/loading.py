"""From a name to a model."""

from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import get_args

import torch

from immunity.errors import ImmunityError
from immunity.files import Change, read_change
from immunity.files.checkpoints import convert
from immunity.files.hub import HUB_ID, UnavailableError, download
from immunity.inside import check_all_inside
from immunity.models import AnyModel, DiffusionModel
from immunity.models.folders import pipeline_of
from immunity.worlds import WORLDS, World

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "float64": torch.float64}

FAMILIES = {family.pipeline_class: family for family in get_args(AnyModel)}
"""By the pipeline class that model_index.json names."""

_PARTS = sorted({part for family in FAMILIES.values() for part in family.parts})
# Safetensors only: a pickle is never even downloaded.
_HUB_FILES = [
    "model_index.json",
    "scheduler/*.json",
    *(f"{part}/*" for part in _PARTS if part.startswith("tokenizer")),
    *(f"{part}/*.{suffix}" for part in _PARTS for suffix in ("json", "safetensors")),
]


def load(
    source: str | Path,
    *,
    deltas: Sequence[Change | str | Path] = (),
    device: str = "cpu",
    dtype: str = "float32",
    vae_dtype: str = "float32",
    config: str | Path | None = None,
    compiled: bool = False,
) -> DiffusionModel:
    """The model of a diffusers folder, of a world by its name ("emoji") or of a hub id, with `deltas` applied in order.

    `deltas` may be files, of this package or of other programs (docs/files.md). The source may also be a whole model in
    one file (.safetensors, .ckpt); `config` is then where the settings come from that it does not have: see `convert`.

    The family follows from the folder's model_index.json. `dtype` is that of the denoiser and the text encoders. The
    autoencoder has its own, as half precision makes it overflow. An existing folder wins over a world or hub id of the
    same name. `compiled` has the denoiser compiled (`torch.compile`) when it first runs, for long work on a GPU; what
    it computes differs by rounding.
    """
    where = _device(device)
    loaded = [read_change(delta) if isinstance(delta, str | Path) else delta for delta in deltas]
    with TemporaryDirectory(prefix="immunity-") as scratch:
        folder = _folder(source)
        if folder.is_file():
            folder = convert(folder, Path(scratch) / "model", config=config)
        elif config is not None:
            raise ImmunityError(
                expected="a whole model in one file, where settings are given for it",
                got=str(source),
                remedy="leaving the settings (--config) out",
            )
        else:
            check_all_inside(folder)
        model = _from_folder(folder, name=_name(source), device=where, dtype=dtype, vae_dtype=vae_dtype)
    for delta in loaded:
        delta.on(model).apply(model)
    if compiled:
        # In place, so that parameters keep their names and adapters find their layers.
        model.components[model.denoiser].compile()
    return model


def _from_folder(folder: Path, *, name: str, device: torch.device, dtype: str, vae_dtype: str) -> DiffusionModel:
    found = pipeline_of(folder, supported={pipeline: family.family for pipeline, family in FAMILIES.items()})
    model: DiffusionModel = FAMILIES[found].from_folder(
        folder, name=name, device=device, dtype=_dtype(dtype), vae_dtype=_dtype(vae_dtype)
    )
    return model


def _name(source: str | Path) -> str:
    for world in WORLDS:
        if Path(source).is_dir() and Path(source).resolve() == World.open(world).generator.resolve():
            return world
    if not Path(source).exists():
        return str(source)
    path = Path(source).resolve()
    if path.parent.name == "snapshots" and (repository := path.parent.parent.name).startswith("models--"):
        return repository.removeprefix("models--").replace("--", "/")  # as the hub's cache has it
    # The name goes into provenance: of a path only its last part, which says nothing about the machine.
    return path.name


def _folder(source: str | Path) -> Path:
    path = Path(source)
    if path.exists() or isinstance(source, Path):
        return path
    if source in WORLDS:
        return World.open(source).generator
    if HUB_ID.fullmatch(source):
        return _from_hub(source)
    raise ImmunityError(
        expected="a diffusers folder, a whole model in one file, a world, or a hub id",
        got=f"{source!r}, which is none of them",
        remedy=f"a path that exists, one of {', '.join(WORLDS)}, or owner/name",
    )


def _from_hub(name: str) -> Path:
    try:
        return download(name, patterns=_HUB_FILES)
    except UnavailableError as error:
        raise ImmunityError(
            expected="a folder that exists here, or a model that the hub has",
            got=f"{name!r} ({error}: no such folder, and not to be had from the hub)",
            remedy=f"checking the spelling and the connection, or a world: {', '.join(WORLDS)}",
        ) from error


def _dtype(name: str) -> torch.dtype:
    if name not in DTYPES:
        raise ImmunityError(expected=f"a dtype: {', '.join(DTYPES)}", got=repr(name), remedy="float32")
    return DTYPES[name]


def _device(name: str) -> torch.device:
    try:
        device = torch.device(name)
        torch.ones(1, device=device).item()  # which a device without memory cannot answer
    except (RuntimeError, AssertionError) as error:  # PyTorch reports a build without CUDA as an AssertionError
        raise ImmunityError(
            expected="a device that this PyTorch can use", got=f"{name!r} ({str(error).splitlines()[0]})", remedy="cpu"
        ) from error
    return device
