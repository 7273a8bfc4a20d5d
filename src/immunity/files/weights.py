"""Published weights that replace some of a model's own: what ESD's and IMMA's code leaves behind.

| from | file | names |
|---|---|---|
| ESD, 2023 (diffusers) | .pt | a dictionary of modules, `unet.….attn2.to_k`, each a dictionary of `weight` and `bias` |
| ESD, published U-Nets | .pt | the whole state dictionary of the U-Net |
| ESD, 2024 on | .safetensors | the parameters that were trained, by the U-Net's own names |
| IMMA | .pt | the attention's parameters, by the U-Net's own names |
| ESD, 2023 (CompVis) | .pt | `model.diffusion_model.…`, by the numbers of the first implementation |
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from immunity.deltas import Delta, Patchable, Provenance, is_finite
from immunity.errors import ImmunityError
from immunity.files.layers import Layers, family_of, plain, summary
from immunity.files.tensors import TensorFile, is_real, type_and_shape

_WEIGHT = re.compile(r"\.(weight|bias)$")
_DENOISER = re.compile(
    r"(down|up|mid|input|output|middle)_block|transformer_blocks|attn\d?\.|double_blocks|joint_blocks"
)
_ELSEWHERE = ("first_stage_model.", "vae.", "cond_stage_model.", "conditioner.", "text_encoders.")


@dataclass(frozen=True, eq=False)
class Weights:
    """New values of some of a model's parameters, in a file that does not say what they were made on."""

    file: TensorFile

    @classmethod
    def looks_so(cls, names: Mapping[str, Any]) -> bool:
        return all(_WEIGHT.search(name) for name in names) and any(_DENOISER.search(name) for name in names)

    @classmethod
    def is_whole_model(cls, names: Mapping[str, Any]) -> bool:
        """A checkpoint of all of a model in one file, as the first implementations and ComfyUI keep them."""
        found = {
            prefix for prefix in (*_ELSEWHERE, "model.diffusion_model.") for name in names if name.startswith(prefix)
        }
        return "model.diffusion_model." in found and len(found) > 1

    def describe(self) -> dict[str, object]:
        layers = {name.rsplit(".", 1)[0] for name in self.file.tensors}
        return {
            "weights": "new values of a model's parameters, which do not say what they were made on",
            **summary(layers),
            "for": family_of(layers) or "unknown",
            "size": f"{len(self.file.tensors)} tensors, {self.file.values:,} values, {self.file.types}",
            "sha256": self.file.digest(),
            **{key: value for key, value in self.file.metadata.items() if key != "format" and len(value) <= 200},
        }

    @torch.no_grad()
    def on(self, model: Patchable) -> Delta:
        """The values that differ from the model's present ones."""
        names = {key: plain(key).rsplit(".", 1) for key in self.file.tensors}
        layers = Layers.of(model).require(dict.fromkeys(path for path, _ in names.values()), "weights")
        parameters = model.parameters("all")
        tensors = {}
        for key, (path, kind) in names.items():
            value, layer = self.file.tensors[key], layers[path]
            own = layer.parameters(parameters, kind)
            if not is_real(value) or not is_finite(value):
                raise ImmunityError(
                    expected="weights of finite numbers",
                    got=f"others for {key} ({type_and_shape(value)}) in {self.file.path}",
                    remedy="another file",
                )
            sizes = [len(parameter) for parameter in own.values()]
            if len(own) < len(layer.parts) or sum(sizes) != len(value):
                raise self._misfit(key, f"{list(value.shape)}", "none of this size")
            for (name, parameter), part in zip(own.items(), value.split(sizes), strict=True):
                if part.shape != parameter.shape and not _alike(part.shape, parameter.shape):
                    raise self._misfit(key, f"{list(part.shape)}", str(list(parameter.shape)))
                new = part.reshape(parameter.shape)
                if not torch.equal(new.to(parameter.dtype), parameter.detach().cpu()):
                    tensors[name] = new.contiguous().clone()
        if not tensors:
            raise ImmunityError(
                expected="weights that change the model",
                got=f"{self.file.path}, which has the values of {model.name} itself",
                remedy="leaving it out",
            )
        digest = self.file.digest()
        config = {"file": self.file.path.name, "sha256": digest}
        made = Provenance.upon(model, method=type(self).__name__, config=config)
        # Which values differ depends on the model's type; what is made upon them must find them again.
        return Delta(tensors, replace(made, composed=(digest,)))

    def _misfit(self, key: str, got: str, has: str) -> ImmunityError:
        return ImmunityError(
            expected=f"{key} as the model has it, {has}",
            got=f"{got} in {self.file.path}",
            remedy="the kind of model that it was made for",
        )


def _alike(one: torch.Size, other: torch.Size) -> bool:
    """A linear layer and a convolution of one pixel: what SD 1.x and 2.x have of the other in some files."""
    return one[:2] == other[:2] and one.numel() == other.numel() and {len(one), len(other)} == {2, 4}
