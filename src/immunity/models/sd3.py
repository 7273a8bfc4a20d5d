"""Stable Diffusion 3 and 3.5 (Esser et al., 2024, arXiv 2403.03206): MMDiT, a flow, and up to three text encoders."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from immunity.models.base import Conditioning
from immunity.models.groups import jointly_attending
from immunity.models.noising import Flow, Noising
from immunity.models.pipeline import PipelineModel
from immunity.models.text import ClipFeatures, TextEncoder

T5_TOKENS = 256
"""To which the pipeline pads."""
CLIP_TOKENS = 77
"""The same, where no CLIP tokenizer is there to say."""


class Sd3Model(PipelineModel):
    """Stable Diffusion 3 or 3.5. An absent text encoder says zeros: in training each was left out now and then."""

    family = "Stable Diffusion 3 and 3.5"
    pipeline_class = "StableDiffusion3Pipeline"
    denoiser = "transformer"
    parts: ClassVar[Mapping[str, str]] = {
        "transformer": "SD3Transformer2DModel",
        "vae": "AutoencoderKL",
        "text_encoder": "CLIPTextModelWithProjection",
        "text_encoder_2": "CLIPTextModelWithProjection",
        "text_encoder_3": "T5EncoderModel",
        "tokenizer": "CLIPTokenizer",
        "tokenizer_2": "CLIPTokenizer",
        "tokenizer_3": "T5Tokenizer",
    }
    optional = frozenset(f"{kind}{end}" for kind in ("text_encoder", "tokenizer") for end in ("", "_2", "_3"))
    groups_of_family = jointly_attending("transformer", time_and_output=("time_text_embed", "norm_out", "proj_out"))

    def _make_noising(self) -> Noising:
        _, height, width = self.latent_shape
        tokens = (height // self._patch) * (width // self._patch)
        return Flow(self._scheduler, name=self.name, device=self.device, tokens=tokens)

    @property
    def _patch(self) -> int:
        patch: int = self._denoiser.config.patch_size
        return patch

    def _text_encoders(self) -> Sequence[TextEncoder]:
        return [text for text in (self._clip_l, self._clip_g, self._t5) if text is not None]

    @property
    def _clip_l(self) -> TextEncoder | None:
        present = "text_encoder" in self._parts
        return self._text("", layout="clip_l", limit=self._clip_tokens) if present else None

    @property
    def _clip_g(self) -> TextEncoder | None:
        present = "text_encoder_2" in self._parts
        return self._text("_2", layout="clip_g", limit=self._clip_tokens) if present else None

    @property
    def _t5(self) -> TextEncoder | None:
        return self._text("_3", layout="t5", limit=T5_TOKENS) if "text_encoder_3" in self._parts else None

    @property
    def _clip_tokens(self) -> int:
        """Of both CLIP encoders: as many as the first one's tokenizer says, or the second's without a first."""
        tokenizer = self._parts.get("tokenizer") or self._parts.get("tokenizer_2")
        return CLIP_TOKENS if tokenizer is None else min(CLIP_TOKENS, tokenizer.model_max_length)

    def _encode(self, prompts: Sequence[str]) -> Conditioning:
        n, width = len(prompts), self._denoiser.config.joint_attention_dim
        first, second = self._clips(prompts)
        clip = torch.cat([first.hidden, second.hidden], dim=-1)
        rest = self._zeros(n, T5_TOKENS, width) if self._t5 is None else self._t5.last(prompts)
        return Conditioning(
            torch.cat([F.pad(clip, (0, width - clip.shape[-1])), rest], dim=1),
            torch.cat([first.pooled, second.pooled], dim=-1),
        )

    def _clips(self, prompts: Sequence[str]) -> list[ClipFeatures]:
        """Of both CLIP encoders, zeros for an absent one: as wide as the other leaves room for."""
        found = [None if text is None else text.clip(prompts) for text in (self._clip_l, self._clip_g)]
        room: int = self._denoiser.config.pooled_projection_dim
        room -= sum(clip.pooled.shape[-1] for clip in found if clip is not None)
        clips = []
        for clip in found:
            if clip is None:
                n = len(prompts)
                clip, room = ClipFeatures(self._zeros(n, self._clip_tokens, room), self._zeros(n, room)), 0
            clips.append(clip)
        return clips

    def _zeros(self, *shape: int) -> Tensor:
        return torch.zeros(shape, device=self.device, dtype=self.dtype)

    def predict(self, noisy: Tensor, times: Tensor, conditioning: Conditioning) -> Tensor:
        assert conditioning.pooled is not None
        output: Tensor = self._denoiser(
            hidden_states=noisy.to(self.dtype),
            timestep=times.to(self.device),
            encoder_hidden_states=conditioning.embeddings.to(self.dtype),
            pooled_projections=conditioning.pooled.to(self.dtype),
            return_dict=False,
        )[0]
        return output.to(noisy.dtype)

    def _pipeline_arguments(
        self, conditioning: Conditioning, unconditional: Conditioning | None, guidance: float
    ) -> dict[str, Any]:
        return {
            "prompt_embeds": conditioning.embeddings,
            "pooled_prompt_embeds": conditioning.pooled,
            "negative_prompt_embeds": None if unconditional is None else unconditional.embeddings,
            "negative_pooled_prompt_embeds": None if unconditional is None else unconditional.pooled,
            "guidance_scale": guidance,
        }
