"""Stable Diffusion 1.x and 2.x (Rombach et al., 2022): a U-Net denoiser, a CLIP text encoder, an autoencoder."""

import inspect
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from immunity.atomic import refuse_existing, replacing
from immunity.errors import ImmunityError
from immunity.models.base import Conditioning, DiffusionModel, Group, LatentDistribution, PartialSample, Progress
from immunity.models.folders import UNREADABLE, check_folder, quiet_libraries, read_index, read_weights

PARAMETRIZATIONS = ("epsilon", "v_prediction")

_PROJECTIONS = frozenset({"to_q", "to_k", "to_v", "to_out"})


def _has(name: str, parts: frozenset[str]) -> bool:
    return name.startswith("unet.") and not parts.isdisjoint(name.split("."))


GROUPS: Mapping[str, Group] = {
    "all": lambda _: True,
    "attention": lambda name: _has(name, _PROJECTIONS),
    "cross_attention": lambda name: _has(name, frozenset({"attn2"})),
    "denoiser": lambda name: name.startswith("unet."),
    "non_cross_attention": lambda name: name.startswith("unet.") and not _has(name, frozenset({"attn2"})),
    # As above, without what sees no picture on its way in (the time) and what only writes it out.
    "non_cross_attention_strict": lambda name: (
        name.startswith("unet.") and not _has(name, frozenset({"attn2", "time_embedding", "conv_out"}))
    ),
    "self_attention": lambda name: _has(name, frozenset({"attn1"})),
    "text_encoder": lambda name: name.startswith("text_encoder."),
    "text_kv": lambda name: _has(name, frozenset({"attn2"})) and _has(name, frozenset({"to_k", "to_v"})),
}


