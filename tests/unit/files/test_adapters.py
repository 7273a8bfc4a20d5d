"""Adapters of every layout against the formulas that their kinds are published with."""

import json

import pytest
import torch
from safetensors.torch import save_file

from immunity import Delta, ImmunityError, Provenance
from immunity.files import Adapter, read

from tests.stub_unet import Stub, stub

BLOCK = "down_blocks.1.attentions.0.transformer_blocks.0.attn2"
TO_K, TO_OUT, CONV = f"{BLOCK}.to_k", f"{BLOCK}.to_out.0", "down_blocks.1.resnets.0.conv1"
TEXT = "encoder.layers.0.self_attn.q_proj"


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed + sum(shape)))


def kohya(path: str) -> str:
    return f"lora_unet_{path.replace('.', '_')}"


def flux() -> Stub:
    """Attention of FLUX.1: a block that attends to text and picture together, and a single one."""
    joint, single = "transformer.transformer_blocks.0.attn", "transformer.single_transformer_blocks.0"
    names = [
        f"{joint}.{part}" for part in ("to_q", "to_k", "to_v", "add_q_proj", "add_k_proj", "add_v_proj", "to_out.0")
    ]
    names += [f"{single}.{part}" for part in ("attn.to_q", "attn.to_k", "attn.to_v")]
    return Stub({f"{name}.weight": (4, 6) for name in names} | {f"{single}.proj_mlp.weight": (8, 6)})


@pytest.fixture
def model():
    return stub()


@pytest.fixture
def merged(model, tmp_path):
    """Writes the tensors, reads them as what they are, and answers with the change of each parameter."""

    def merge(tensors, *, metadata=None, on=model) -> dict[str, torch.Tensor]:
        save_file(tensors, tmp_path / "adapter.safetensors", metadata=metadata)
        adapter = read(tmp_path / "adapter.safetensors")
        assert isinstance(adapter, Adapter)
        merge.adapter = adapter
        delta = adapter.on(on)
        assert delta.provenance.config["layout"] == adapter.layout
        with delta.applied(on):
            pass
        return {name: value - on.theta[name].detach() for name, value in delta.tensors.items()}

    return merge


def close(value, expected) -> bool:
    return torch.allclose(value, expected, atol=1e-5)


