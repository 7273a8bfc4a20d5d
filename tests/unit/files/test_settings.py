"""Settings of adapters against peft itself: the same folder, loaded and merged by it."""

import json

import pytest
import torch
from safetensors.torch import save_file

from immunity import ImmunityError, load
from immunity.files import read
from immunity.files.settings import Settings

BLOCK = "down_blocks.1.attentions.0.transformer_blocks.0"
TARGETS = ["to_k", "to_v"]


def unet(folder):
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel.from_pretrained(folder / "unet")


def trained(folder, out, *, kind="LoraConfig", **settings):
    """An adapter as peft leaves it, of random numbers."""
    import peft

    config = getattr(peft, kind)(**{"r": 2, "target_modules": TARGETS, **settings})
    model = peft.get_peft_model(unet(folder), config)
    generator = torch.Generator().manual_seed(0)
    for name, value in model.named_parameters():
        if any(mark in name for mark in ("lora_", "hada_", "lokr_")):
            value.data = torch.randn(value.shape, generator=generator) / 4
    model.save_pretrained(out)
    return out


def by_peft(folder, adapter):
    import peft

    merged = peft.PeftModel.from_pretrained(unet(folder), adapter).merge_and_unload()
    return {f"unet.{name}": value for name, value in merged.named_parameters()}


def agrees(folder, adapter) -> bool:
    expected = by_peft(folder, adapter)
    found = load(folder, deltas=[adapter]).parameters("denoiser")
    assert found.keys() == expected.keys()
    return all(torch.allclose(value, expected[name], atol=1e-5) for name, value in found.items())


@pytest.mark.parametrize(
    "settings",
    [
        {"lora_alpha": 3, "target_modules": [*TARGETS, "conv1", "ff.net.0.proj"]},
        {"lora_alpha": 3, "use_rslora": True},
        {"lora_alpha": 3, "use_dora": True},
        {"kind": "LoHaConfig", "alpha": 3, "target_modules": [*TARGETS, "conv1"]},
        {"kind": "LoHaConfig", "alpha": 3, "target_modules": ["conv1"], "use_effective_conv2d": True},
        {"kind": "LoKrConfig", "alpha": 3, "alpha_pattern": {"attn2.*": 5}},
        {"kind": "LoKrConfig", "alpha": 3, "r": 64, "rank_pattern": {"attn2.*": 32}},
    ],
    ids=lambda settings: " ".join(settings),
)
def test_adapters_of_peft_are_merged_as_by_peft(tiny_folders, tmp_path, settings):
    assert agrees(tiny_folders["sd1"], trained(tiny_folders["sd1"], tmp_path / "adapter", **settings))


@pytest.mark.parametrize("kind", ["alpha_pattern", "rank_pattern"])
@pytest.mark.parametrize(
    "patterns",
    [
        {r".*attn2\.to_k": 8},
        {"mid_block.*": 8},
        {"^to_k": 8},
        {"^down_blocks.*to_v": 8},
        {"attn2.to_k": 8},
        {"n2.to_k": 8},
        {f"{BLOCK}.attn2.to_k": 8},
        {"(down|up)_blocks.*to_[kq]": 8, "to_k": 5, r"attn\d.to_v": 4},
    ],
    ids=lambda patterns: " ".join(patterns),
)
def test_patterns_match_what_they_match_in_peft(tiny_folders, tmp_path, kind, patterns):
    assert agrees(
        tiny_folders["sd1"], trained(tiny_folders["sd1"], tmp_path / "lora", lora_alpha=3, **{kind: patterns})
    )


def test_in_the_header_patterns_do_not_know_of_the_component(tmp_path):
    tensors = {
        f"{path}.lora_{end}.weight": torch.ones(2, 2)
        for path in ("unet.mid_block.to_k", "text_encoder.mid_block.to_k")
        for end in "AB"
    }
    settings = {"unet.lora_alpha": 2, "unet.alpha_pattern": {"^mid_block.*": 6}, "text_encoder.lora_alpha": 4}
    header = {"lora_adapter_metadata": json.dumps(settings)}
    save_file(tensors, tmp_path / "a.safetensors", metadata=header)
    layers = read(tmp_path / "a.safetensors").layers
    assert {name: layer.scale for name, layer in layers.items()} == {
        "unet.mid_block.to_k": 3,
        "text_encoder.mid_block.to_k": 2,
    }


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("a" * 201, "at most 4 of"),
        ("(a*)*b", "no group repeated"),
        (r"(\w+\.?)+x", "no group repeated"),
        ("(a|a){9}", "no group repeated"),
        (".*.*.*.*.*x", "at most 4 of"),
        ("(?x:(a*) *)", "no group repeated"),
        ("(unclosed", "settings that cannot be read"),
        ("a{99999999999999999999}", "settings that cannot be read"),
    ],
)
def test_patterns_that_could_be_tried_for_ever(tmp_path, key, message):
    tensors = {f"base_model.model.mid_block.to_k.lora_{end}.weight": torch.ones(2, 2) for end in "AB"}
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text(json.dumps({"lora_alpha": 2, "alpha_pattern": {key: 3}}))
    with pytest.raises(ImmunityError, match=message):
        read(tmp_path)


def test_no_layer_has_such_a_name(tmp_path):
    tensors = {f"base_model.model.{'a.' * 99}to_k.lora_{end}.weight": torch.ones(2, 2) for end in "AB"}
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text(json.dumps({"lora_alpha": 2, "alpha_pattern": {".*.*.*.*b": 3}}))
    with pytest.raises(ImmunityError, match="a layer whose name has 202 characters"):
        read(tmp_path)


@pytest.mark.parametrize("beginning", ["pissa", "pissa_niter_4", "olora", "corda", "loftq", "lora_ga", "PiSSA"])
def test_adapters_of_what_is_left_of_the_weights(beginning):
    with pytest.raises(ImmunityError, match=f"init_lora_weights '{beginning}'"):
        Settings({"init_lora_weights": beginning})


def test_adapters_of_what_is_left_of_the_weights_are_refused_wherever_they_say_so(tiny_folders, tmp_path):
    with pytest.raises(ImmunityError, match="init_lora_weights 'olora'"):
        read(trained(tiny_folders["sd1"], tmp_path / "lora", init_lora_weights="olora"))
    tensors = {f"unet.mid_block.to_k.lora_{end}.weight": torch.ones(2, 2) for end in "AB"}
    header = {"lora_adapter_metadata": json.dumps({"unet.init_lora_weights": "pissa"})}
    save_file(tensors, tmp_path / "a.safetensors", metadata=header)
    with pytest.raises(ImmunityError, match="init_lora_weights 'pissa'"):
        read(tmp_path / "a.safetensors")


@pytest.mark.parametrize("beginning", ["eva", "orthogonal", "gaussian", True, False])
def test_other_beginnings_leave_the_weights_alone(tiny_folders, tmp_path, beginning):
    assert agrees(
        tiny_folders["sd1"],
        trained(tiny_folders["sd1"], tmp_path / "lora", init_lora_weights=beginning, use_rslora=True),
    )
