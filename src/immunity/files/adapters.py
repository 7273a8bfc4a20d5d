"""Adapters as they circulate, each layout by its names: what they do to a model, as a delta.

| layout | a layer's tensors |
|---|---|
| diffusers, PEFT | `unet.….to_k.lora_A.weight`, `….lora_B.weight` |
| old diffusers | `unet.….processor.to_k_lora.down.weight`, `….lora.down.weight`, `….lora_linear_layer.down.weight` |
| kohya | `lora_unet_…_to_k.lora_down.weight`, `….lora_up.weight`, `….alpha` |
| LyCORIS | `lora_unet_….hada_w1_a`, `….lokr_w1`, `….diff`, … |
"""

import json
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from immunity.deltas import Delta, Patchable, Provenance
from immunity.errors import ImmunityError
from immunity.files.factors import KINDS, Factors, Whole
from immunity.files.layers import Layer, Layers, family_of, plain, summary
from immunity.files.tensors import TensorFile

_ENDS = {
    **{
        f".lora_{end}{inside}.weight": role for end, role in (("A", "down"), ("B", "up")) for inside in ("", ".default")
    },
    **{f".lora_{end}.weight": end for end in ("down", "up", "mid")},
    **{f"{infix}.{end}.weight": end for infix in (".lora", "_lora", ".lora_linear_layer") for end in ("down", "up")},
    **{f".lora_magnitude_vector{inside}": "magnitude" for inside in ("", ".weight", ".default", ".default.weight")},
    **{
        f".hada_{part}{inside}": f"hada_{part}"
        for part in ("w1_a", "w1_b", "w2_a", "w2_b", "t1", "t2")
        for inside in ("", ".default")
    },
    **{
        f".lokr_{part}{inside}": f"lokr_{part}"
        for part in ("w1", "w1_a", "w1_b", "w2", "w2_a", "w2_b", "t2")
        for inside in ("", ".default")
    },
    **{f"{infix}.alpha": "alpha" for infix in (".lora", "_lora", ".lora_linear_layer")},
    ".dora_scale": "dora_scale",
    ".alpha": "alpha",
    ".diff": "diff",
    ".diff_b": "bias",
    ".w_norm": "diff",
    ".b_norm": "bias",
}
_ENDS = {end: _ENDS[end] for end in sorted(_ENDS, key=len, reverse=True)}
_OTHERS = {
    ".oft_": "OFT",
    ".boft_": "BOFT",
    ".on_input": "(IA)³",
    "ia3_": "(IA)³",
    "lora_embedding_": "a LoRA of an embedding",
    ".a1.": "GLoRA",
    "vera_lambda": "VeRA",
    ".modules_to_save.": "whole modules beside a LoRA",
}
_MARKS = re.compile(r"[._]lora[._]|\.lora_(A|B|down|up)|\.hada_|\.lokr_|\.dora_scale|\.diff(_b)?$|\.[wb]_norm$")
_LONGEST_NOTE = 200


