"""What a file of tensors is, by their names, where it is nothing that is read: for who asks, and for refusals."""

import re
from collections.abc import Iterable

_NEVER_WEIGHTS = {
    r"^control_model\.|(^|\.)(input_hint_block|zero_convs)\.|^controlnet_": "a ControlNet",
    r"^(image_proj|ip_adapter)\.": "an IP-Adapter",
    r"_custom_diffusion\.": "the keys and values of a Custom Diffusion, which diffusers loads beside a model",
    r"\.processor\.(qkv|proj)_lora\d?\.": "a LoRA for FLUX.1 in the layout of XLabs",
    r"^(unet|text_encoder):\d+:": "a LoRA in the layout of the first trainers of such (lora_diffusion)",
    r"double_blocks\..*_norm\.scale$": "the denoiser of FLUX.1 by its first names",
    r"^(first_stage_model\.|vae\.)?((encoder|decoder)\.(down|up|mid|conv_in)|(post_)?quant_conv\.)": "an autoencoder",
    r"^(conv_first\.|RRDB_trunk\.|model\.1\.sub\.)": "an upscaler of pictures (ESRGAN)",
}
_OTHERS = {
    r"lora": "an adapter of a kind that is not known here",
    r"exp_avg": "an optimizer's state",
    r"vision_model": "a judge of pictures (CLIP)",
    r"text_model|^encoder\.block\.": "a text encoder",
}


def never_weights(names: Iterable[str]) -> str | None:
    """What a file is whose names may look like those of a denoiser's weights, and are not."""
    return _first(_NEVER_WEIGHTS, list(names))


def seems(names: Iterable[str]) -> str:
    """The best guess at a file that is nothing that is read."""
    names = list(names)
    if not names:
        return "a file without tensors"
    what = _first({**_NEVER_WEIGHTS, **_OTHERS}, names) or "tensors of something else"
    return f"{what}: {len(names)} tensors, e.g. {names[0]}"


def _first(kinds: dict[str, str], names: list[str]) -> str | None:
    return next((kind for mark, kind in kinds.items() if any(re.search(mark, name) for name in names)), None)
