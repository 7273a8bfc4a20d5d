"""The models that are measured: random weights at Stable Diffusion 1.x's exact shape, a tenth of it, or our world."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

UNETS: Mapping[str, Mapping[str, Any]] = {
    # Stable Diffusion 1.x: diffusers' defaults, 860 M parameters.
    "sd1": {"cross_attention_dim": 768, "attention_head_dim": 8},
    "small": {
        "cross_attention_dim": 64,
        "attention_head_dim": 8,
        "block_out_channels": (32, 64, 64, 64),
        "layers_per_block": 1,
        "norm_num_groups": 8,
    },
}
TEXTS: Mapping[str, Mapping[str, int]] = {
    "sd1": {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12},
    "small": {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2},
}
VAES: Mapping[str, tuple[int, ...]] = {"sd1": (128, 256, 512, 512), "small": (16, 16, 32, 32)}


def folder_of(size: str, cache: Path, *, pixels: int) -> Path:
    """A diffusers folder; `emoji` is the embedded world's generator."""
    if size == "emoji":
        from immunity import World

        return World.open("emoji").generator
    folder = cache / f"{size}-{pixels}"
    if not (folder / "model_index.json").exists():
        build(size, folder, pixels=pixels)
    return folder


def build(size: str, folder: Path, *, pixels: int, seed: int = 0) -> None:
    """Random weights; float32 in memory, bfloat16 on disk (what is measured does not depend on their values)."""
    import torch
    from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    torch.manual_seed(seed)
    tokenizer = _tokenizer()
    text = CLIPTextConfig(
        vocab_size=len(tokenizer),
        max_position_embeddings=77,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        **TEXTS[size],
    )
    widths = VAES[size]
    pipe = StableDiffusionPipeline(
        unet=UNet2DConditionModel(sample_size=pixels // 8, **UNETS[size]),
        vae=AutoencoderKL(
            block_out_channels=widths,
            down_block_types=("DownEncoderBlock2D",) * len(widths),
            up_block_types=("UpDecoderBlock2D",) * len(widths),
            layers_per_block=2,
            latent_channels=4,
            norm_num_groups=min(32, widths[0]),
            sample_size=pixels,
        ),
        text_encoder=CLIPTextModel(text),
        tokenizer=tokenizer,
        scheduler=DDIMScheduler(
            beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, steps_offset=1
        ),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.to(torch.bfloat16).save_pretrained(folder)


def _tokenizer() -> Any:
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import CLIPTokenizer

    letters = sorted(ByteLevel.alphabet())
    words = [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(vocab={word: i for i, word in enumerate(words)}, merges=[], model_max_length=77)
