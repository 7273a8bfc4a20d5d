"""Stable Diffusion XL (Podell et al., 2024, arXiv 2307.01952): two CLIP text encoders, and the size as input."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from immunity.models.base import Conditioning
from immunity.models.groups import cross_attending
from immunity.models.text import TextEncoder
from immunity.models.unet import UNetModel


class SdxlModel(UNetModel):
    """Stable Diffusion XL, the base model. Pictures are said to be whole and of the model's own size."""

    family = "Stable Diffusion XL"
    pipeline_class = "StableDiffusionXLPipeline"
    parts: ClassVar[Mapping[str, str]] = {
        "unet": "UNet2DConditionModel",
        "vae": "AutoencoderKL",
        "text_encoder": "CLIPTextModel",
        "text_encoder_2": "CLIPTextModelWithProjection",
        "tokenizer": "CLIPTokenizer",
        "tokenizer_2": "CLIPTokenizer",
    }
    groups_of_family = cross_attending("unet", time_and_output=("time_embedding", "add_embedding", "conv_out"))

    def _text_encoders(self) -> Sequence[TextEncoder]:
        return [self._text("", layout="clip_l"), self._text("_2", layout="clip_g")]

    def _encode(self, prompts: Sequence[str]) -> Conditioning:
        first, second = (text.clip(prompts) for text in self._text_encoders())
        return Conditioning(torch.cat([first.hidden, second.hidden], dim=-1), second.pooled)

    def unconditional(self) -> Conditioning:
        return self._unconditional_of(1)

    def _unconditional_of(self, n: int) -> Conditioning:
        encoded = self.encode_prompts([""] * n)
        # SDXL learned to do without a prompt from zeros, not from the empty text.
        return encoded.zeros_like() if self._zeros_for_empty else encoded

    @property
    def _zeros_for_empty(self) -> bool:
        zeros: bool = self._settings.get("force_zeros_for_empty_prompt", True)
        return zeros

    def _added(self, noisy: Tensor, conditioning: Conditioning) -> dict[str, Tensor] | None:
        assert conditioning.pooled is not None
        height, width = (side * self._autoencoder.pixels for side in noisy.shape[2:])
        # Original size, corner of the crop, target size. Written where they are needed: to copy them there would wait
        # for all that the device has still to do.
        sizes = torch.zeros(len(noisy), 6, dtype=self.dtype, device=self.device)
        sizes[:, 0::4], sizes[:, 1::4] = height, width
        return {"text_embeds": conditioning.pooled.to(self.dtype), "time_ids": sizes}

    def _pipeline_arguments(
        self, conditioning: Conditioning, unconditional: Conditioning | None, guidance: float
    ) -> dict[str, Any]:
        return {
            **super()._pipeline_arguments(conditioning, unconditional, guidance),
            "pooled_prompt_embeds": conditioning.pooled,
            "negative_pooled_prompt_embeds": None if unconditional is None else unconditional.pooled,
        }

    def _pipeline_settings(self) -> dict[str, Any]:
        return {"force_zeros_for_empty_prompt": self._zeros_for_empty, "add_watermarker": False}
