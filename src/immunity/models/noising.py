"""How noise is put on a picture, and what the denoiser is asked for: a chain of steps, or a straight flow."""

import math
from abc import ABC, abstractmethod
from typing import Any

import numpy as np
import torch
from torch import Tensor

from immunity.errors import ImmunityError

PARAMETRIZATIONS = ("epsilon", "v_prediction")
_BETAS = frozenset({"beta_schedule", "beta_start", "beta_end"})


class Noising(ABC):
    """The forward process, apart from any sampler. Times are what the denoiser takes: [n]."""

    @abstractmethod
    def sample_times(self, n: int, generator: torch.Generator) -> Tensor:
        """Times drawn as in training."""

    @abstractmethod
    def add_noise(self, latents: Tensor, noise: Tensor, times: Tensor) -> Tensor: ...

    @abstractmethod
    def target(self, latents: Tensor, noise: Tensor, times: Tensor) -> Tensor: ...

    @abstractmethod
    def set_steps(self, scheduler: Any, steps: int) -> None:
        """Prepares a sampler as the pipeline does."""

    @abstractmethod
    def first(self, scheduler: Any, noise: Tensor) -> Tensor:
        """What a sampler begins with, from standard Gaussian noise."""

    @abstractmethod
    def scaled(self, scheduler: Any, state: Tensor, time: Tensor) -> Tensor:
        """A sampler's state as the denoiser takes it."""

    @abstractmethod
    def training_time(self, time: Tensor) -> Tensor:
        """A sampler's time, among those that `add_noise` takes."""


def finest(device: torch.device) -> torch.dtype:
    """The most precise floats that a device has: Apple's graphics processors have none of 64 bits."""
    return torch.float32 if device.type == "mps" else torch.float64