def pair(rank: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    return noise(rank, 12), noise(16, rank)


@pytest.mark.parametrize(
    ("layout", "down", "up"),
    [
        ("diffusers", f"unet.{TO_K}.lora_A.weight", f"unet.{TO_K}.lora_B.weight"),
        (
            "diffusers",
            f"base_model.model.{TO_K}.lora_A.default.weight",
            f"base_model.model.{TO_K}.lora_B.default.weight",
        ),
        (
            "old diffusers",
            f"unet.{BLOCK}.processor.to_k.lora_linear_layer.down.weight",
            f"unet.{BLOCK}.processor.to_k.lora_linear_layer.up.weight",
        ),
        ("old diffusers", f"unet.{TO_K}.lora.down.weight", f"unet.{TO_K}.lora.up.weight"),
        (
            "old diffusers",
            f"unet.{BLOCK}.processor.to_k_lora.down.weight",
            f"unet.{BLOCK}.processor.to_k_lora.up.weight",
        ),
        ("old diffusers", f"{BLOCK}.processor.to_k_lora.down.weight", f"{BLOCK}.processor.to_k_lora.up.weight"),
        ("kohya", f"{kohya(TO_K)}.lora_down.weight", f"{kohya(TO_K)}.lora_up.weight"),
    ],
)
def test_lora_without_alpha_has_a_scale_of_one(merged, layout, down, up):
    a, b = pair()
    found = merged({down: a, up: b})
    assert merged.adapter.layout == layout
    assert found.keys() == {f"unet.{TO_K}.weight"}
    assert close(found[f"unet.{TO_K}.weight"], b @ a)


def test_kohya_with_alpha_convolution_and_text_encoder(merged):
    a, b = pair()
    conv_a, conv_b = noise(2, 8, 3, 3), noise(16, 2, 1, 1)
    text_a, text_b = noise(3, 12), noise(12, 3)
    tensors = {}
    for name, down, up, alpha in (
        (kohya(TO_K), a, b, 1.0),
        (kohya(CONV), conv_a, conv_b, 4.0),
        (f"lora_te_text_model_{TEXT.replace('.', '_')}", text_a, text_b, 6.0),
    ):
        tensors |= {
            f"{name}.lora_down.weight": down,
            f"{name}.lora_up.weight": up,
            f"{name}.alpha": torch.tensor(alpha),
        }
    found = merged(tensors, metadata={"ss_network_dim": "2", "ss_tag_frequency": "x" * 5000})
    assert close(found[f"unet.{TO_K}.weight"], 0.5 * b @ a)
    assert close(found[f"unet.{CONV}.weight"], 2 * torch.einsum("or,rihw->oihw", conv_b[..., 0, 0], conv_a))
    assert close(found[f"text_encoder.{TEXT}.weight"], 2 * text_b @ text_a)
    shown = merged.adapter.describe()
    assert shown["adapter"] == "LoRA in the layout of kohya"
    assert shown["changes"] == "1 layers of text_encoder, 2 layers of unet"
    assert shown["layers"] == "1 convolution, 1 cross-attention, 1 self-attention"
    assert (shown["rank"], shown["alpha"], shown["ss_network_dim"]) == ("2, 3", "1, 4, 6", "2")
    assert "ss_tag_frequency" not in shown


def test_names_by_number_and_a_kernel_between(merged):
    down, mid, up = noise(2, 8, 1, 1), noise(2, 2, 3, 3), noise(16, 2, 1, 1)
    name = "lora_unet_input_blocks_3_0_in_layers_2"
    found = merged({f"{name}.lora_down.weight": down, f"{name}.lora_mid.weight": mid, f"{name}.lora_up.weight": up})
    expected = torch.nn.functional.conv2d(  # what the three layers do to a single bright pixel, one input at a time
        torch.nn.functional.conv2d(torch.eye(8).reshape(8, 8, 1, 1), down), mid.flip(2, 3), padding=2
    )
    expected = torch.nn.functional.conv2d(expected, up).transpose(0, 1)
    assert close(found[f"unet.{CONV}.weight"], expected)


def test_dora_by_outputs_and_by_inputs(merged, model):
    a, b = pair()
    weight = model.theta[f"unet.{TO_K}.weight"].detach()
    whole = weight + b @ a
    lora = {f"{kohya(TO_K)}.lora_down.weight": a, f"{kohya(TO_K)}.lora_up.weight": b}
    for shape, axis in (((16, 1), 1), ((1, 12), 0)):
        magnitude = noise(*shape).abs()
        found = merged({**lora, f"{kohya(TO_K)}.dora_scale": magnitude})
        expected = magnitude * whole / whole.norm(dim=axis, keepdim=True)
        assert close(found[f"unet.{TO_K}.weight"], expected - weight)
    magnitude = noise(16).abs()
    peft = {f"unet.{TO_K}.lora_{end}.weight": value for end, value in (("A", a), ("B", b))}
    found = merged({**peft, f"unet.{TO_K}.lora_magnitude_vector": magnitude})
    assert close(found[f"unet.{TO_K}.weight"], magnitude[:, None] * whole / whole.norm(dim=1, keepdim=True) - weight)


@pytest.mark.parametrize("kind", ["LoHa", "LoKr"])
def test_the_weight_decomposition_of_lycoris(merged, model, kind):
    factors = LOHA if kind == "LoHa" else LOKR
    weight = model.theta[f"unet.{TO_K}.weight"].detach()
    whole = weight + merged(factors)[f"unet.{TO_K}.weight"]
    magnitude = noise(16, 1).abs()
    found = merged({**factors, f"{kohya(TO_K)}.dora_scale": magnitude})
    assert merged.adapter.kinds == kind
    assert close(found[f"unet.{TO_K}.weight"], magnitude * whole / whole.norm(dim=1, keepdim=True) - weight)


def test_old_diffusers_with_alpha_in_a_text_encoder(merged):
    down, up = noise(2, 12), noise(24, 2)
    name = "text_encoder.text_model.encoder.layers.0.mlp.fc1.lora_linear_layer"
    found = merged({f"{name}.down.weight": down, f"{name}.up.weight": up, f"{name}.alpha": torch.tensor(6)})
    assert merged.adapter.layout == "old diffusers"
    assert close(found["text_encoder.encoder.layers.0.mlp.fc1.weight"], 3 * up @ down)


def hada(name: str, **tensors: torch.Tensor) -> dict[str, torch.Tensor]:
    return {f"{name}.hada_{role}": value for role, value in tensors.items()}


def test_loha_linear_and_tucker(merged):
    w1_a, w1_b, w2_a, w2_b = noise(16, 2), noise(2, 12), noise(16, 2, seed=1), noise(2, 12, seed=1)
    linear = hada(kohya(TO_K), w1_a=w1_a, w1_b=w1_b, w2_a=w2_a, w2_b=w2_b)
    found = merged({**linear, f"{kohya(TO_K)}.alpha": torch.tensor(1.0)})
    assert merged.adapter.describe()["adapter"] == "LoHa in the layout of LyCORIS"
    assert close(found[f"unet.{TO_K}.weight"], 0.5 * (w1_a @ w1_b) * (w2_a @ w2_b))
    t1, t2 = noise(2, 2, 3, 3), noise(2, 2, 3, 3, seed=1)
    a1, b1, a2, b2 = noise(2, 16), noise(2, 8), noise(2, 16, seed=1), noise(2, 8, seed=1)
    found = merged(hada(kohya(CONV), t1=t1, w1_a=a1, w1_b=b1, t2=t2, w2_a=a2, w2_b=b2))
    first, second = (
        sum(t[i, j] * a[i][:, None, None, None] * b[j][None, :, None, None] for i in range(2) for j in range(2))
        for t, a, b in ((t1, a1, b1), (t2, a2, b2))
    )
    assert close(found[f"unet.{CONV}.weight"], first * second)


def test_lokr_whole_low_rank_convolution_and_tucker(merged):
    def lokr(path: str, **tensors: torch.Tensor) -> dict[str, torch.Tensor]:
        return {f"{kohya(path)}.lokr_{role}": value for role, value in tensors.items()}

    alpha = {f"{kohya(TO_K)}.alpha": torch.tensor(8.0), f"{kohya(CONV)}.alpha": torch.tensor(8.0)}
    w1, w2 = noise(4, 3), noise(4, 4)
    found = merged({**lokr(TO_K, w1=w1, w2=w2), f"{kohya(TO_K)}.alpha": torch.tensor(8.0)})
    assert close(found[f"unet.{TO_K}.weight"], torch.kron(w1, w2)), "there is no rank, so no scale"
    a, b = noise(4, 2), noise(2, 4)
    conv_1, conv_a, conv_b = noise(4, 2), noise(4, 2), noise(2, 4 * 9)
    found = merged({**lokr(TO_K, w1=w1, w2_a=a, w2_b=b), **lokr(CONV, w1=conv_1, w2_a=conv_a, w2_b=conv_b), **alpha})
    assert close(found[f"unet.{TO_K}.weight"], 4 * torch.kron(w1, a @ b))
    kernel = (conv_a @ conv_b).reshape(4, 4, 3, 3)
    assert close(found[f"unet.{CONV}.weight"], 4 * torch.kron(conv_1[:, :, None, None], kernel))
    core, core_a, core_b = noise(2, 2, 3, 3), noise(2, 4), noise(2, 4, seed=1)
    w1_a, w1_b = noise(4, 2), noise(2, 2)
    found = merged(lokr(CONV, w1_a=w1_a, w1_b=w1_b, t2=core, w2_a=core_a, w2_b=core_b))
    kernel = sum(
        core[i, j] * core_a[i][:, None, None, None] * core_b[j][None, :, None, None] for i in range(2) for j in range(2)
    )
    assert close(found[f"unet.{CONV}.weight"], torch.kron((w1_a @ w1_b)[:, :, None, None], kernel))


def test_full_differences_of_weights_biases_and_norms(merged):
    whole, bias, norm = noise(16, 16), noise(16), noise(8)
    name, normed = kohya(TO_OUT), kohya("down_blocks.0.resnets.0.norm1")
    found = merged(
        {f"{name}.diff": whole, f"{name}.diff_b": bias, f"{normed}.w_norm": norm, f"{normed}.b_norm": norm + 0}
    )
    assert close(found[f"unet.{TO_OUT}.weight"], whole)
    assert close(found[f"unet.{TO_OUT}.bias"], bias)
    assert close(found["unet.down_blocks.0.resnets.0.norm1.weight"], norm)
    assert close(found["unet.down_blocks.0.resnets.0.norm1.bias"], norm)


def test_the_settings_of_peft_give_the_scale(model, merged, tmp_path):
    folder = tmp_path / "a folder with 'quotes\" and spaces"
    folder.mkdir()
    a, b = pair(4)
    to_v = TO_K.replace("to_k", "to_v")
    save_file(
        {
            f"base_model.model.{path}.lora_{end}.weight": value
            for path in (TO_K, to_v)
            for end, value in (("A", a.clone()), ("B", b.clone()))
        },
        folder / "adapter_model.safetensors",
    )
    config = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "alpha_pattern": {"attn2.to_v": 2}, "use_rslora": True}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    for path in (folder, folder / "adapter_model.safetensors"):
        delta = read(path).on(model)
        change = {name: value - model.theta[name].detach() for name, value in delta.tensors.items()}
        assert close(change[f"unet.{TO_K}.weight"], 8 / 4**0.5 * b @ a)
        assert close(change[f"unet.{to_v}.weight"], 2 / 4**0.5 * b @ a)
    assert read(folder).describe()["adapter"] == "LoRA in the layout of PEFT"
    header = {"lora_adapter_metadata": json.dumps({"unet.r": 4, "unet.lora_alpha": 2})}
    found = merged({f"unet.{TO_K}.lora_{end}.weight": value for end, value in (("A", a), ("B", b))}, metadata=header)
    assert close(found[f"unet.{TO_K}.weight"], 0.5 * b @ a), "diffusers writes them into the header"


