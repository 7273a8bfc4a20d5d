"""PixArt-Σ (Chen et al., 2024, arXiv 2403.04692): a transformer with cross-attention to T5, on a chain."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

from torch import Tensor

from immunity.models.base import Conditioning
from immunity.models.groups import cross_attending
from immunity.models.noising import Chain, Noising
from immunity.models.pipeline import PipelineModel
from immunity.models.text import TextEncoder

T5_TOKENS = 300
"""To which the pipeline pads. The denoiser is not shown the padding."""


class PixartModel(PipelineModel):
    """PixArt-Σ. Prompts are read in lower case. Variances, which the denoiser predicts too, are left alone."""

    family = "PixArt-Sigma"
    pipeline_class = "PixArtSigmaPipeline"
    denoiser = "transformer"
    parts: ClassVar[Mapping[str, str]] = {
        "transformer": "PixArtTransformer2DModel",
        "vae": "AutoencoderKL",
        "text_encoder": "T5EncoderModel",
        "tokenizer": "T5Tokenizer",
    }
    groups_of_family = cross_attending("transformer", time_and_output=("adaln_single", "scale_shift_table", "proj_out"))

    def _make_noising(self) -> Noising:
        return Chain(self._scheduler, name=self.name, device=self.device)

    @property
    def _patch(self) -> int:
        patch: int = self._denoiser.config.patch_size
        return patch

    def _text_encoders(self) -> Sequence[TextEncoder]:
        return [self._text("", layout="t5", limit=T5_TOKENS)]

    def as_read(self, prompt: str) -> str:
        return prompt.lower().strip()

    def _encode(self, prompts: Sequence[str]) -> Conditioning:
        (text,) = self._text_encoders()
        read = [self.as_read(prompt) for prompt in prompts]
        return Conditioning(text.last(read, masked=True), mask=text.tokens(read).attention_mask.to(self.device))

    def predict(self, noisy: Tensor, times: Tensor, conditioning: Conditioning) -> Tensor:
        output: Tensor = self._denoiser(
            noisy.to(self.dtype),
            encoder_hidden_states=conditioning.embeddings.to(self.dtype),
            encoder_attention_mask=conditioning.mask,
            timestep=times.to(self.device),
            added_cond_kwargs={"resolution": None, "aspect_ratio": None},
            return_dict=False,
        )[0]
        return output[:, : noisy.shape[1]].to(noisy.dtype)

    def _pipeline_arguments(
        self, conditioning: Conditioning, unconditional: Conditioning | None, guidance: float
    ) -> dict[str, Any]:
        return {
            "prompt_embeds": conditioning.embeddings,
            "prompt_attention_mask": conditioning.mask,
            "negative_prompt": None,  # the pipeline's default is a text
            "negative_prompt_embeds": None if unconditional is None else unconditional.embeddings,
            "negative_prompt_attention_mask": None if unconditional is None else unconditional.mask,
            "guidance_scale": guidance,
            "use_resolution_binning": False,  # which changes nothing for square pictures of the model's own size
        }

    def _watching(self, report: Callable[[int], None]) -> dict[str, Any]:
        return {"callback": lambda step, _time, _latents: report(step)}
