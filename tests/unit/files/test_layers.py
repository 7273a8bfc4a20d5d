"""The names of layers, against an independent table: those that diffusers' own converter of checkpoints takes."""

import pytest

from immunity import ImmunityError
from immunity.files.layers import Layers, component_of, family_of, kind_of

from tests.stub_unet import Stub, stub

KOHYA = "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn2_to_k"
TO_K = "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k"


@pytest.mark.parametrize(
    ("name", "path"),
    [
        (TO_K, TO_K),
        (TO_K.removeprefix("unet."), TO_K),
        (f"base_model.model.{TO_K.removeprefix('unet.')}", TO_K),
        (TO_K.replace("attn2.", "attn2.processor."), TO_K),
        (KOHYA, TO_K),
        ("lycoris_down_blocks_1_attentions_0_transformer_blocks_0_attn2_to_k", TO_K),
        ("model.diffusion_model.input_blocks.3.1.transformer_blocks.0.attn2.to_k", TO_K),
        ("lora_unet_input_blocks_3_1_transformer_blocks_0_attn2_to_k", TO_K),
        ("lora_unet_input_blocks_2_0_op", "unet.down_blocks.0.downsamplers.0.conv"),
        ("lora_unet_input_blocks_1_0_in_layers_2", "unet.down_blocks.0.resnets.0.conv1"),
        ("lora_unet_middle_block_1_proj_in", "unet.mid_block.attentions.0.proj_in"),
        ("lora_unet_middle_block_2_emb_layers_1", "unet.mid_block.resnets.1.time_emb_proj"),
        ("lora_unet_output_blocks_1_2_conv", "unet.up_blocks.0.upsamplers.0.conv"),
        ("lora_unet_output_blocks_0_0_skip_connection", "unet.up_blocks.0.resnets.0.conv_shortcut"),
        ("lora_unet_out_2", "unet.conv_out"),
        (TO_K.replace("to_k", "to_out"), TO_K.replace("to_k", "to_out.0")),
        ("lora_te_text_model_encoder_layers_0_self_attn_q_proj", "text_encoder.encoder.layers.0.self_attn.q_proj"),
        ("text_encoder.text_model.encoder.layers.0.self_attn.to_q", "text_encoder.encoder.layers.0.self_attn.q_proj"),
    ],
)
def test_one_layer_has_many_names(name, path):
    assert Layers.of(stub()).find(name).parts == (path,)


def test_names_that_two_layers_could_mean_are_none():
    layers = Layers.of(stub(encoders=2))
    assert layers.find("encoder.layers.0.self_attn.q_proj") is None
    assert layers.find("text_encoder_2.encoder.layers.0.self_attn.q_proj").parts[0].startswith("text_encoder_2.")
    assert layers.find("lora_te2_text_model_encoder_layers_0_self_attn_q_proj").parts[0].startswith("text_encoder_2.")


def test_flux_has_t5_as_its_second_encoder_and_kohyas_trainer_as_its_third():
    t5, clip = "encoder.block.0.layer.0.SelfAttention.q", "encoder.layers.0.self_attn.q_proj"
    flux = Layers.of(Stub({f"text_encoder.{clip}.weight": (4, 4), f"text_encoder_2.{t5}.weight": (4, 4)}))
    for number in "23":  # some have it as the second, too
        assert flux.find(f"lora_te{number}_{t5.replace('.', '_')}").parts == (f"text_encoder_2.{t5}",)
    assert flux.kohya(f"text_encoder_2.{t5}") == f"lora_te3_{t5.replace('.', '_')}"
    assert flux.diffusers(f"text_encoder_2.{t5}") == f"text_encoder_2.{t5}"
    sd3 = Layers.of(Stub({f"text_encoder_2.{clip}.weight": (4, 4), f"text_encoder_3.{t5}.weight": (4, 4)}))
    assert sd3.find(f"lora_te3_{t5.replace('.', '_')}").parts == (f"text_encoder_3.{t5}",)
    assert sd3.find(f"lora_te2_{t5.replace('.', '_')}") is None


def test_what_kohya_calls_a_layer():
    assert Layers.of(stub()).kohya(TO_K) == KOHYA
    text = "encoder.layers.0.self_attn.q_proj"
    assert Layers.of(stub()).kohya(f"text_encoder.{text}") == "lora_te_text_model_encoder_layers_0_self_attn_q_proj"
    both = Layers.of(stub(encoders=2, sizes=True))
    assert both.kohya(f"text_encoder.{text}") == "lora_te1_text_model_encoder_layers_0_self_attn_q_proj"
    assert both.kohya(TO_K) == "lora_unet_input_blocks_3_1_transformer_blocks_0_attn2_to_k"
    assert both.find(both.kohya(TO_K)).parts == (TO_K,)


def test_layers_that_a_model_lacks_say_whose_they_are():
    with pytest.raises(ImmunityError, match=r"1 of 2 that it does not have, e\.g\. lora_unet_double.*for FLUX\.1"):
        Layers.of(stub()).require([KOHYA, "lora_unet_double_blocks_0_img_attn_qkv"], "LoRA")
    with pytest.raises(ImmunityError, match=r"1 of 2 that it does not have, e\.g\. lora_unet_x; try") as refusal:
        Layers.of(stub()).require([KOHYA, "lora_unet_x"], "LoRA")
    assert "seems" not in str(refusal.value), "that it is for this family is known"


def test_what_names_alone_tell():
    assert component_of("lora_te2_text_model_encoder_layers_0_mlp_fc1") == "text_encoder_2"
    assert component_of("lora_te_text_model_encoder_layers_0_mlp_fc1") == "text_encoder"
    assert component_of("text_encoder.text_model.encoder.layers.0.mlp.fc1") == "text_encoder"
    assert component_of(KOHYA) == component_of(TO_K) == component_of("down_blocks.0.resnets.0.conv1") == "unet"
    assert component_of("transformer.transformer_blocks.0.attn.to_q") == "transformer"
    assert component_of("base_model.model.transformer_blocks.0.attn.to_q") == "transformer"
    assert kind_of(TO_K) == "cross-attention"
    assert kind_of("down_blocks.0.resnets.0.conv1") == "convolution"
    assert family_of([TO_K]) == "Stable Diffusion 1.x or 2.x"
    assert family_of([KOHYA.replace("transformer_blocks_0", "transformer_blocks_7")]) == "Stable Diffusion XL"
    assert family_of(["something.else"]) is None
    joint, crossed = ("transformer.transformer_blocks.1.attn.to_q", "transformer.transformer_blocks.1.attn1.to_q")
    assert family_of([joint]) == "Stable Diffusion 3 or FLUX.1"
    assert family_of([joint, joint.replace("to_q", "add_k_proj")]) == "Stable Diffusion 3"
    assert family_of([crossed]) == "PixArt"
    assert component_of(crossed.replace("transformer.", "base_model.model.", 1)) == "transformer"
    assert family_of(["lora_unet_input_blocks_4_1_transformer_blocks_1_attn1_to_q"]) == "Stable Diffusion XL"
