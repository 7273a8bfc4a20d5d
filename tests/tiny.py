"""Tiny random Stable Diffusion folders, built in code: the real classes, under 100,000 parameters."""

import json
from pathlib import Path
from typing import Literal

import torch

Family = Literal["sd1", "sd2", "sd2v"]
FAMILIES: tuple[Family, ...] = ("sd1", "sd2", "sd2v")

TOKENS = 16  # the tokenizer's limit
_MERGES = (
    "t h",
    "a n",
    "i n",
    "o f</w>",
    "i m",
    "im a",
    "g e</w>",
    "ima ge</w>",
    "c h",
    "c h</w>",
    "ch u",
    "chu r",
    "chur ch</w>",
)


def build(folder: Path, family: Family, *, seed: int = 0) -> Path:
    """Writes a plain diffusers folder: "sd1" as SD 1.x, "sd2" as SD 2.x-base, "sd2v" as SD 2.x with v-prediction."""
    from diffusers import StableDiffusionPipeline

    with torch.random.fork_rng(devices=[]):  # the models' initialisers know only the global generator
        torch.manual_seed(seed)
        pipeline = StableDiffusionPipeline(
            unet=_unet(family),
            vae=_vae(),
            text_encoder=_text_encoder(family),
            tokenizer=_tokenizer(folder / "tokenizer"),
            scheduler=_scheduler(family),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
    pipeline.save_pretrained(folder)
    return folder


def _unet(family: Family):
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        block_out_channels=(8, 16),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        norm_num_groups=4,
        cross_attention_dim=16,
        # SD 1.x counts heads with this field and SD 2.x gives one a level; diffusers keeps the old name for both.
        attention_head_dim=2 if family == "sd1" else [1, 2],
        use_linear_projection=family != "sd1",
    )


def _vae():
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        sample_size=16,
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        layers_per_block=1,
        norm_num_groups=4,
        latent_channels=4,
        scaling_factor=0.18215,
    )


def _text_encoder(family: Family):
    from transformers import CLIPTextConfig, CLIPTextModel

    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(_vocabulary()),
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=TOKENS,
            hidden_act="quick_gelu" if family == "sd1" else "gelu",
            bos_token_id=len(_vocabulary()) - 2,
            eos_token_id=len(_vocabulary()) - 1,
            pad_token_id=len(_vocabulary()) - 1,
        )
    )


def _scheduler(family: Family):
    from diffusers import DDIMScheduler, PNDMScheduler

    shared = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}
    if family == "sd1":
        return PNDMScheduler(**shared, skip_prk_steps=True, set_alpha_to_one=False)
    kind = "v_prediction" if family == "sd2v" else "epsilon"
    return DDIMScheduler(**shared, clip_sample=False, set_alpha_to_one=False, prediction_type=kind)


def _byte_characters() -> list[str]:
    """The printable stand-ins of byte-level BPE (Radford et al., 2019): printable bytes stay, the rest move up."""
    printable = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)}
    moved = iter(range(256, 512))
    return [chr(byte) if byte in printable else chr(next(moved)) for byte in range(256)]


def _vocabulary() -> list[str]:
    characters = _byte_characters()
    merged = [merge.replace(" ", "") for merge in _MERGES]
    return [*characters, *(f"{one}</w>" for one in characters), *merged, "<|startoftext|>", "<|endoftext|>"]


def _tokenizer(folder: Path):
    from transformers import CLIPTokenizer

    folder.mkdir(parents=True, exist_ok=True)
    vocabulary = {token: index for index, token in enumerate(_vocabulary())}
    (folder / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False), encoding="utf-8")
    (folder / "merges.txt").write_text("\n".join(("#version: 0.2", *_MERGES)) + "\n", encoding="utf-8")
    special = {"bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>", "unk_token": "<|endoftext|>"}
    settings = {"model_max_length": TOKENS, "pad_token": "<|endoftext|>", "tokenizer_class": "CLIPTokenizer", **special}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return CLIPTokenizer.from_pretrained(folder)
