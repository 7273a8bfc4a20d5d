"""Adapters as they circulate, each layout by its names: what they do to a model, as a delta.

| layout | a layer's tensors |
|---|---|
| diffusers, PEFT | `unet.….to_k.lora_A.weight`, `….lora_B.weight` |
| old diffusers | `unet.….processor.to_k_lora.down.weight`, `….lora.down.weight`, `….lora_linear_layer.down.weight` |
| kohya | `lora_unet_…_to_k.lora_down.weight`, `….lora_up.weight`, `….alpha` |
| LyCORIS | `lora_unet_….hada_w1_a`, `….lokr_w1`, `….diff`, … |
"""

import hashlib
import json
import math
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from immunity.deltas import Delta, Patchable, Provenance, is_finite
from immunity.errors import ImmunityError
from immunity.filenames import ADAPTER_KEY
from immunity.files.factors import KINDS, Factors, Whole
from immunity.files.layers import Layer, Layers, family_of, plain, summary
from immunity.files.settings import by_component
from immunity.files.tensors import TensorFile, is_real, type_and_shape

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
    "bundle_emb.": "a LoRA with learned tokens in it (bundle_emb)",
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
    identity: str
    """What it is in a chain of deltas: the file's SHA-256, or that of the file and of what settings beside it say."""
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
        for layer, bias in biases.items():
            _check_real(bias, f"a bias for {layer}", file.path)
        layers = {layer: _factors(layer, tensors, file.path) for layer, tensors in parts.items() if tensors}
        try:
            settings = by_component(config or json.loads(file.metadata.get("lora_adapter_metadata", "{}")))
            layers = {layer: settings[layer.split(".", 1)[0]].scaled(own, layer) for layer, own in layers.items()}
        except (ValueError, TypeError, AttributeError, OverflowError, RecursionError, re.error) as error:
            raise _refused(file.path, f"settings that cannot be read: {error}", "a file that is whole") from error
        digest = file.digest()
        return cls(
            file=name or file.path.name,
            sha256=digest,
            identity=digest if config is None else _identity(digest, layers),
            layout=layout if config is None else "PEFT",
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
        if broken := next((name for name, value in tensors.items() if not is_finite(value)), None):
            raise ImmunityError(
                expected="an adapter of finite numbers",
                got=f"none such for {broken} in {self.file}",
                remedy="another file",
            )
        config = {"file": self.file, "sha256": self.sha256, "layout": self.layout, "notes": dict(self.notes)}
        made = Provenance.upon(model, method=type(self).__name__, config=config)
        # The values depend on the model's type and the machine's rounding; what is made upon them must find them again.
        return Delta(tensors, replace(made, composed=(self.identity,)))


def _identity(digest: str, layers: Mapping[str, Factors]) -> str:
    scales = {layer: factors.scale_in_full() for layer, factors in layers.items()}
    return hashlib.sha256(json.dumps([digest, scales], sort_keys=True).encode()).hexdigest()


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
    alpha = _alpha(tensors.pop("alpha", None), layer, path)
    roles = frozenset(tensors)
    for kind in KINDS:
        if any(needed <= roles <= needed | kind.may for needed in kind.needs):
            for role, tensor in tensors.items():
                _check_real(tensor, f"{role} for {layer}", path)
            return kind(tensors, alpha)
    lacking = ", ".join(sorted(roles)) or "alpha alone"
    raise _refused(path, f"{layer} with {lacking}, which is not all that a layer needs", "a file that is whole")


def _alpha(tensor: Tensor | None, layer: str, path: Path) -> float | None:
    if tensor is None:
        return None
    # Trainers write whole numbers, too.
    known = is_real(tensor.reshape(-1)) or not (tensor.is_floating_point() or tensor.is_complex())
    alpha = float(tensor.double()) if known and tensor.numel() == 1 else math.nan
    if not math.isfinite(alpha):
        raise _refused(path, f"{type_and_shape(tensor)}, which is no number, as alpha for {layer}", "another file")
    return alpha


def _check_real(tensor: Tensor, what: str, path: Path) -> None:
    if not is_real(tensor):
        got = f"{type_and_shape(tensor)} as {what}, where real numbers should be"
        raise _refused(path, got, "an adapter that is not quantised")


def _notes(metadata: Mapping[str, str]) -> dict[str, str]:
    """What is short of it: trainers write whole histograms of captions into their headers."""

    def wanted() -> Iterator[tuple[str, str]]:
        for key in sorted(metadata):
            if key not in ("format", "lora_adapter_metadata", ADAPTER_KEY) and len(metadata[key]) <= _LONGEST_NOTE:
                yield key, metadata[key]

    return dict(list(wanted())[:60])


def _refused(path: Path, got: str, remedy: str) -> ImmunityError:
    return ImmunityError(expected="an adapter of a kind that is read", got=f"{path} ({got})", remedy=remedy)
