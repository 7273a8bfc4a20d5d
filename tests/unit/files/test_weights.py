"""Published weights of ESD and IMMA, and learned tokens, as their programs write them."""

import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file

from immunity import Delta, ImmunityError
from immunity.files import Embedding, Weights, read

from tests.stub_unet import stub

BLOCK = "down_blocks.1.attentions.0.transformer_blocks.0.attn2"


@pytest.fixture
def model():
    return stub()


@pytest.fixture
def changed(model):
    """New values of the cross-attention of one block, by the U-Net's own names."""
    return {
        name.removeprefix("unet."): value.detach() + 1
        for name, value in model.theta.items()
        if name.startswith(f"unet.{BLOCK}.")
    }


def nested(changed):
    """ESD of 2023: a dictionary of modules, each a state dictionary."""
    modules = {}
    for name, value in changed.items():
        path, kind = name.rsplit(".", 1)
        modules.setdefault(f"unet.{path}", torch.nn.Module().state_dict())[kind] = value
    return modules


def imma(changed):
    return {name: torch.nn.Parameter(value) for name, value in changed.items()}


def numbered(changed):
    prefix = "model.diffusion_model.input_blocks.3.1"
    return {
        "state_dict": {name.replace("down_blocks.1.attentions.0", prefix): value for name, value in changed.items()}
    }


@pytest.mark.parametrize("layout", [nested, imma, numbered, dict])
@pytest.mark.parametrize("suffix", [".pt", ".bin", ".ckpt"])
def test_pickled_weights(model, changed, tmp_path, layout, suffix):
    torch.save(layout(changed), tmp_path / f"esd{suffix}")
    weights = read(tmp_path / f"esd{suffix}")
    assert isinstance(weights, Weights)
    delta = weights.on(model)
    assert {name.removeprefix("unet.") for name in delta.tensors} == set(changed)
    assert all(torch.equal(value, changed[name.removeprefix("unet.")]) for name, value in delta.tensors.items())
    delta.save(tmp_path / "delta.safetensors")
    assert Delta.load(tmp_path / "delta.safetensors").provenance.config["file"] == f"esd{suffix}"


def test_what_trainers_leave_in_a_checkpoint_is_no_hindrance(model, changed, tmp_path, monkeypatch):
    """Stable Diffusion's own .ckpt files name a class of their trainer, and nobody has it installed."""
    name = "pytorch_lightning.callbacks.model_checkpoint"
    kind = type("ModelCheckpoint", (), {"__module__": name})
    package, middle, _ = name.split(".")
    modules = (package, f"{package}.{middle}", name)
    for module in modules:
        monkeypatch.setitem(sys.modules, module, ModuleType(module))
    monkeypatch.setattr(sys.modules[name], "ModelCheckpoint", kind, raising=False)
    content = {"state_dict": changed, "callbacks": {kind: {"best": 1.5}}, "global_step": 7}
    torch.save(content, tmp_path / "model.ckpt")
    for module in modules:
        monkeypatch.delitem(sys.modules, module)
    weights = read(tmp_path / "model.ckpt")
    assert len(weights.on(model).tensors) == len(changed)
    assert weights.describe()["global_step"] == "7"


def test_partial_safetensors_in_half_precision(model, changed, tmp_path):
    save_file({name: value.half() for name, value in changed.items()}, tmp_path / "esd.safetensors")
    weights = read(tmp_path / "esd.safetensors")
    with weights.on(model).applied(model):
        assert all(torch.equal(model.theta[f"unet.{name}"], value.half().float()) for name, value in changed.items())
    shown = weights.describe()
    assert shown["changes"] == "4 layers of unet"
    assert shown["layers"] == "4 cross-attention"
    assert shown["for"] == "Stable Diffusion 1.x or 2.x"


def test_of_a_whole_unet_only_what_differs_is_kept(model, changed, tmp_path):
    whole = {name.removeprefix("unet."): value.detach() for name, value in model.theta.items() if name[:5] == "unet."}
    torch.save({**whole, **changed}, tmp_path / "unet.pt")
    assert len(read(tmp_path / "unet.pt").on(model).tensors) == len(changed)
    torch.save(whole, tmp_path / "same.pt")
    with pytest.raises(ImmunityError, match="the values of stub itself"):
        read(tmp_path / "same.pt").on(model)