def test_a_folder_of_peft_with_a_pickle(model, tmp_path):
    a, b = pair()
    torch.save(
        {f"base_model.model.{TO_K}.lora_A.weight": a, f"base_model.model.{TO_K}.lora_B.weight": b},
        tmp_path / "adapter_model.bin",
    )
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 2, "lora_alpha": 3}))
    for path in (tmp_path, tmp_path / "adapter_model.bin"):
        adapter = read(path)
        assert adapter.layout == "PEFT"
        value = adapter.on(model).tensors[f"unet.{TO_K}.weight"]
        assert close(value - model.theta[f"unet.{TO_K}.weight"].detach(), 1.5 * b @ a)


def test_a_lokr_of_peft_is_scaled_even_if_it_is_whole(model, tmp_path):
    w1, w2 = noise(4, 3), noise(4, 4)
    save_file(
        {f"base_model.model.{TO_K}.lokr_w1": w1, f"base_model.model.{TO_K}.lokr_w2": w2},
        tmp_path / "adapter_model.safetensors",
    )
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "LOKR", "r": 8, "alpha": 4}))
    value = read(tmp_path).on(model).tensors[f"unet.{TO_K}.weight"]
    assert close(value - model.theta[f"unet.{TO_K}.weight"].detach(), 0.5 * torch.kron(w1, w2))


