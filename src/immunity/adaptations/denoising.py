"""The denoising loss, and what fine-tuners vary in it: which times are drawn, how they weigh, and what noise."""

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from immunity import processes
from immunity.adaptations.batches import Batch
from immunity.models import DiffusionModel
from immunity.models.noising import finest

TimesKind = Literal["as-trained", "low-noise", "high-noise"]


@dataclass(frozen=True, kw_only=True)
class TrainingNoise:
    """How pictures are noised in training, and how much each counts."""

    times: TimesKind = "as-trained"
    """As in the model's own training; or, of two such times, the one with less or with more noise."""
    offset: float = 0.0
    """Share of noise that is the same all over a channel of a picture (N. Guttenberg, 2023): lets the mean move."""
    min_snr: float | None = None
    """γ of Min-SNR (Hang et al., ICCV 2023, arXiv 2303.09556): times with little noise count no more than this one."""


AS_TRAINED = TrainingNoise()


class Noised(NamedTuple):
    """A batch, or this process's share of it, with noise on it: one time and one noise for each picture."""

    latents: Tensor
    """x_t."""
    times: Tensor
    target: Tensor
    """What the model should predict."""


def noised(
    model: DiffusionModel, batch: Batch, generator: torch.Generator, noising: TrainingNoise = AS_TRAINED
) -> Noised:
    noise = torch.randn(batch.latents.shape, generator=generator, dtype=batch.latents.dtype)
    if noising.offset:
        n, channels = noise.shape[:2]
        noise += noising.offset * torch.randn(n, channels, 1, 1, generator=generator, dtype=noise.dtype)
    noise = noise.to(batch.latents.device)
    times = model.sample_times(len(noise), generator)
    if noising.times != "as-trained":
        others = model.sample_times(len(noise), generator)
        times = torch.minimum(times, others) if noising.times == "low-noise" else torch.maximum(times, others)
    own = processes.rows(len(noise))
    latents, noise, times = batch.latents[own], noise[own], times[own]
    return Noised(model.add_noise(latents, noise, times), times, model.target(latents, noise, times))


def denoising_loss(
    model: DiffusionModel, batch: Batch, generator: torch.Generator, noising: TrainingNoise = AS_TRAINED
) -> Tensor:
    """The loss of the model's own training, E ‖predict(x_t, t, c) − target‖²."""
    noisy, times, target = noised(model, batch, generator, noising)
    prediction = model.predict(noisy, times, batch.conditioning(model))
    if noising.min_snr is None:
        return F.mse_loss(prediction, target)
    errors = (prediction - target).square().flatten(1).mean(dim=1)
    return (min_snr_weights(model, times, noising.min_snr, like=noisy) * errors).mean()


def min_snr_weights(model: DiffusionModel, times: Tensor, gamma: float, *, like: Tensor) -> Tensor:
    """min(SNR, γ) of an error in x_0, as a weight [n] of the error in what the model predicts.

    x_t = a x_0 + b ε and the prediction is c x_0 + d ε. At a fixed x_t an error e of the prediction is one of
    e b / (c b − d a) in x_0: for ε the weight is min(SNR, γ) / SNR, for v min(SNR, γ) / (SNR + 1), for a velocity
    min(SNR, γ) b². The four numbers are asked of the model, so nothing here knows which it is.
    """
    one = torch.ones(len(times), *[1] * (like.ndim - 1), device=like.device, dtype=finest(like.device))
    nothing = torch.zeros_like(one)
    a, b = model.add_noise(one, nothing, times).flatten(), model.add_noise(nothing, one, times).flatten()
    c, d = model.target(one, nothing, times).flatten(), model.target(nothing, one, times).flatten()
    in_x0 = (b / (c * b - d * a)).square()
    return ((a / b).square().clamp(max=gamma) * in_x0).to(like.dtype)