def test_linear_layers_and_convolutions_of_one_pixel_are_one(model, tmp_path):
    name = "mid_block.attentions.0.proj_in.weight"
    torch.save({name: model.theta[f"unet.{name}"].detach().flatten(1) + 1}, tmp_path / "linear.pt")
    (value,) = read(tmp_path / "linear.pt").on(model).tensors.values()
    assert torch.equal(value, model.theta[f"unet.{name}"].detach() + 1)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({f"{BLOCK}.to_k.weight": torch.zeros(16, 768)}, r"\[16, 12\]; got \[16, 768\]"),
        ({f"{BLOCK}.to_k.weight": torch.zeros(9, 12)}, "none of this size"),
        ({f"{BLOCK}.to_k.bias": torch.zeros(16)}, "none of this size"),
        ({f"{BLOCK}.to_k.weight": torch.full((16, 12), torch.nan)}, "finite numbers"),
        ({f"{BLOCK}.to_k.weight": torch.tensor(1.0)}, r"finite numbers.*float32 \[\]"),
        ({f"{BLOCK}.to_k.weight": torch.zeros(16, 12, dtype=torch.int8)}, r"finite numbers.*int8 \[16, 12\]"),
        ({"down_blocks.7.attn2.to_k.weight": torch.zeros(1)}, "1 of 1 that it does not have"),
    ],
)
def test_weights_that_do_not_fit(model, tmp_path, tensors, message):
    torch.save(tensors, tmp_path / "esd.pt")
    with pytest.raises(ImmunityError, match=message):
        read(tmp_path / "esd.pt").on(model)


def test_weights_of_eight_bits(model, tmp_path):
    name = f"{BLOCK}.to_k.weight"
    value = torch.ones(16, 12).to(torch.float8_e4m3fn)
    save_file({name: value}, tmp_path / "esd.safetensors")
    with read(tmp_path / "esd.safetensors").on(model).applied(model):
        assert torch.equal(model.theta[f"unet.{name}"], value.float())
    for other in (torch.full((16, 12), torch.nan).to(torch.float8_e4m3fn), torch.zeros(16, 12, dtype=torch.complex64)):
        save_file({name: other}, tmp_path / "other.safetensors")
        with pytest.raises(ImmunityError, match="finite numbers"):
            read(tmp_path / "other.safetensors").on(model)


def test_what_is_made_upon_weights_is_so_in_every_type(model, changed, tmp_path):
    first = next(iter(changed))
    # So near to the model's own value that only float32 tells them apart.
    changed[first] = model.theta[f"unet.{first}"].detach().bfloat16().float()
    torch.save(changed, tmp_path / "esd.pt")
    weights, short = read(tmp_path / "esd.pt"), stub()
    for value in short.theta.values():
        value.data = value.data.bfloat16()
    long, rounded = weights.on(model), weights.on(short)
    assert len(rounded.tensors) < len(long.tensors)
    assert rounded.lineage == long.lineage == (weights.file.digest(),)