class UNetModel(DiffusionModel):
    """Stable Diffusion 1.x or 2.x, epsilon or v-prediction."""

    def __init__(
        self,
        *,
        name: str,
        unet: nn.Module,
        vae: nn.Module,
        text_encoder: nn.Module,
        tokenizer: Any,
        scheduler: Any,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        vae_dtype: torch.dtype = torch.float32,
    ) -> None:
        from diffusers import DDPMScheduler

        super().__init__(
            name=name,
            components={"unet": unet, "text_encoder": text_encoder, "vae": vae},
            trained=("unet", "text_encoder"),
            groups=GROUPS,
        )
        self.device, self.dtype = torch.device(device), dtype
        # nn.Module.to and not the classes' own, which warns of a change of dtype whether or not it matters.
        self._unet = cast(Any, nn.Module.to(unet, self.device, dtype))
        self._text_encoder = cast(Any, nn.Module.to(text_encoder, self.device, dtype))
        # Half precision makes the autoencoder of Stable Diffusion overflow, hence a dtype of its own.
        self._vae = cast(Any, nn.Module.to(vae, self.device, vae_dtype))
        self._tokenizer = tokenizer
        self._scheduler = scheduler
        self._parametrization: str = scheduler.config.prediction_type
        if self._parametrization not in PARAMETRIZATIONS:
            raise ImmunityError(
                expected=f"a model that predicts {' or '.join(PARAMETRIZATIONS)}",
                got=f"{self._parametrization!r} in the scheduler of {name}",
                remedy="a Stable Diffusion 1.x or 2.x model",
            )
        # The sampler of the folder may keep time in sigmas (Euler, DPM++); training is always on the underlying chain.
        chain = DDPMScheduler.from_config(scheduler.config)
        self._alphas_cumprod: Tensor = chain.alphas_cumprod.to(self.device, torch.float64)
        factor = 2 ** (len(self._vae.config.block_out_channels) - 1)
        size: int = self._unet.config.sample_size
        self.resolution = size * factor
        self.latent_shape = (self._unet.config.in_channels, size, size)

    @classmethod
    def from_folder(
        cls,
        folder: Path,
        *,
        name: str,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        vae_dtype: torch.dtype = torch.float32,
    ) -> "UNetModel":
        """Reads a diffusers folder; weights in half precision are made float32 first, then `dtype`."""
        check_folder(folder)
        with quiet_libraries():
            import diffusers
            from transformers import CLIPTextModel, CLIPTokenizer

            try:
                scheduler_class = getattr(diffusers, read_index(folder)["scheduler"][1])
                parts = {
                    "unet": read_weights(diffusers.UNet2DConditionModel, folder / "unet"),
                    "vae": read_weights(diffusers.AutoencoderKL, folder / "vae"),
                    "text_encoder": read_weights(CLIPTextModel, folder / "text_encoder"),
                }
                tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer", local_files_only=True)
                scheduler = scheduler_class.from_pretrained(folder / "scheduler", local_files_only=True)
            except UNREADABLE as error:
                raise ImmunityError(
                    expected="a complete diffusers folder with safetensors weights",
                    got=f"{folder} ({str(error).strip() or type(error).__name__})",
                    remedy="downloading it again, or saving it with pipe.save_pretrained(folder)",
                ) from error
        return cls(
            name=name,
            unet=parts["unet"],
            vae=parts["vae"],
            text_encoder=parts["text_encoder"],
            tokenizer=tokenizer,
            scheduler=scheduler,
            device=device,
            dtype=dtype,
            vae_dtype=vae_dtype,
        )

    def encode_prompts(self, prompts: Sequence[str]) -> Conditioning:
        limit: int = self._tokenizer.model_max_length
        tokens = self._tokenizer(
            list(prompts), padding="max_length", max_length=limit, truncation=True, return_tensors="pt"
        )
        self._warn_of_cut(prompts)
        # Stable Diffusion attends to the padding too, unless the text encoder's configuration says otherwise.
        masked: bool = getattr(self._text_encoder.config, "use_attention_mask", False)
        mask = tokens.attention_mask.to(self.device) if masked else None
        return Conditioning(self._text_encoder(tokens.input_ids.to(self.device), attention_mask=mask)[0])

    def latent_distribution(self, images: Tensor) -> LatentDistribution:
        factor = self.resolution // self.latent_shape[1]
        if images.ndim != 4 or images.shape[1] != 3 or images.shape[2] % factor or images.shape[3] % factor:
            raise ImmunityError(
                expected=f"images [n, 3, h, w] with sides that are multiples of {factor}",
                got=str(list(images.shape)),
                remedy=f"resizing them to {self.resolution} × {self.resolution}",
            )
        posterior = self._vae.encode(2 * images.to(self.device, self._vae.dtype) - 1).latent_dist
        scale: float = self._vae.config.scaling_factor
        return LatentDistribution(posterior.mean.float() * scale, posterior.std.float() * scale)

    def decode_latents(self, latents: Tensor) -> Tensor:
        scaled = latents.to(self.device, self._vae.dtype) / self._vae.config.scaling_factor
        decoded: Tensor = self._vae.decode(scaled).sample
        return (decoded.float() / 2 + 0.5).clamp(0, 1)

    def sample_times(self, n: int, generator: torch.Generator) -> Tensor:
        times = torch.randint(0, len(self._alphas_cumprod), (n,), generator=generator, device=generator.device)
        return times.to(self.device)

    def add_noise(self, latents: Tensor, noise: Tensor, times: Tensor) -> Tensor:
        signal, sigma = self._signal_and_sigma(times, latents)
        return signal * latents + sigma * noise

    def predict(self, noisy: Tensor, times: Tensor, conditioning: Conditioning) -> Tensor:
        embeddings = conditioning.embeddings.to(self.dtype)
        output: Tensor = self._unet(noisy.to(self.dtype), times, encoder_hidden_states=embeddings, return_dict=False)[0]
        return output.to(noisy.dtype)

    def target(self, latents: Tensor, noise: Tensor, times: Tensor) -> Tensor:
        if self._parametrization == "epsilon":
            return noise
        signal, sigma = self._signal_and_sigma(times, latents)
        return signal * noise - sigma * latents  # v of Salimans & Ho (2022)

    def sample(
        self,
        prompts: Sequence[str],
        *,
        seeds: Sequence[int],
        steps: int = 25,
        guidance: float = 7.5,
        negative: str = "",
        batch: int = 8,
        progress: Progress | None = None,
    ) -> Tensor:
        if not 0 < len(prompts) == len(seeds):
            raise ImmunityError(
                expected="one seed a prompt, and at least one prompt",
                got=f"{len(prompts)} prompts and {len(seeds)} seeds",
                remedy="repeating the prompt for each seed",
            )
        if steps < 1 or batch < 1:
            raise ImmunityError(
                expected="at least one step and a batch of one", got=f"{steps}, {batch}", remedy="steps=25"
            )
        self._warn_of_cut(prompts)
        images = []
        starts = range(0, len(prompts), batch)
        for number, start in enumerate(starts):
            chosen = slice(start, start + batch)
            images.append(
                self._sample_batch(
                    list(prompts[chosen]),
                    generators=[torch.Generator().manual_seed(seed) for seed in seeds[chosen]],
                    steps=steps,
                    guidance=guidance,
                    negative=negative,
                    progress=progress and _after(progress, steps * number, steps * len(starts)),
                )
            )
        return torch.cat(images)

    @torch.no_grad()
    def _sample_batch(
        self,
        prompts: list[str],
        *,
        generators: list[torch.Generator],
        steps: int,
        guidance: float,
        negative: str,
        progress: Progress | None,
    ) -> Tensor:
        pipeline = self.pipeline
        pipeline.scheduler = self._fresh_scheduler()

        def report(_pipeline: Any, step: int, _time: Any, values: dict[str, Tensor]) -> dict[str, Tensor]:
            if progress is not None:
                progress(min(step + 1, steps), steps)
            return values

        with self._as_loaded_by_diffusers(), quiet_libraries():
            latents = pipeline(
                prompts,
                generator=generators,
                num_inference_steps=steps,
                guidance_scale=guidance,
                negative_prompt=[negative] * len(prompts),
                output_type="latent",
                callback_on_step_end=report,
            ).images
            return self.decode_latents(latents).cpu()

    @torch.no_grad()
    def sample_path(
        self,
        conditioning: Conditioning,
        unconditional: Conditioning,
        *,
        latents: Tensor,
        steps: int,
        stops: Sequence[int],
        guidance: float,
        generator: torch.Generator | None = None,
    ) -> list[PartialSample]:
        if not stops or not all(0 <= stop < steps for stop in stops):
            raise ImmunityError(
                expected=f"stops before the last of {steps} steps",
                got=", ".join(map(str, stops)) or "none",
                remedy=f"0 to {steps - 1}",
            )
        scheduler = self._fresh_scheduler()
        scheduler.set_timesteps(steps, device=self.device)
        extra = {}
        if "generator" in inspect.signature(scheduler.step).parameters:
            extra["generator"] = generator if generator is not None else torch.Generator().manual_seed(0)
        both = Conditioning.cat([unconditional, conditioning])
        # One doubled batch as the pipeline has it, so that the trajectory is the one that `sample` runs, bit for bit.
        guided = guidance > 1
        state = latents.to(self.device) * scheduler.init_noise_sigma
        states: dict[int, PartialSample] = {}
        for number, time in enumerate(scheduler.timesteps[: max(stops) + 1]):
            scaled = scheduler.scale_model_input(state, time)
            if number in stops:
                # A sampler that keeps x_0 + σ ε is brought to the chain's own scale; its times may fall between two
                # integers.
                states[number] = PartialSample(scaled, time.round().long().expand(len(state)))
            if number == max(stops):
                break
            output = self.predict(torch.cat([scaled] * 2) if guided else scaled, time, both if guided else conditioning)
            if guided:
                without, with_prompt = output.chunk(2)
                output = without + guidance * (with_prompt - without)
            state = scheduler.step(output, time, state, **extra, return_dict=False)[0]
        return [states[stop] for stop in stops]

    def export(self, folder: str | Path, *, force: bool = False) -> None:
        refuse_existing(folder, force=force)
        ours = {id(value) for value in self._theta.values()}
        trained = [self._unet, self._text_encoder]
        if any(id(value) not in ours for module in trained for value in module.parameters()):
            raise ImmunityError(
                expected="a model without adapters",
                got=f"{self.name} with one attached",
                remedy="leaving the adapter's block first, or saving the adapter in a file of its own",
            )
        with replacing(folder, force=force) as temporary, quiet_libraries():
            self.pipeline.save_pretrained(temporary, safe_serialization=True)

    @cached_property
    def pipeline(self) -> Any:
        """A diffusers StableDiffusionPipeline over the same modules: what changes here changes there."""
        with quiet_libraries():
            from diffusers import StableDiffusionPipeline

        pipeline = StableDiffusionPipeline(
            unet=self._unet,
            vae=self._vae,
            text_encoder=self._text_encoder,
            tokenizer=self._tokenizer,
            scheduler=self._fresh_scheduler(),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
        pipeline.set_progress_bar_config(disable=True)
        return pipeline

    def _warn_of_cut(self, prompts: Sequence[str]) -> None:
        limit: int = self._tokenizer.model_max_length
        with quiet_libraries():  # which have a longer and darker warning of their own
            cut = [prompt for prompt in dict.fromkeys(prompts) if len(self._tokenizer(prompt).input_ids) > limit]
        for prompt in cut:
            warnings.warn(f"prompt cut to {limit} tokens: {prompt!r}", stacklevel=3)

    @contextmanager
    def _as_loaded_by_diffusers(self) -> Iterator[None]:
        """All weights marked as requiring gradients.

        Even without a graph, PyTorch chooses some kernels (linear layers on strided input) by that mark, and they round
        differently. Plain diffusers leaves the mark on, so pictures equal to its own, bit for bit, need it too.
        """
        frozen = [value for part in self.components.values() for value in part.parameters() if not value.requires_grad]
        try:
            for value in frozen:
                value.requires_grad_(True)
            yield
        finally:
            for value in frozen:
                value.requires_grad_(False)

    def _fresh_scheduler(self) -> Any:
        # Multistep samplers remember their last outputs: a new one each time leaves nothing over from the last call.
        return type(self._scheduler).from_config(self._scheduler.config)

    def _signal_and_sigma(self, times: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        kept = self._alphas_cumprod[times.to(self.device)].reshape(-1, *[1] * (like.ndim - 1))
        return kept.sqrt().to(like.dtype), (1 - kept).sqrt().to(like.dtype)


def _after(progress: Progress, done: int, total: int) -> Progress:
    return lambda step, _steps: progress(done + step, total)