def test_half_precision_models_get_values_of_their_own_type(model, merged):
    a, b = pair()
    for value in model.theta.values():
        value.data = value.data.half()
    save = {f"unet.{TO_K}.lora_A.weight": a.bfloat16(), f"unet.{TO_K}.lora_B.weight": b.bfloat16()}
    merged(save)
    (value,) = merged.adapter.on(model).tensors.values()
    assert value.dtype == torch.float16


def test_the_delta_of_an_adapter_is_reverted_exactly_and_knows_its_parents(model, merged):
    a, b = pair()
    merged({f"unet.{TO_K}.lora_A.weight": a, f"unet.{TO_K}.lora_B.weight": b})
    first = merged.adapter.on(model)
    before = model.theta[f"unet.{TO_K}.weight"].detach().clone()
    with first.applied(model):
        second = merged.adapter.on(model)
        assert second.provenance.parents == first.lineage == (merged.adapter.sha256,)
        assert close(second.tensors[f"unet.{TO_K}.weight"] - before, 2 * b @ a), "of the model as it stands"
    assert torch.equal(model.theta[f"unet.{TO_K}.weight"], before)
    assert isinstance(first, Delta)


def test_what_is_made_upon_an_adapter_is_so_in_every_type(model, merged, tmp_path):
    a, b = pair()
    merged({f"unet.{TO_K}.lora_A.weight": a, f"unet.{TO_K}.lora_B.weight": b})
    short = stub()
    for value in short.theta.values():
        value.data = value.data.bfloat16()
    long = merged.adapter.on(model)
    with long.applied(model):
        upon = Delta.capture(model.theta, Provenance.upon(model, method="T", config={}))
    of_short = merged.adapter.on(short)
    assert of_short.hash != long.hash
    for first in (of_short, long):  # and what the adapter makes of a model may be kept as a delta
        first.save(tmp_path / "first.safetensors", force=True)
        with Delta.load(tmp_path / "first.safetensors").applied(short), upon.applied(short):
            assert len(short.parents) == 2


