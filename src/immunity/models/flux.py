"""FLUX.1 (Black Forest Labs, 2024): MMDiT over packed latents, a flow, T5 and CLIP; guidance-distilled or not."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from immunity.models.base import Conditioning
from immunity.models.groups import jointly_attending
from immunity.models.noising import Flow, Noising
from immunity.models.pipeline import PipelineModel
from immunity.models.text import TextEncoder

T5_TOKENS = 512
"""To which the pipeline pads."""
NO_GUIDANCE = 1.0
"""What `predict` tells a guidance-distilled denoiser: to answer as a model without guidance would."""


class FluxModel(PipelineModel):
    """FLUX.1. A guidance-distilled one (dev) takes `guidance` as an input; another (schnell) is guided as usual."""

    family = "FLUX.1"
    pipeline_class = "FluxPipeline"
    denoiser = "transformer"
    parts: ClassVar[Mapping[str, str]] = {
        "transformer": "FluxTransformer2DModel",
        "vae": "AutoencoderKL",
        "text_encoder": "CLIPTextModel",
        "text_encoder_2": "T5EncoderModel",
        "tokenizer": "CLIPTokenizer",
        "tokenizer_2": "T5Tokenizer",
    }
    groups_of_family = jointly_attending("transformer", time_and_output=("time_text_embed", "norm_out", "proj_out"))

    def _make_noising(self) -> Noising:
        _, height, width = self.latent_shape
        tokens = (height // self._patch) * (width // self._patch)
        return Flow(self._scheduler, name=self.name, device=self.device, tokens=tokens, even=True)

    def _latent_shape(self) -> tuple[int, int, int]:
        # The denoiser is of no size; the autoencoder's configuration has that of the pictures it was trained on.
        size = self._autoencoder.size
        return (self._denoiser.config.in_channels // self._patch**2, size, size)

    @property
    def _patch(self) -> int:
        return 2

    @property
    def _distilled(self) -> bool:
        distilled: bool = self._denoiser.config.guidance_embeds
        return distilled

    def _text_encoders(self) -> Sequence[TextEncoder]:
        return [self._text("", layout="clip_l"), self._text("_2", layout="t5", limit=T5_TOKENS)]

    def _encode(self, prompts: Sequence[str]) -> Conditioning:
        clip, t5 = self._text_encoders()
        pooled = clip.pooled(prompts)
        return Conditioning(t5.last(prompts), pooled)

    def predict(self, noisy: Tensor, times: Tensor, conditioning: Conditioning) -> Tensor:
        return self._velocity(noisy, times, conditioning, NO_GUIDANCE)

    def _velocity(self, noisy: Tensor, times: Tensor, conditioning: Conditioning, guidance: float) -> Tensor:
        assert conditioning.pooled is not None
        _, _, height, width = noisy.shape
        places = torch.zeros(height // 2, width // 2, 3, device=self.device)
        places[..., 1] = torch.arange(height // 2, device=self.device)[:, None]
        places[..., 2] = torch.arange(width // 2, device=self.device)[None, :]
        tokens = conditioning.embeddings.shape[1]
        told = torch.full([len(noisy)], guidance, device=self.device) if self._distilled else None
        output: Tensor = self._denoiser(
            hidden_states=_packed(noisy.to(self.dtype)),
            timestep=times.to(self.device, self.dtype) / self._scheduler.config.num_train_timesteps,
            guidance=told,
            pooled_projections=conditioning.pooled.to(self.dtype),
            encoder_hidden_states=conditioning.embeddings.to(self.dtype),
            txt_ids=torch.zeros(tokens, 3, device=self.device, dtype=self.dtype),
            img_ids=places.flatten(0, 1).to(self.dtype),
            return_dict=False,
        )[0]
        return _unpacked(output, height, width).to(noisy.dtype)

    def _is_guided(self, guidance: float) -> bool:
        return guidance > 1 and not self._distilled

    def _guided(
        self,
        state: Tensor,
        time: Tensor,
        conditioning: Conditioning,
        unconditional: Conditioning | None,
        guidance: float,
    ) -> Tensor:
        times = time.expand(len(state))
        with_prompt = self._velocity(state, times, conditioning, guidance)
        if unconditional is None:
            return with_prompt
        without = self._velocity(state, times, unconditional, guidance)  # apart, as the pipeline has it
        return without + guidance * (with_prompt - without)

    def _pipeline_arguments(
        self, conditioning: Conditioning, unconditional: Conditioning | None, guidance: float
    ) -> dict[str, Any]:
        asked = {"prompt_embeds": conditioning.embeddings, "pooled_prompt_embeds": conditioning.pooled}
        if unconditional is None:
            return {**asked, "guidance_scale": guidance}
        return {
            **asked,
            "negative_prompt_embeds": unconditional.embeddings,
            "negative_pooled_prompt_embeds": unconditional.pooled,
            "true_cfg_scale": guidance,
        }

    def _unpacked(self, latents: Tensor) -> Tensor:
        return _unpacked(latents, *self.latent_shape[1:])


def _packed(latents: Tensor) -> Tensor:
    """[n, c, h, w] as [n, h/2 · w/2, 4c]: a token is four neighbouring latents."""
    n, c, height, width = latents.shape
    squares = latents.reshape(n, c, height // 2, 2, width // 2, 2).permute(0, 2, 4, 1, 3, 5)
    return squares.reshape(n, (height // 2) * (width // 2), 4 * c)


def _unpacked(tokens: Tensor, height: int, width: int) -> Tensor:
    n, _, wide = tokens.shape
    squares = tokens.reshape(n, height // 2, width // 2, wide // 4, 2, 2).permute(0, 3, 1, 4, 2, 5)
    return squares.reshape(n, wide // 4, height, width)