@pytest.mark.parametrize(
    ("tensors", "what"),
    [
        (
            {
                "model.diffusion_model.input_blocks.0.0.weight": torch.zeros(1),
                "first_stage_model.encoder.conv_in.weight": torch.zeros(1),
            },
            "a whole model in one file",
        ),
        ({"encoder.down.0.weight": torch.zeros(1)}, "an autoencoder: 1 tensors"),
        ({"encoder.down_blocks.0.resnets.0.conv1.weight": torch.zeros(1)}, "an autoencoder: 1 tensors"),
        ({"control_model.input_blocks.0.0.weight": torch.zeros(1)}, "a ControlNet: 1 tensors"),
        (
            {
                "down_blocks.0.resnets.0.conv1.weight": torch.zeros(1),
                "controlnet_cond_embedding.conv_in.weight": torch.zeros(1),
            },
            "a ControlNet: 2 tensors",
        ),
        (
            {"double_blocks.0.processor.qkv_lora1.down.weight": torch.zeros(1)},
            "FLUX.1 in the layout of XLabs: 1 tensors",
        ),
        ({"double_blocks.0.img_attn.norm.query_norm.scale": torch.zeros(1)}, "the denoiser of FLUX.1"),
        (
            {f"{BLOCK}.processor.to_k_custom_diffusion.weight": torch.zeros(1), "attn1.processor": torch.zeros(0)},
            "of a Custom Diffusion",
        ),
        ({"image_proj.norm.weight": torch.zeros(1), "ip_adapter.1.to_k_ip.weight": torch.zeros(1)}, "an IP-Adapter"),
        ({"conv_first.weight": torch.zeros(1), "body.0.rdb1.conv1.weight": torch.zeros(1)}, "ESRGAN"),
        ({"unet:0:up": torch.zeros(1, 1), "unet:0:down": torch.zeros(1, 1)}, "lora_diffusion"),
        ({"something.else": torch.zeros(3), "b.c": torch.zeros(1)}, "tensors of something else"),
    ],
)
def test_what_is_no_change_says_what_it_seems_to_be(tmp_path, tensors, what):
    save_file(tensors, tmp_path / "x.safetensors")
    with pytest.raises(ImmunityError, match=what):
        read(tmp_path / "x.safetensors")


def test_quantised_weights_are_refused_by_name(tmp_path):
    (tmp_path / "flux.gguf").write_bytes(b"GGUF" + bytes((3, 0, 0, 0)) + bytes(100))
    with pytest.raises(ImmunityError, match="a GGUF file"):
        read(tmp_path / "flux.gguf")


# Learned tokens


def model_with(*encoders: tuple[str, str]) -> SimpleNamespace:
    vocabularies = [SimpleNamespace(component=component, layout=layout) for component, layout in encoders]
    return SimpleNamespace(vocabularies=lambda: vocabularies)


ONE = model_with(("text_encoder", "clip_l"))
BOTH = model_with(("text_encoder", "clip_l"), ("text_encoder_2", "clip_g"))


def test_tokens_of_both_common_layouts(tmp_path):
    vectors = torch.randn(2, 12)
    a1111 = {
        "string_to_token": {"*": 265},
        "string_to_param": {"*": vectors},
        "name": "my church",
        "step": 500,
        "sd_checkpoint": "abc",
    }
    torch.save(a1111, tmp_path / "a.pt")
    torch.save({"<church>": vectors[0]}, tmp_path / "learned_embeds.bin")
    save_file({"<church>": vectors}, tmp_path / "learned_embeds.safetensors")
    save_file({"emb_params": vectors}, tmp_path / "chapel.safetensors")
    for name, token, rows in (
        ("a.pt", "my church", vectors),
        ("learned_embeds.bin", "<church>", vectors[:1]),
        ("learned_embeds.safetensors", "<church>", vectors),
        ("chapel.safetensors", "<chapel>", vectors),
    ):
        embedding = read(tmp_path / name)
        assert isinstance(embedding, Embedding)
        learned = embedding.learned(ONE)
        assert learned.token == token
        assert torch.equal(learned.rows["text_encoder"], rows)
        assert embedding.learned(ONE, token="<x>").token == "<x>"
        assert embedding.describe()["vectors"] == f"{len(rows)} of width one encoder 12"
        with pytest.raises(ImmunityError, match="vectors for clip_l or clip_g; got one text encoder only"):
            embedding.learned(BOTH)
    assert read(tmp_path / "a.pt").describe()["sd_checkpoint"] == "abc"


def test_tokens_of_two_text_encoders(tmp_path):
    save_file({"clip_l": torch.zeros(1, 12), "clip_g": torch.ones(1, 20)}, tmp_path / "church.safetensors")
    learned = read(tmp_path / "church.safetensors").learned(BOTH)
    assert learned.token == "<church>"
    assert {name: value.shape[1] for name, value in learned.rows.items()} == {"text_encoder": 12, "text_encoder_2": 20}


