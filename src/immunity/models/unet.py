"""Stable Diffusion 1.x and 2.x (Rombach et al., 2022): a U-Net denoiser, a CLIP text encoder, an autoencoder."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from torch import Tensor

from immunity.models.base import Conditioning
from immunity.models.groups import cross_attending
from immunity.models.noising import Chain, Noising
from immunity.models.pipeline import PipelineModel
from immunity.models.text import TextEncoder


class UNetModel(PipelineModel):
    """Stable Diffusion 1.x or 2.x, epsilon or v-prediction."""

    family = "Stable Diffusion 1.x and 2.x"
    pipeline_class = "StableDiffusionPipeline"
    denoiser = "unet"
    parts: ClassVar[Mapping[str, str]] = {
        "unet": "UNet2DConditionModel",
        "vae": "AutoencoderKL",
        "text_encoder": "CLIPTextModel",
        "tokenizer": "CLIPTokenizer",
    }
    groups_of_family = cross_attending("unet", time_and_output=("time_embedding", "conv_out"))

    def _make_noising(self) -> Noising:
        return Chain(self._scheduler, name=self.name, device=self.device)

    def _text_encoders(self) -> Sequence[TextEncoder]:
        return [self._text("", layout="clip_l")]

    def _encode(self, prompts: Sequence[str]) -> Conditioning:
        (text,) = self._text_encoders()
        # Stable Diffusion attends to the padding too, unless the text encoder's configuration says otherwise.
        masked: bool = getattr(text.encoder.config, "use_attention_mask", False)
        return Conditioning(text.last(prompts, masked=masked))

    def text_features(self, conditioning: Conditioning) -> Tensor:
        return conditioning.embeddings

    def predict(self, noisy: Tensor, times: Tensor, conditioning: Conditioning) -> Tensor:
        output: Tensor = self._denoiser(
            noisy.to(self.dtype),
            times.to(self.device),
            encoder_hidden_states=conditioning.embeddings.to(self.dtype),
            added_cond_kwargs=self._added(noisy, conditioning),
            return_dict=False,
        )[0]
        return output.to(noisy.dtype)

    def _added(self, noisy: Tensor, conditioning: Conditioning) -> dict[str, Tensor] | None:  # noqa: ARG002
        """What the U-Net takes besides, to put to the embedding of the time."""
        return None

    def _pipeline_arguments(
        self, conditioning: Conditioning, unconditional: Conditioning | None, guidance: float
    ) -> dict[str, Any]:
        return {
            "prompt_embeds": conditioning.embeddings,
            "negative_prompt_embeds": None if unconditional is None else unconditional.embeddings,
            "guidance_scale": guidance,
        }

    def _pipeline_settings(self) -> dict[str, Any]:
        return {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