@dataclass(frozen=True, eq=False)
class Adapter:
    """Small tensors beside a model, as trainers write them."""

    file: str
    """Its name, which says nothing about the machine."""
    sha256: str
    layout: str
    layers: Mapping[str, Factors]
    """By the layers' names in the file."""
    biases: Mapping[str, Tensor]
    """What is added to biases, by the same."""
    notes: Mapping[str, str]
    """What the file says of itself."""

    @classmethod
    def looks_so(cls, names: Mapping[str, Any]) -> bool:
        return any(_MARKS.search(name) for name in names) or any(mark in name for name in names for mark in _OTHERS)

    @classmethod
    def from_file(
        cls, file: TensorFile, *, name: str | None = None, config: Mapping[str, Any] | None = None
    ) -> "Adapter":
        """`config` is the adapter_config.json of PEFT's folders."""
        parts, layout = _sorted_parts(file)
        biases = {layer: tensors.pop("bias") for layer, tensors in parts.items() if "bias" in tensors}
        layers = {}
        for layer, tensors in parts.items():
            if tensors:
                layers[layer] = _factors(layer, tensors, file.path)
        try:
            own = config or json.loads(file.metadata.get("lora_adapter_metadata", "{}"))
            layers = {layer: _scaled(factors, _config_for(own, layer), layer) for layer, factors in layers.items()}
        except (ValueError, TypeError, AttributeError) as error:
            raise _refused(file.path, f"settings that cannot be read: {error}", "a file that is whole") from error
        if config is not None:
            layout = "PEFT"
        return cls(
            file=name or file.path.name,
            sha256=file.digest(),
            layout=layout,
            layers=layers,
            biases=biases,
            notes=_notes(file.metadata),
        )

    @property
    def kinds(self) -> str:
        return " and ".join(sorted({factors.kind for factors in self.layers.values()})) or "biases"

    @property
    def ranks(self) -> tuple[int, ...]:
        return tuple(sorted({factors.rank for factors in self.layers.values() if factors.rank is not None}))

    def describe(self) -> dict[str, object]:
        """For who asks what the file is."""
        alphas = sorted({f"{factors.alpha:g}" for factors in self.layers.values() if factors.alpha is not None})
        values = sum(tensor.numel() for one in self.layers.values() for tensor in one.tensors.values())
        rows = {
            "adapter": f"{self.kinds} in the layout of {self.layout}",
            **summary(self.layers or self.biases),
            "for": family_of(self.layers or self.biases) or "unknown",
            "rank": ", ".join(map(str, self.ranks)) or "full",
            "alpha": ", ".join(alphas[:8]) or "none, a scale of one",
            "size": f"{values:,} values",
            "sha256": self.sha256,
        }
        return rows | ({"biases": len(self.biases)} if self.biases else {}) | dict(self.notes)

    @torch.no_grad()
    def on(self, model: Patchable) -> Delta:
        """What the adapter makes of the model as it stands: new values, in the types of its own."""
        layers = Layers.of(model)
        targets = layers.require((*self.layers, *(name for name in self.biases if name not in self.layers)), self.kinds)
        parameters = model.parameters("all")
        tensors: dict[str, Tensor] = {}
        for name, factors in self.layers.items():
            tensors |= _merged(targets[name], factors, name, parameters, "weight")
        for name, addition in self.biases.items():
            tensors |= _merged(targets[name], Whole({"diff": addition}), name, parameters, "bias")
        if broken := next((name for name, value in tensors.items() if not value.isfinite().all()), None):
            raise ImmunityError(
                expected="an adapter of finite numbers",
                got=f"none such for {broken} in {self.file}",
                remedy="another file",
            )
        config = {"file": self.file, "sha256": self.sha256, "layout": self.layout, "notes": dict(self.notes)}
        return Delta(tensors, Provenance.upon(model, method=type(self).__name__, config=config))


def _merged(
    layer: Layer, factors: Factors, name: str, parameters: Mapping[str, Tensor], kind: str
) -> dict[str, Tensor]:
    own = layer.parameters(parameters, kind)
    if len(own) < len(layer.parts):
        raise ImmunityError(
            expected=f"a layer with a {kind}",
            got=f"{name} without one",
            remedy="the kind of model that it was made for",
        )
    weights = [value.detach().cpu() for value in own.values()]
    whole = factors.merged(torch.cat(weights) if len(weights) > 1 else weights[0], name)
    split = whole.split([len(weight) for weight in weights])
    return {
        key: value.to(weight.dtype).contiguous().clone() for key, value, weight in zip(own, split, weights, strict=True)
    }


def _sorted_parts(file: TensorFile) -> tuple[dict[str, dict[str, Tensor]], str]:
    """The tensors by layer and role, and the layout."""
    parts: dict[str, dict[str, Tensor]] = defaultdict(dict)
    ends = set()
    strangers = []
    for key, tensor in file.tensors.items():
        end = next((end for end in _ENDS if key.endswith(end)), None)
        if end is None:
            strangers.append(key)
            continue
        name = plain(key.removesuffix(end))
        if parts[name].setdefault(_ENDS[end], tensor) is not tensor:
            raise _refused(file.path, f"two tensors for one: {key}", "another file")
        ends.add(end)
    if strangers:
        known = next((what for mark, what in _OTHERS.items() for key in strangers if mark in key), None)
        got = f"{known}, which is not supported" if known else f"{len(strangers)} other tensors, e.g. {strangers[0]}"
        raise _refused(file.path, got, "a LoRA, DoRA, LoHa, LoKr or full-difference adapter")
    return dict(parts), _layout(parts, ends)


