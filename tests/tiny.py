"""Tiny random folders of every family, built in code: the real classes, with some thousands of parameters."""

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Literal, get_args

import torch

Family = Literal["sd1", "sd2", "sd2v", "sdxl", "sd3", "sd35", "flux", "schnell", "pixart"]
"""SD 1.x, SD 2.x-base, SD 2.x with v-prediction, SDXL, SD 3, SD 3.5 without T5, FLUX.1 guidance-distilled and not,
PixArt-Sigma."""
FAMILIES: tuple[Family, ...] = get_args(Family)
U_NETS: tuple[Family, ...] = ("sd1", "sd2", "sd2v", "sdxl")
FLOWS: tuple[Family, ...] = ("sd3", "sd35", "flux", "schnell")
KINDS: tuple[Family, ...] = ("sd1", "sdxl", "sd3", "flux", "pixart")
"""One of each class of models, for what would be slow on all."""
IDLE: Mapping[str, str] = dict.fromkeys(("sd3", "sd35"), "transformer_blocks.1.attn.add_q_proj")
"""Layers without any effect: in the last block nobody reads what the text's own queries find."""

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


class Folders(Mapping[str, Path]):
    """A diffusers folder for each family, built when it is first asked for."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def __getitem__(self, family: str) -> Path:
        if not (self._root / family).exists():
            build(self._root / family, family, seed=FAMILIES.index(family))
        return self._root / family

    def __iter__(self) -> Iterator[str]:
        return iter(FAMILIES)

    def __len__(self) -> int:
        return len(FAMILIES)


def build(folder: Path, family: Family, *, seed: int = 0, without: tuple[str, ...] = ()) -> Path:
    """Writes a plain diffusers folder; `without` names parts to leave out."""
    import diffusers

    builders: Mapping[str, Callable[[Path, Family], object]] = {
        "sdxl": _sdxl,
        "sd3": _sd3,
        "sd35": _sd3,
        "flux": _flux,
        "schnell": _flux,
        "pixart": _pixart,
    }
    with torch.random.fork_rng(devices=[]):  # the models' initialisers know only the global generator
        torch.manual_seed(seed)
        parts = builders.get(family, _sd)(folder, family)
        pipeline = getattr(diffusers, PIPELINES[family])(**{**parts, **dict.fromkeys(without)})
    pipeline.save_pretrained(folder)
    return folder


PIPELINES = {
    **dict.fromkeys(("sd1", "sd2", "sd2v"), "StableDiffusionPipeline"),
    "sdxl": "StableDiffusionXLPipeline",
    **dict.fromkeys(("sd3", "sd35"), "StableDiffusion3Pipeline"),
    **dict.fromkeys(("flux", "schnell"), "FluxPipeline"),
    "pixart": "PixArtSigmaPipeline",
}


def plain(folder: Path):
    """The pipeline of a folder, by plain diffusers, which must be told what is absent."""
    from diffusers import DiffusionPipeline

    index = json.loads((folder / "model_index.json").read_text())
    absent = [part for part in index if part.startswith(("text_encoder", "tokenizer")) and index[part] == [None, None]]
    pipeline = DiffusionPipeline.from_pretrained(folder, **dict.fromkeys(absent))
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def plain_arguments(family: str, prompts: list[str], guidance: float) -> dict[str, object]:
    """What a user of plain diffusers says to get the pictures of `sample(prompts, guidance=guidance)`."""
    size: dict[str, object] = {"height": 16, "width": 16}  # the default of tiny ones, but for FLUX
    if family == "schnell":
        return {"prompt": prompts, "negative_prompt": [""] * len(prompts), "true_cfg_scale": guidance, **size}
    if family == "pixart":
        size |= {"use_resolution_binning": False, "clean_caption": False}
    return {"prompt": prompts, "guidance_scale": guidance, **size}


def _sd(folder: Path, family: Family) -> dict[str, object]:
    return {
        "unet": _unet(family),
        "vae": _vae(),
        "text_encoder": _text_encoder(family),
        "tokenizer": _tokenizer(folder / "tokenizer"),
        "scheduler": _scheduler(family),
        "safety_checker": None,
        "feature_extractor": None,
        "requires_safety_checker": False,
    }


def _sdxl(folder: Path, family: Family) -> dict[str, object]:
    return {
        "unet": _unet(family),
        "vae": _vae(),
        "text_encoder": _text_encoder(family),
        "text_encoder_2": _text_encoder(family, projection=8),
        "tokenizer": _tokenizer(folder / "tokenizer"),
        "tokenizer_2": _tokenizer(folder / "tokenizer_2"),
        "scheduler": _scheduler(family),
        "force_zeros_for_empty_prompt": True,
        "add_watermarker": False,
    }


def _sd3(folder: Path, family: Family) -> dict[str, object]:
    from diffusers import FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel

    later = family == "sd35"
    transformer = SD3Transformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=1,
        joint_attention_dim=32,
        caption_projection_dim=8,
        pooled_projection_dim=24,
        pos_embed_max_size=8,
        dual_attention_layers=(0,) if later else (),
        qk_norm="rms_norm" if later else None,
    )
    return {
        "transformer": transformer,
        "vae": _vae(shift_factor=0.0609),
        "text_encoder": _text_encoder(family, projection=16),
        "text_encoder_2": _text_encoder(family, projection=8, width=8),
        "text_encoder_3": None if later else _t5(32),
        "tokenizer": _tokenizer(folder / "tokenizer"),
        "tokenizer_2": _tokenizer(folder / "tokenizer_2"),
        "tokenizer_3": None if later else _t5_tokenizer(),
        "scheduler": FlowMatchEulerDiscreteScheduler(shift=3.0),
    }


def _flux(folder: Path, family: Family) -> dict[str, object]:
    from diffusers import FlowMatchEulerDiscreteScheduler, FluxTransformer2DModel

    distilled = family == "flux"
    transformer = FluxTransformer2DModel(
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=8,
        num_attention_heads=1,
        joint_attention_dim=16,
        pooled_projection_dim=16,
        guidance_embeds=distilled,
        axes_dims_rope=(2, 2, 4),
    )
    # As published: the distilled one shifts by the picture's size, the other not at all.
    scheduler = (
        FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True)
        if distilled
        else FlowMatchEulerDiscreteScheduler(shift=1.0)
    )
    return {
        "transformer": transformer,
        "vae": _vae(shift_factor=0.1159),
        "text_encoder": _text_encoder(family),
        "text_encoder_2": _t5(16),
        "tokenizer": _tokenizer(folder / "tokenizer"),
        "tokenizer_2": _t5_tokenizer(),
        "scheduler": scheduler,
    }


def _pixart(folder: Path, family: Family) -> dict[str, object]:
    from diffusers import DPMSolverMultistepScheduler, PixArtTransformer2DModel

    transformer = PixArtTransformer2DModel(
        num_attention_heads=1,
        attention_head_dim=8,
        in_channels=4,
        out_channels=8,  # with the variances
        num_layers=2,
        cross_attention_dim=8,
        sample_size=8,
        caption_channels=16,
        use_additional_conditions=False,
    )
    return {
        "transformer": transformer,
        "vae": _vae(),
        "text_encoder": _t5(16),
        "tokenizer": _t5_tokenizer(),
        "scheduler": DPMSolverMultistepScheduler(beta_start=0.0001, beta_end=0.02, beta_schedule="linear"),
    }


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
        **({} if family == "sdxl" else {"cross_attention_dim": 16}),
        # SD 1.x counts heads with this field and SD 2.x gives one a level; diffusers keeps the old name for both.
        attention_head_dim=2 if family == "sd1" else [1, 2],
        use_linear_projection=family != "sd1",
        **(_SIZE_EMBEDDING if family == "sdxl" else {}),
    )


# Two text encoders of width 16; a pooled embedding of 8 numbers and six sizes of four each.
_SIZE_EMBEDDING = {
    "cross_attention_dim": 32,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 4,
    "projection_class_embeddings_input_dim": 8 + 6 * 4,
}


def _vae(*, shift_factor: float | None = None):
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
        shift_factor=shift_factor,
    )


def _text_encoder(family: Family, *, projection: int | None = None, width: int = 16):
    """With `projection`, the class that projects its pooled output to so many numbers."""
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    kind = CLIPTextModel if projection is None else CLIPTextModelWithProjection
    return kind(
        CLIPTextConfig(
            vocab_size=len(_vocabulary()),
            hidden_size=width,
            intermediate_size=32,
            projection_dim=projection or 16,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=TOKENS,
            hidden_act="quick_gelu" if family == "sd1" else "gelu",
            bos_token_id=len(_vocabulary()) - 2,
            eos_token_id=2,  # as published: transformers then takes the largest number for the end
            pad_token_id=len(_vocabulary()) - 1,
        )
    )


def _scheduler(family: Family):
    from diffusers import DDIMScheduler, EulerDiscreteScheduler, PNDMScheduler

    shared = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}
    if family == "sd1":
        return PNDMScheduler(**shared, skip_prk_steps=True, set_alpha_to_one=False)
    if family == "sdxl":
        return EulerDiscreteScheduler(**shared, timestep_spacing="leading")
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


def _t5(width: int):
    from transformers import T5Config, T5EncoderModel

    config = T5Config(
        vocab_size=len(_t5_vocabulary()),
        d_model=width,
        d_kv=8,
        d_ff=16,
        num_layers=1,
        num_heads=1,
        relative_attention_num_buckets=4,
        feed_forward_proj="gated-gelu",
    )
    return T5EncoderModel(config)


def _t5_vocabulary() -> list[tuple[str, float]]:
    """Pieces and their log-probabilities: whole words where there are some, single letters otherwise."""
    words = ["▁" + word for word in ("image", "of", "a", "church", "castle", "cat", "inn", "tin")]
    letters = [chr(code) for code in range(ord("!"), ord("~") + 1)]
    special = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    return [*special, *((word, -2.0) for word in words), ("▁", -4.0), *((letter, -5.0) for letter in letters)]


def _t5_tokenizer():
    from transformers import T5TokenizerFast

    return T5TokenizerFast(vocab=_t5_vocabulary(), extra_ids=0)