def test_an_adapter_with_other_settings_is_another(tmp_path):
    a, b = pair()
    lora = {f"base_model.model.{TO_K}.lora_A.weight": a, f"base_model.model.{TO_K}.lora_B.weight": b}
    save_file(lora, tmp_path / "adapter_model.safetensors")
    alone = read(tmp_path / "adapter_model.safetensors")
    found = [alone.identity]
    for settings in ({"lora_alpha": 3}, {"lora_alpha": 4}, {"lora_alpha": 4, "inference_mode": True}):
        (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 2, **settings}))
        found.append(read(tmp_path).identity)
    assert alone.identity == alone.sha256
    assert len(set(found)) == 3, "what says nothing of the scale makes no other adapter"


def test_settings_that_are_a_link_to_elsewhere(tmp_path):
    folder, secret = tmp_path / "adapter", tmp_path / "secret.json"
    folder.mkdir()
    a, b = pair()
    lora = {f"base_model.model.{TO_K}.lora_A.weight": a, f"base_model.model.{TO_K}.lora_B.weight": b}
    save_file(lora, folder / "adapter_model.safetensors")
    secret.write_text(json.dumps({"peft_type": "LORA", "r": 2}))
    (folder / "adapter_config.json").symlink_to(secret)
    for path in (folder, folder / "adapter_model.safetensors"):
        with pytest.raises(ImmunityError, match="a link to"):
            read(path)


def test_what_may_be_on_the_hub_is_not_downloaded_unasked(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        ImmunityError, match=r"got owner/lora; try if it is on the hub, hf download owner/lora --local-d"
    ):
        read("owner/lora")
    with pytest.raises(ImmunityError, match="which does not exist"):
        read("owner/lora.safetensors")


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("img_in", "x_embedder"),
        ("txt_in", "context_embedder"),
        ("time_in.in_layer", "time_text_embed.timestep_embedder.linear_1"),
        ("vector_in.out_layer", "time_text_embed.text_embedder.linear_2"),
        ("guidance_in.in_layer", "time_text_embed.guidance_embedder.linear_1"),
        ("final_layer.linear", "proj_out"),
    ],
)
def test_layers_of_flux_outside_its_blocks(merged, name, path):
    theta = flux().theta
    on = Stub({f"transformer.{path}.weight": (4, 6), **{name: tuple(value.shape) for name, value in theta.items()}})
    a, b = noise(2, 6), noise(4, 2)
    for spelling, ends in (
        (f"lora_unet_{name.replace('.', '_')}", ("lora_down", "lora_up")),
        (f"transformer.{name}", ("lora_A", "lora_B")),
    ):
        found = merged({f"{spelling}.{ends[0]}.weight": a, f"{spelling}.{ends[1]}.weight": b}, on=on)
        assert close(found[f"transformer.{path}.weight"], b @ a)
        assert merged.adapter.describe()["changes"] == "1 layers of transformer"


def test_the_last_norm_of_flux_is_refused_by_name(merged):
    """Its outputs are in another order there."""
    name = "lora_unet_final_layer_adaLN_modulation_1"
    with pytest.raises(ImmunityError, match=f"{name}, whose outputs diffusers has in another order"):
        merged({f"{name}.lora_down.weight": noise(2, 6), f"{name}.lora_up.weight": noise(8, 2)}, on=flux())