class Chain(Noising):
    """The chain of DDPM (Ho et al., 2020): x_t = √ᾱ_t x_0 + √(1 − ᾱ_t) ε at whole times, ε or v predicted."""

    def __init__(self, scheduler: Any, *, name: str, device: torch.device) -> None:
        from diffusers import DDPMScheduler

        self._device = device
        self._parametrization: str = scheduler.config.get("prediction_type", "flow")
        if self._parametrization not in PARAMETRIZATIONS:
            raise ImmunityError(
                expected=f"a model that predicts {' or '.join(PARAMETRIZATIONS)}",
                got=f"{self._parametrization!r} in the scheduler of {name}",
                remedy="a model whose training was a chain of steps; flows are those of SD 3 and FLUX",
            )
        # DDPMScheduler would fill in betas of its own, on which this model was never trained.
        if scheduler.config.get("trained_betas") is None and not _BETAS.issubset(scheduler.config):
            raise ImmunityError(
                expected="a scheduler that says the betas of the chain",
                got=f"{type(scheduler).__name__} in {name}",
                remedy="the scheduler folder that the model was published with",
            )
        # The sampler of the folder may keep time in sigmas (Euler, DPM++); training is always on the underlying chain.
        chain = DDPMScheduler.from_config(scheduler.config)
        self._alphas_cumprod: Tensor = chain.alphas_cumprod.to(device, finest(device))

    def sample_times(self, n: int, generator: torch.Generator) -> Tensor:
        times = torch.randint(0, len(self._alphas_cumprod), (n,), generator=generator, device=generator.device)
        return times.to(self._device)

    def add_noise(self, latents: Tensor, noise: Tensor, times: Tensor) -> Tensor:
        signal, sigma = self._signal_and_sigma(times, latents)
        return signal * latents + sigma * noise

    def target(self, latents: Tensor, noise: Tensor, times: Tensor) -> Tensor:
        if self._parametrization == "epsilon":
            return noise
        signal, sigma = self._signal_and_sigma(times, latents)
        return signal * noise - sigma * latents  # v of Salimans & Ho (2022)

    def set_steps(self, scheduler: Any, steps: int) -> None:
        scheduler.set_timesteps(steps, device=self._device)

    def first(self, scheduler: Any, noise: Tensor) -> Tensor:
        scale: float | Tensor = scheduler.init_noise_sigma
        return noise * scale

    def scaled(self, scheduler: Any, state: Tensor, time: Tensor) -> Tensor:
        # A sampler that keeps x_0 + σ ε is brought to the chain's own scale …
        scaled: Tensor = scheduler.scale_model_input(state, time)
        return scaled

    def training_time(self, time: Tensor) -> Tensor:
        return time.round().long()  # … and its times may fall between two integers

    def _signal_and_sigma(self, times: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        kept = self._alphas_cumprod[times.to(self._device)].reshape(-1, *[1] * (like.ndim - 1))
        return kept.sqrt().to(like.dtype), (1 - kept).sqrt().to(like.dtype)


class Flow(Noising):
    """Rectified flow (Esser et al., 2024, arXiv 2403.03206): x_σ = (1 − σ) x_0 + σ ε, the velocity ε − x_0 predicted.

    A time is 1000 σ (or whatever number of training steps the scheduler has), float32. Training draws σ from a logit-
    normal distribution, σ = sigmoid(N(μ, 1)), with μ the scheduler's own shift for pictures of this size: a shift by a
    factor s maps σ to sσ / (1 + (s − 1) σ), which adds ln s to its logit.
    """

    def __init__(self, scheduler: Any, *, name: str, device: torch.device, tokens: int, even: bool = False) -> None:
        """`tokens` is the number of patches of a picture, on which a dynamic shift depends.

        `even` is for pipelines that ask the sampler for even steps of σ, from 1 to 1 / steps, before any shift.
        """
        kind = type(scheduler).__name__
        config = scheduler.config
        if kind != "FlowMatchEulerDiscreteScheduler" or config.invert_sigmas or config.stochastic_sampling:
            raise ImmunityError(
                expected="the scheduler FlowMatchEulerDiscreteScheduler, neither inverted nor stochastic",
                got=f"{kind} in {name}",
                remedy="the scheduler folder that the model was published with",
            )
        self._device, self._even = device, even
        self._steps: int = config.num_train_timesteps
        self._dynamic: bool = config.use_dynamic_shifting
        self._dynamic_shift = _line(
            tokens, (config.base_image_seq_len, config.base_shift), (config.max_image_seq_len, config.max_shift)
        )
        shift: float = self._dynamic_shift if self._dynamic else config.shift
        is_logit = self._dynamic and config.time_shift_type == "exponential"
        self.mean = shift if is_logit else math.log(shift)
        """μ, of the logit of σ in training."""

    def sample_times(self, n: int, generator: torch.Generator) -> Tensor:
        logits = torch.randn(n, generator=generator, device=generator.device) + self.mean
        return (logits.sigmoid() * self._steps).to(self._device)

    def add_noise(self, latents: Tensor, noise: Tensor, times: Tensor) -> Tensor:
        sigma = (times.to(self._device) / self._steps).to(latents.dtype).reshape(-1, *[1] * (latents.ndim - 1))
        return (1 - sigma) * latents + sigma * noise

    def target(self, latents: Tensor, noise: Tensor, times: Tensor) -> Tensor:  # noqa: ARG002 (the same at all times)
        return noise - latents

    def set_steps(self, scheduler: Any, steps: int) -> None:
        shift = self._dynamic_shift if self._dynamic else None
        if self._even:
            scheduler.set_timesteps(sigmas=np.linspace(1.0, 1 / steps, steps), device=self._device, mu=shift)
        else:
            scheduler.set_timesteps(steps, device=self._device, mu=shift)

    def first(self, scheduler: Any, noise: Tensor) -> Tensor:  # noqa: ARG002
        return noise

    def scaled(self, scheduler: Any, state: Tensor, time: Tensor) -> Tensor:  # noqa: ARG002
        return state

    def training_time(self, time: Tensor) -> Tensor:
        return time.float()


def _line(x: float, first: tuple[float, float], second: tuple[float, float]) -> float:
    """y at x on the line through two points."""
    slope = (second[1] - first[1]) / (second[0] - first[0])
    return x * slope + (first[1] - slope * first[0])