def test_tokens_of_some_text_encoders(tmp_path):
    """As trainers write them that leave T5, or all but one CLIP, as it is."""
    flux = model_with(("text_encoder", "clip_l"), ("text_encoder_2", "t5"))
    save_file({"clip_l": torch.zeros(2, 12)}, tmp_path / "church.safetensors")
    assert set(read(tmp_path / "church.safetensors").learned(flux).rows) == {"text_encoder"}
    save_file({"clip_g": torch.zeros(2, 12)}, tmp_path / "church.safetensors")
    with pytest.raises(ImmunityError, match="vectors for clip_l or t5; got clip_g in"):
        read(tmp_path / "church.safetensors").learned(flux)


class Dangerous(torch.nn.ParameterDict):
    """What a file may say that it is."""


def test_tokens_as_their_inventors_code_writes_them(tmp_path):
    vectors = torch.randn(2, 12)
    words = torch.nn.ParameterDict({"*": torch.nn.Parameter(vectors)})
    torch.save({"string_to_token": {"*": torch.tensor(265)}, "string_to_param": words}, tmp_path / "chapel.pt")
    embedding = read(tmp_path / "chapel.pt")
    assert embedding.token == "<chapel>"
    assert torch.equal(embedding.learned(ONE).rows["text_encoder"], vectors)
    # What is read is what the module holds: no module is made, and no other class's name will do.
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(torch.nn.ParameterDict, "__setstate__", lambda *_: pytest.fail("its code runs"))
        patched.setattr(torch.nn.ParameterDict, "__init__", lambda *_: pytest.fail("its code runs"))
        assert read(tmp_path / "chapel.pt").token == "<chapel>"
    torch.save({"string_to_param": Dangerous({"*": torch.nn.Parameter(vectors)})}, tmp_path / "bad.pt")
    with pytest.raises(ImmunityError, match=r"calls for '.*Dangerous', which is no tensor"):
        read(tmp_path / "bad.pt")


def test_tokens_of_three_text_encoders(tmp_path):
    widths = {"clip_l": 12, "clip_g": 20, "t5": 16}
    save_file({name: torch.ones(2, width) for name, width in widths.items()}, tmp_path / "church.safetensors")
    three = model_with(*(zip(("text_encoder", "text_encoder_2", "text_encoder_3"), widths, strict=True)))
    two = model_with(("text_encoder", "clip_l"), ("text_encoder_2", "t5"))  # as in FLUX
    embedding = read(tmp_path / "church.safetensors")
    assert {name: rows.shape[1] for name, rows in embedding.learned(three).rows.items()} == {
        "text_encoder": 12,
        "text_encoder_2": 20,
        "text_encoder_3": 16,
    }
    assert {name: rows.shape[1] for name, rows in embedding.learned(two).rows.items()} == {
        "text_encoder": 12,
        "text_encoder_2": 16,
    }


def test_tokens_of_eight_bits(tmp_path):
    vectors = torch.ones(2, 12).to(torch.float8_e4m3fn)
    save_file({"<church>": vectors}, tmp_path / "t.safetensors")
    assert len(read(tmp_path / "t.safetensors").learned(ONE).rows["text_encoder"]) == 2
    save_file({"<church>": (vectors.float() * torch.nan).to(torch.float8_e4m3fn)}, tmp_path / "t.safetensors")
    with pytest.raises(ImmunityError, match="one learned token"):
        read(tmp_path / "t.safetensors")


@pytest.mark.parametrize(
    "content",
    [
        {"string_to_param": {"*": torch.zeros(1, 4), "x": torch.zeros(1, 4)}},
        {"<t>": torch.full((1, 4), torch.nan)},
        {"<t>": torch.zeros(2000, 1)},
        {"<t>": torch.zeros(2, 4, dtype=torch.int64)},
    ],
)
def test_tokens_that_cannot_be(tmp_path, content):
    torch.save(content, tmp_path / "t.pt")
    with pytest.raises(ImmunityError, match="one learned token"):
        read(tmp_path / "t.pt")
