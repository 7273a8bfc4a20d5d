"""A diffusers folder as one file in the first implementation's names, which diffusers' own converter reads back."""

import re
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from immunity.files.layers import _unet_numbers

_AUTOENCODER = [
    (r"(\w+)\.mid_block\.resnets\.(\d)", lambda m: f"{m[1]}.mid.block_{int(m[2]) + 1}"),
    (r"(\w+)\.mid_block\.attentions\.0", r"\1.mid.attn_1"),
    (r"encoder\.down_blocks\.(\d)\.resnets\.(\d)", r"encoder.down.\1.block.\2"),
    (r"encoder\.down_blocks\.(\d)\.downsamplers\.0", r"encoder.down.\1.downsample"),
    (r"decoder\.up_blocks\.(\d)\.resnets\.(\d)", lambda m: f"decoder.up.{1 - int(m[1])}.block.{m[2]}"),
    (r"decoder\.up_blocks\.(\d)\.upsamplers\.0", lambda m: f"decoder.up.{1 - int(m[1])}.upsample"),
    (r"conv_norm_out", "norm_out"),
    (r"conv_shortcut", "nin_shortcut"),
    (r"group_norm", "norm"),
    (r"to_q", "q"),
    (r"to_k", "k"),
    (r"to_v", "v"),
    (r"to_out\.0", "proj_out"),
]


def _weights(folder: Path) -> dict[str, Tensor]:
    (file,) = folder.glob("*.safetensors")
    return load_file(file)


def _unet(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    numbers = {
        parts[0]: number for number, parts in _unet_numbers(dict.fromkeys(_path(name) for name in weights)).items()
    }
    return {
        f"model.diffusion_model.{numbers[_path(name)]}.{name.rsplit('.', 1)[1]}": value
        for name, value in weights.items()
    }


def _path(name: str) -> str:
    return name.rsplit(".", 1)[0]


def _autoencoder(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    found = {}
    for name, value in weights.items():
        original = name
        for pattern, replacement in _AUTOENCODER:
            original = re.sub(pattern, replacement, original)
        linear = ".attn_1." in original and value.ndim == 2
        found[f"first_stage_model.{original}"] = value[:, :, None, None] if linear else value
    return found


def _clip(weights: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {f"{prefix}text_model.{name.removeprefix('text_model.')}": value for name, value in weights.items()}


def _open_clip(weights: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    plain = {name.removeprefix("text_model."): value for name, value in weights.items()}
    names = {
        "embeddings.position_embedding.weight": "positional_embedding",
        "embeddings.token_embedding.weight": "token_embedding.weight",
        "final_layer_norm.weight": "ln_final.weight",
        "final_layer_norm.bias": "ln_final.bias",
    }
    found = {original: plain[name] for name, original in names.items()}
    if "text_projection.weight" in plain:
        found["text_projection"] = plain["text_projection.weight"].T.contiguous()
    layers = {
        "layer_norm1": "ln_1",
        "layer_norm2": "ln_2",
        "mlp.fc1": "mlp.c_fc",
        "mlp.fc2": "mlp.c_proj",
        "self_attn.out_proj": "attn.out_proj",
    }
    for number in range(2):
        block = f"transformer.resblocks.{number}"
        for kind in ("weight", "bias"):
            for ours, theirs in layers.items():
                found[f"{block}.{theirs}.{kind}"] = plain[f"encoder.layers.{number}.{ours}.{kind}"]
            parts = [plain[f"encoder.layers.{number}.self_attn.{one}_proj.{kind}"] for one in "qkv"]
            found[f"{block}.attn.in_proj_{kind}"] = torch.cat(parts)
    return {f"{prefix}{name}": value.contiguous() for name, value in found.items()}


def original(folder: Path, family: str) -> dict[str, Tensor]:
    """The tensors of the folder, under their first names."""
    text = _weights(folder / "text_encoder")
    if family == "sd1":
        texts = _clip(text, "cond_stage_model.transformer.")
    elif family == "sdxl":
        second = _open_clip(_weights(folder / "text_encoder_2"), "conditioner.embedders.1.model.")
        texts = _clip(text, "conditioner.embedders.0.transformer.") | second
    else:
        texts = _open_clip(text, "cond_stage_model.model.")
    return _unet(_weights(folder / "unet")) | _autoencoder(_weights(folder / "vae")) | texts
