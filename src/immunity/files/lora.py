"""A LoRA in another program's layout."""

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from immunity.atomic import save_tensors
from immunity.deltas import Patchable
from immunity.errors import ImmunityError
from immunity.files.adapters import Adapter
from immunity.files.factors import LowRankFactors
from immunity.files.layers import Layers

Layout = Literal["diffusers", "kohya"]
_VERSIONS = {768: ("sd_v1", "False"), 1024: ("sd_v2", "True")}
"""By the width of the text encoder."""


def write_lora(
    adapter: Adapter,
    model: Patchable,
    path: str | Path,
    *,
    layout: Layout,
    header: Mapping[str, str] | None = None,
    force: bool = False,
) -> None:
    """Writes a LoRA or DoRA in the layout of diffusers or of kohya's trainer; `model` is one that it fits.

    What it does to the model is the same to rounding: where the layout of diffusers has no place for the scale, it goes
    into the second factor.
    """
    layers = Layers.of(model)
    targets = layers.require(adapter.layers, adapter.kinds)
    shapes = {name: value.shape for name, value in model.parameters("all").items()}
    if adapter.biases:
        raise _refused(adapter, "what it adds to biases")
    tensors: dict[str, Tensor] = {}
    for name, factors in adapter.layers.items():
        if not isinstance(factors, LowRankFactors) or "mid" in factors.tensors:
            raise _refused(adapter, f"{name}, a {factors.kind} of another form")
        down, up = _of_sixteen_bits(factors.tensors["down"]), _of_sixteen_bits(factors.tensors["up"])
        sizes = [shapes[f"{part}.weight"][0] for part in targets[name].parts]
        if sum(sizes) != len(up):
            raise _refused(adapter, f"{name} of {len(up)} outputs, where the model has {sum(sizes)}")
        starts = [sum(sizes[:number]) for number in range(len(sizes))]
        for part, size, start in zip(targets[name].parts, sizes, starts, strict=True):
            rows = slice(start, start + size)
            scale = factors.scale_in_full()
            magnitude = _by_outputs(adapter, name, factors)
            own = None if magnitude is None else magnitude[rows]
            if layout == "kohya":
                tensors |= _kohya(layers.kohya(part), down, up[rows], scale, own)
            else:
                tensors |= _diffusers(layers.diffusers(part), down, up[rows], scale, own)
    notes = {"ss_network_module": "networks.lora", **_version(shapes)} if layout == "kohya" else {}
    save_tensors(path, {key: value.clone() for key, value in tensors.items()}, {**notes, **(header or {})}, force=force)


def _version(shapes: Mapping[str, torch.Size]) -> dict[str, str]:
    """What kohya's trainer says of the model; A1111 shows those only that are for the model at hand by these words."""
    widths = {shape[1] for name, shape in shapes.items() if name.endswith("attn2.to_k.weight")}
    if "unet.add_embedding.linear_1.weight" in shapes:
        known: tuple[str, str] | None = ("sdxl_base_v1-0", "False")
    else:
        known = _VERSIONS.get(widths.pop()) if len(widths) == 1 else None
    return {} if known is None else dict(zip(("ss_base_model_version", "ss_v2"), known, strict=True))


def _kohya(name: str, down: Tensor, up: Tensor, scale: float, magnitude: Tensor | None) -> dict[str, Tensor]:
    tensors = {
        f"{name}.lora_down.weight": down,
        f"{name}.lora_up.weight": up,
        f"{name}.alpha": torch.tensor(scale * len(down)),
    }
    if magnitude is not None:
        tensors[f"{name}.dora_scale"] = magnitude.reshape(-1, *[1] * (down.ndim - 1))
    return tensors


def _diffusers(name: str, down: Tensor, up: Tensor, scale: float, magnitude: Tensor | None) -> dict[str, Tensor]:
    tensors = {f"{name}.lora_A.weight": down, f"{name}.lora_B.weight": up * scale}
    if magnitude is not None:
        tensors[f"{name}.lora_magnitude_vector"] = magnitude if down.ndim == 2 else magnitude.reshape(1, -1, 1, 1)
    return tensors


def _of_sixteen_bits(factor: Tensor) -> Tensor:
    """Floats of eight bits hold no product with a scale, and PyTorch does not multiply them."""
    return factor.to(torch.bfloat16) if factor.element_size() == 1 else factor


def _by_outputs(adapter: Adapter, name: str, factors: LowRankFactors) -> Tensor | None:
    found = factors.tensors.get("magnitude", factors.tensors.get("dora_scale"))
    if found is None:
        return None
    outputs = len(factors.tensors["up"])
    if found.numel() != outputs or ("dora_scale" in factors.tensors and len(found) != outputs):
        raise _refused(adapter, f"{name}, a DoRA with a magnitude for each input")
    return found.flatten()


def _refused(adapter: Adapter, got: str) -> ImmunityError:
    return ImmunityError(
        expected="a LoRA, which is what both layouts have a place for", got=f"{got} in {adapter.file}", remedy="a delta"
    )