@pytest.mark.parametrize("style", ["kohya", "dotted", "component"])
def test_layers_that_flux_has_as_one_are_split(merged, style):
    a, joint, single = noise(2, 6), noise(12, 2), noise(20, 2)
    name, ends = "double_blocks.0.img_attn.qkv", ("lora_A.weight", "lora_B.weight")
    linear = "single_blocks.0.linear1"
    if style == "kohya":
        name, linear = (f"lora_unet_{one.replace('.', '_')}" for one in (name, linear))
        ends = ("lora_down.weight", "lora_up.weight")
    if style == "component":
        name, linear = f"transformer.{name}", f"transformer.{linear}"
    tensors = {f"{name}.{ends[0]}": a, f"{name}.{ends[1]}": joint}
    tensors |= {f"{linear}.{ends[0]}": a.clone(), f"{linear}.{ends[1]}": single}
    found = merged(tensors, on=flux())
    for number, part in enumerate(("to_q", "to_k", "to_v")):
        rows = slice(4 * number, 4 * number + 4)
        assert close(found[f"transformer.transformer_blocks.0.attn.{part}.weight"], joint[rows] @ a)
        assert close(found[f"transformer.single_transformer_blocks.0.attn.{part}.weight"], single[rows] @ a)
    assert close(found["transformer.single_transformer_blocks.0.proj_mlp.weight"], single[12:] @ a)
    assert merged.adapter.describe()["for"] == "FLUX.1"


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({f"unet.{TO_K}.lora_A.weight": noise(2, 12)}, "down, which is not all that a layer needs"),
        ({f"{kohya(TO_K)}.alpha": noise(1), f"{kohya(TO_K)}.lora_down.weight": noise(2, 12)}, "not all"),
        ({f"unet.{TO_K}.lora_A.weight": noise(2, 9), f"unet.{TO_K}.lora_B.weight": noise(16, 2)}, "16 × 9"),
        ({f"unet.{TO_K}.lora_A.weight": noise(2, 12), f"unet.{TO_K}.lora_B.weight": noise(16, 3)}, "-1 × 12"),
        ({f"unet.{TO_K}.lora_A.weight": noise(12), f"unet.{TO_K}.lora_B.weight": noise(16)}, "-1 × -1"),
        ({f"unet.{TO_K}x.lora_A.weight": noise(2, 12), f"unet.{TO_K}x.lora_B.weight": noise(16, 2)}, "does not have"),
        ({f"{kohya(TO_K)}.lokr_w1": noise(400, 300), f"{kohya(TO_K)}.lokr_w2": noise(400, 400)}, "160000 × 120000"),
        ({f"{BLOCK}.to_k.oft_R.weight": noise(2, 2)}, "OFT, which is not supported"),
        ({f"{BLOCK}.to_k.lora_C.weight": noise(2), f"{BLOCK}.to_k.lora_A.weight": noise(2, 12)}, "1 other tensors"),
        (
            {f"unet.{TO_K}.lora_A.weight": noise(2, 12) / 0, f"unet.{TO_K}.lora_B.weight": noise(16, 2)},
            "finite numbers",
        ),
        (
            {
                f"{kohya(TO_K)}.lora_down.weight": noise(2, 12).to(torch.int8),
                f"{kohya(TO_K)}.lora_up.weight": noise(16, 2),
            },
            "int8 .2, 12. as down for",
        ),
        ({f"{BLOCK}.to_k.boft_R": noise(2, 2), f"{BLOCK}.to_k.boft_s": noise(2, 2)}, "BOFT, which is not supported"),
        (
            {f"text_model.embeddings.token_embedding.lora_embedding_{end}": noise(2, 2) for end in "AB"},
            "a LoRA of an embedding, which is not supported",
        ),
        (
            {
                f"{kohya(TO_K)}.lora_down.weight": noise(2, 12),
                f"{kohya(TO_K)}.lora_up.weight": noise(16, 2),
                "bundle_emb.church.emb_params": noise(1, 12),
            },
            "a LoRA with learned tokens in it .bundle_emb., which is not supported",
        ),
        ({f"{BLOCK}.to_k.a1.weight": noise(2), f"{BLOCK}.to_k.b1.weight": noise(2)}, "GLoRA, which is not supported"),
        ({"base_model.vera_A": noise(2), f"base_model.model.{TO_K}.vera_lambda_b": noise(2)}, "VeRA, which is not"),
        ({f"base_model.model.{TO_K}.ia3_l": noise(2, 1)}, r"\(IA\)³, which is not supported"),
        ({f"{kohya(TO_K)}.weight": noise(2), f"{kohya(TO_K)}.on_input": noise(1)}, r"\(IA\)³, which is not supported"),
        (
            {
                f"lora_unet_joint_blocks_0_x_block_attn_qkv.lora_{end}.weight": value
                for end, value in (("down", noise(2, 12)), ("up", noise(48, 2)))
            },
            "joint_blocks.*which are not read",
        ),
    ],
)
def test_adapters_that_cannot_be(model, tmp_path, tensors, message):
    save_file(tensors, tmp_path / "a.safetensors")
    with pytest.raises(ImmunityError, match=message):
        read(tmp_path / "a.safetensors").on(model)