def _layout(parts: Mapping[str, Any], ends: set[str]) -> str:
    if any(end.startswith((".hada_", ".lokr_", ".diff", ".w_norm")) for end in ends):
        return "LyCORIS"
    if any(name.startswith(("lora_", "lycoris_")) for name in parts) or ".lora_down.weight" in ends:
        return "kohya"
    return "diffusers" if any(end.startswith(".lora_A") for end in ends) else "old diffusers"


def _factors(layer: str, tensors: dict[str, Tensor], path: Path) -> Factors:
    alpha = tensors.pop("alpha", None)
    if alpha is not None and (alpha.numel() != 1 or not bool(alpha.isfinite().all())):
        raise _refused(
            path, f"an alpha of shape {list(alpha.shape)}, or none that is a number, for {layer}", "another file"
        )
    roles = frozenset(tensors)
    for kind in KINDS:
        if any(needed <= roles <= needed | kind.may for needed in kind.needs):
            if any(tensor.ndim < 1 or not tensor.is_floating_point() for tensor in tensors.values()):
                raise _refused(path, f"{layer} with tensors of whole numbers", "an adapter that is not quantised")
            return kind(tensors, None if alpha is None else float(alpha))
    lacking = ", ".join(sorted(roles)) or "alpha alone"
    raise _refused(path, f"{layer} with {lacking}, which is not all that a layer needs", "a file that is whole")


def _config_for(config: Mapping[str, Any], layer: str) -> Mapping[str, Any]:
    """diffusers keeps peft's settings of all components in one, as "unet.lora_alpha"."""
    component = layer.split(".", 1)[0] + "."
    own = {key.removeprefix(component): value for key, value in config.items() if key.startswith(component)}
    return own or config


def _scaled(factors: Factors, config: Mapping[str, Any], layer: str) -> Factors:
    """With the scale that peft's settings give it."""
    if factors.alpha is not None:
        return factors
    if config.get("fan_in_fan_out"):
        raise ImmunityError(
            expected="layers with outputs first",
            got="fan_in_fan_out in its settings",
            remedy="an adapter of a denoiser",
        )
    alpha = _matching(config.get("alpha_pattern"), layer)
    if alpha is None:
        alpha = config.get("lora_alpha", config.get("alpha"))
    rank = _matching(config.get("rank_pattern"), layer) or config.get("r") or factors.rank
    if alpha is None or not rank:
        return factors
    # The ranks are those of the tensors, but for a LoKr of whole factors, which peft scales all the same.
    rank = factors.rank or rank
    scale = float(alpha) / (rank**0.5 if config.get("use_rslora") else rank)
    return replace(factors, alpha=float(alpha), scale=scale)


def _matching(patterns: Any, layer: str) -> Any:
    for pattern, value in (patterns or {}).items():
        if f".{layer}".endswith(f".{pattern.removeprefix('^')}"):
            return value
    return None


def _notes(metadata: Mapping[str, str]) -> dict[str, str]:
    """What is short of it: trainers write whole histograms of captions into their headers."""

    def wanted() -> Iterator[tuple[str, str]]:
        for key in sorted(metadata):
            if (
                key not in ("format", "lora_adapter_metadata", "immunity_adapter")
                and len(metadata[key]) <= _LONGEST_NOTE
            ):
                yield key, metadata[key]

    return dict(list(wanted())[:60])


def _refused(path: Path, got: str, remedy: str) -> ImmunityError:
    return ImmunityError(expected="an adapter of a kind that is read", got=f"{path} ({got})", remedy=remedy)
