"""Between pictures and latents: the autoencoders of all families, which differ in two numbers."""

from typing import Any

import torch
from torch import Tensor

from immunity.errors import ImmunityError
from immunity.models.base import LatentDistribution

_PIXELS_AT_ONCE = 8 * 512**2  # of all pictures; their activations take some 8 GB in float32


class Autoencoder:
    """A pipeline's autoencoder, with its latents shifted and scaled as the denoiser takes them."""

    def __init__(self, vae: Any, *, name: str) -> None:
        if vae.config.get("latents_mean") is not None:
            raise ImmunityError(
                expected="an autoencoder with one scale for all latents",
                got=f"latents_mean in that of {name}",
                remedy="a model with the family's usual autoencoder",
            )
        self._vae = vae
        self._scale = float(vae.config.scaling_factor)
        self._shift = float(vae.config.get("shift_factor") or 0.0)
        self.pixels: int = 2 ** (len(vae.config.block_out_channels) - 1)
        """Height and width of a latent."""
        self._channels: int = vae.config.latent_channels
        self._name = name

    def check_latents(self, channels: int) -> None:
        """Raises `ImmunityError` if the denoiser takes something other than its latents."""
        if channels != self._channels:
            raise ImmunityError(
                expected=f"a denoiser that takes the autoencoder's {self._channels} channels and nothing else",
                got=f"one of {channels} channels in {self._name}: for inpainting, upscaling or the editing of pictures",
                remedy="a model from text to image",
            )

    @property
    def size(self) -> int:
        """Height and width, in latents, of the pictures that it was trained on."""
        size: int = self._vae.config.sample_size
        return size // self.pixels

    def distribution(self, images: Tensor) -> LatentDistribution:
        found = [self._encoded(part) for part in images.split(_at_once(images.shape[-2] * images.shape[-1]))]
        return LatentDistribution(torch.cat([one.mean for one in found]), torch.cat([one.spread for one in found]))

    def decode(self, latents: Tensor) -> Tensor:
        pixels = latents.shape[-2] * latents.shape[-1] * self.pixels**2
        return torch.cat([self._decoded(part) for part in latents.split(_at_once(pixels))])

    def _encoded(self, images: Tensor) -> LatentDistribution:
        posterior = self._vae.encode(2 * images.to(self._vae.device, self._vae.dtype) - 1).latent_dist
        return LatentDistribution(
            (posterior.mean.float() - self._shift) * self._scale, posterior.std.float() * self._scale
        )

    def _decoded(self, latents: Tensor) -> Tensor:
        scaled = latents.to(self._vae.device, self._vae.dtype) / self._scale + self._shift
        decoded: Tensor = self._vae.decode(scaled).sample
        return (decoded.float() / 2 + 0.5).clamp(0, 1)


def _at_once(pixels: int) -> int:
    """Pictures of so many pixels that the autoencoder takes together."""
    return max(1, _PIXELS_AT_ONCE // pixels)