LORA = {f"{kohya(TO_K)}.lora_down.weight": noise(2, 12), f"{kohya(TO_K)}.lora_up.weight": noise(16, 2)}
LOHA = hada(kohya(TO_K), w1_a=noise(16, 2), w1_b=noise(2, 12), w2_a=noise(16, 2), w2_b=noise(2, 12))
LOKR = {f"{kohya(TO_K)}.lokr_w1": noise(4, 3), f"{kohya(TO_K)}.lokr_w2": noise(4, 4)}


@pytest.mark.parametrize(
    ("whole", "role", "value", "message"),
    [
        *(
            (LORA, "alpha", value, "no number, as alpha")
            for value in (
                torch.tensor(1j),
                torch.tensor(torch.inf),
                torch.tensor(torch.nan).to(torch.float8_e4m3fn),
                torch.zeros(0),
                torch.zeros(3),
            )
        ),
        *(
            (LORA, role, value, f" as {what} for")
            for role, what in (("lora_down.weight", "down"), ("diff_b", "a bias"), ("dora_scale", "dora_scale"))
            for value in (
                torch.tensor(1.0),
                torch.zeros(16, dtype=torch.int64),
                torch.zeros(16, dtype=torch.complex64),
                torch.zeros(0, 12),
            )
        ),
        (LOHA, "hada_w1_a", noise(16, 2, 1), "-1 × -1"),
        (LOKR, "lokr_w1", noise(4), "-1 × -1"),
        (LOKR, "lokr_w2", noise(4), "-1 × -1"),
    ],
)
def test_tensors_that_cannot_be(model, tmp_path, whole, role, value, message):
    save_file({**whole, f"{next(iter(whole)).split('.')[0]}.{role}": value}, tmp_path / "a.safetensors")
    with pytest.raises(ImmunityError, match=message):
        read(tmp_path / "a.safetensors").on(model)


def test_cores_that_do_not_fit(model, tmp_path):
    core, a, b = noise(2, 2, 3, 3), noise(2, 16), noise(2, 8)
    whole = {"t1": core, "w1_a": a, "w1_b": b, "t2": core + 0, "w2_a": a + 0, "w2_b": b + 0}
    first_only = {"w2_a": noise(16, 2), "w2_b": noise(2, 72)}
    for change, lacks in (({"w1_b": noise(2, 8, 1)}, ()), ({"t2": noise(2, 2, 9)}, ()), (first_only, ("t2",))):
        tensors = {role: value for role, value in (whole | change).items() if role not in lacks}
        save_file(hada(kohya(CONV), **tensors), tmp_path / "a.safetensors")
        with pytest.raises(ImmunityError, match="-1 × -1"):
            read(tmp_path / "a.safetensors").on(model)


def test_floats_of_eight_bits(merged):
    eight = {name: (value * 4).to(torch.float8_e4m3fn) for name, value in LORA.items()}
    down, up = (value.float() for value in eight.values())
    bias, alpha = noise(16).to(torch.float8_e4m3fn), torch.tensor(4.0).to(torch.float8_e4m3fn)
    found = merged({**eight, f"{kohya(TO_K)}.alpha": alpha, f"{kohya(TO_OUT)}.diff_b": bias})
    assert close(found[f"unet.{TO_K}.weight"], 2 * up @ down)
    assert close(found[f"unet.{TO_OUT}.bias"], bias.float())


@pytest.mark.parametrize("text", ["[" * 10**5, '{"r": 2, "lora_alpha": 1' + "0" * 400 + "}", "[1]"])
def test_headers_that_cannot_be(tmp_path, text):
    save_file(LORA, tmp_path / "a.safetensors", metadata={"lora_adapter_metadata": text})
    with pytest.raises(ImmunityError, match="settings that cannot be read"):
        read(tmp_path / "a.safetensors")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"peft_type": "OFT"}, "OFT in"),
        ({"fan_in_fan_out": True, "r": 2}, "outputs first"),
        ([], "not a JSON object"),
        ({"r": 2, "lora_alpha": "many"}, "settings that cannot be read"),
        ({"r": 2, "lora_alpha": 2, "alpha_pattern": [1]}, "settings that cannot be read"),
    ],
)
def test_settings_that_cannot_be(tmp_path, config, message):
    a, b = pair()
    save_file(
        {f"base_model.model.{TO_K}.lora_A.weight": a, f"base_model.model.{TO_K}.lora_B.weight": b},
        tmp_path / "adapter_model.safetensors",
    )
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(ImmunityError, match=message):
        read(tmp_path)
