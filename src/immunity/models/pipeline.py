"""What all families share whose parts and sampler are those of a diffusers pipeline."""

import inspect
import warnings
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar, Self, cast

import torch
from torch import Tensor, nn

from immunity.atomic import refuse_existing, replacing
from immunity.errors import ImmunityError
from immunity.models.autoencoder import Autoencoder
from immunity.models.base import Conditioning, DiffusionModel, LatentDistribution, PartialSample, Progress, thawed
from immunity.models.compatible import read_words, save_compatibly
from immunity.models.folders import quiet_libraries, read_index, read_parts, readable
from immunity.models.groups import Group
from immunity.models.noising import Noising
from immunity.models.text import TextEncoder
from immunity.models.vocabulary import Vocabulary


class PipelineModel(DiffusionModel):
    """A denoiser, an autoencoder, text encoders and a sampler, in a folder that diffusers reads.

    A family says which parts these are, how prompts become a `Conditioning`, how the denoiser is called, and what its
    pipeline calls its arguments.
    """

    pipeline_class: ClassVar[str]
    """In diffusers, and in model_index.json."""
    parts: ClassVar[Mapping[str, str]]
    """The folders of the pipeline and the classes of what is in them, the scheduler apart."""
    optional: ClassVar[frozenset[str]] = frozenset()
    """The parts that some models of the family do without."""
    groups_of_family: ClassVar[Mapping[str, Group]]

    def __init__(
        self,
        *,
        name: str,
        parts: Mapping[str, Any],
        settings: Mapping[str, Any],
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        vae_dtype: torch.dtype = torch.float32,
        files: Mapping[str, bytes] = MappingProxyType({}),
    ) -> None:
        """`parts` holds the scheduler too, and nothing for a part that is absent; `settings` are the pipeline's own.

        `files`, by their paths in a folder, are exported as they are where the parts do not write them themselves.
        """
        # In this order, the denoiser first: it is that of deltas made of "all".
        modules = [self.denoiser, *(part for part in self.parts if part.startswith("text_encoder")), "vae"]
        components = {part: cast(nn.Module, parts[part]) for part in modules if part in parts}
        trained = [part for part in components if part != "vae"]
        super().__init__(name=name, components=components, trained=trained, groups=self.groups_of_family)
        self.device, self.dtype = torch.device(device), dtype
        for part, module in components.items():
            # nn.Module.to and not the classes' own, which warns of a change of dtype whether or not it matters. Half
            # precision makes the autoencoders overflow, hence a dtype of their own.
            nn.Module.to(module, self.device, vae_dtype if part == "vae" else dtype)
            if self.parts[part] == "T5EncoderModel" and dtype == torch.float16:
                _spare_from_overflow(module)
        self._parts, self._settings, self._files = dict(parts), dict(settings), dict(files)
        self._denoiser, self._scheduler = cast(Any, parts[self.denoiser]), cast(Any, parts["scheduler"])
        self._autoencoder = Autoencoder(parts["vae"], name=name)
        self.latent_shape = self._latent_shape()
        self._autoencoder.check_latents(self.latent_shape[0])
        self.resolution = self.latent_shape[1] * self._autoencoder.pixels
        self._noising = self._make_noising()

    def settle(self, device: torch.device) -> None:
        super().settle(device)
        self._noising = self._make_noising()

    @classmethod
    def from_folder(
        cls,
        folder: Path,
        *,
        name: str,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        vae_dtype: torch.dtype = torch.float32,
    ) -> Self:
        """Reads a folder of this family's pipeline."""
        dtypes = {"vae": vae_dtype}
        parts = read_parts(folder, cls.parts, optional=cls.optional, dtypes=lambda part: dtypes.get(part, dtype))
        index = read_index(folder)
        settings = {key: value for key, value in index.items() if not (key.startswith("_") or isinstance(value, list))}
        with readable(folder):  # the settings of its parts too, which need not be numbers where they should
            model = cls(
                name=name,
                parts=parts,
                settings=settings,
                device=device,
                dtype=dtype,
                vae_dtype=vae_dtype,
                files=read_words(folder, [part for part in parts if part.startswith("tokenizer")]),
            )
        present = {part for part, entry in index.items() if isinstance(entry, list) and any(entry)}
        model.left_out = tuple(sorted(present - {*cls.parts, "scheduler"}))
        return model

    # What a family says of itself

    @abstractmethod
    def _make_noising(self) -> Noising: ...

    @abstractmethod
    def _encode(self, prompts: Sequence[str]) -> Conditioning: ...

    @abstractmethod
    def _text_encoders(self) -> Sequence[TextEncoder]:
        """Those that the model has."""

    @abstractmethod
    def _pipeline_arguments(
        self, conditioning: Conditioning, unconditional: Conditioning | None, guidance: float
    ) -> dict[str, Any]:
        """The arguments by which the pipeline takes these."""

    def _latent_shape(self) -> tuple[int, int, int]:
        config = self._denoiser.config
        return (config.in_channels, config.sample_size, config.sample_size)

    @property
    def _patch(self) -> int:
        """Height and width, in latents, of what the denoiser takes as one."""
        return 1

    def _unconditional_of(self, n: int) -> Conditioning:
        """`unconditional` as the pipeline computes it for n pictures at a time."""
        return self.encode_prompts([""] * n)

    def _is_guided(self, guidance: float) -> bool:
        """Whether the sampler runs the denoiser without the prompt too."""
        return guidance > 1

    def _guided(
        self,
        state: Tensor,
        time: Tensor,
        conditioning: Conditioning,
        unconditional: Conditioning | None,
        guidance: float,
    ) -> Tensor:
        """What the sampler takes a step with."""
        if unconditional is None:
            return self.predict(state, time.expand(len(state)), conditioning)
        # One doubled batch as the pipeline has it, so that the trajectory is the one that `sample` runs, bit for bit.
        both = Conditioning.cat([unconditional, conditioning])
        output = self.predict(torch.cat([state] * 2), time.expand(2 * len(state)), both)
        without, with_prompt = output.chunk(2)
        return without + guidance * (with_prompt - without)

    def _unpacked(self, latents: Tensor) -> Tensor:
        """[n, c, h, w], of the latents that the pipeline answers with."""
        return latents

    def _watching(self, report: Callable[[int], None]) -> dict[str, Any]:
        """The argument by which the pipeline calls `report` after each step, with the number of the step."""

        def after(_pipeline: Any, step: int, _time: Any, values: dict[str, Tensor]) -> dict[str, Tensor]:
            report(step)
            return values

        return {"callback_on_step_end": after}

    # What follows for all of them

    def _text(self, end: str, *, layout: str, limit: int | None = None) -> TextEncoder:
        """The text encoder whose name, and whose tokenizer's, ends so; the limit is the tokenizer's own without one."""
        component, tokenizer = f"text_encoder{end}", self._parts[f"tokenizer{end}"]
        encoder = self._parts[component]
        # Old folders do not say the tokenizer's own, which then is a number without end.
        cut = min(tokenizer.model_max_length, encoder.config.max_position_embeddings) if limit is None else limit
        return TextEncoder(component, encoder, tokenizer, cut, layout)

    def vocabularies(self) -> tuple[Vocabulary, ...]:
        return tuple(text.vocabulary for text in self._text_encoders())

    def encode_prompts(self, prompts: Sequence[str]) -> Conditioning:
        encoders = self._text_encoders()
        # Where several encoders read a prompt, what one of them cuts off another may still have read.
        longest = max(encoders, key=lambda encoder: encoder.limit)
        for prompt in longest.cut(prompts):
            warnings.warn(f"prompt cut to {longest.limit} tokens: {prompt!r}", stacklevel=2)
        return self._encode(prompts)

    def latent_distribution(self, images: Tensor) -> LatentDistribution:
        factor = self._autoencoder.pixels * self._patch
        if images.ndim != 4 or images.shape[1] != 3 or images.shape[2] % factor or images.shape[3] % factor:
            raise ImmunityError(
                expected=f"images [n, 3, h, w] with sides that are multiples of {factor}",
                got=str(list(images.shape)),
                remedy=f"resizing them to {self.resolution} × {self.resolution}",
            )
        return self._autoencoder.distribution(images)

    def decode_latents(self, latents: Tensor) -> Tensor:
        return self._autoencoder.decode(latents)

    def sample_times(self, n: int, generator: torch.Generator) -> Tensor:
        return self._noising.sample_times(n, generator)

    def add_noise(self, latents: Tensor, noise: Tensor, times: Tensor) -> Tensor:
        return self._noising.add_noise(latents, noise, times)

    def target(self, latents: Tensor, noise: Tensor, times: Tensor) -> Tensor:
        return self._noising.target(latents, noise, times)

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
        self._scheduler_of(steps)  # which refuses a number that the sampler cannot take
        if negative and not self._is_guided(guidance):
            why = "which a guidance-distilled model cannot take" if guidance > 1 else "which takes a guidance above 1"
            raise ImmunityError(
                expected=f"no negative prompt, {why}", got=f"{negative!r} for {self.name}", remedy="leaving it out"
            )
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

        def report(step: int) -> None:
            if progress is not None:
                progress(min(step + 1, steps), steps)

        with self._as_loaded_by_diffusers(), quiet_libraries():
            conditioning = self.encode_prompts(prompts)
            unconditional = None
            if self._is_guided(guidance):
                many = len(prompts)
                unconditional = self.encode_prompts([negative] * many) if negative else self._unconditional_of(many)
            latents = pipeline(
                **self._pipeline_arguments(conditioning, unconditional, guidance),
                **self._watching(report),
                generator=generators,
                num_inference_steps=steps,
                height=self.resolution,
                width=self.resolution,
                output_type="latent",
            ).images
            return self.decode_latents(self._unpacked(latents)).cpu()

    def states_on_path(self, steps: int) -> int:
        return len(self._scheduler_of(steps).timesteps)

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
        generator: torch.Generator | list[torch.Generator] | None = None,
    ) -> list[PartialSample]:
        scheduler = self._scheduler_of(steps)
        states = len(scheduler.timesteps)
        if not stops or not all(0 <= stop < states for stop in stops):
            raise ImmunityError(
                expected=f"stops at some of the {states} states on the way of {steps} steps",
                got=", ".join(map(str, stops)) or "none",
                remedy=f"0 to {states - 1}",
            )
        extra = {}
        if "generator" in inspect.signature(scheduler.step).parameters:
            extra["generator"] = generator if generator is not None else torch.Generator().manual_seed(0)
        other = unconditional if self._is_guided(guidance) else None
        state = self._noising.first(scheduler, latents.to(self.device))
        kept: dict[int, PartialSample] = {}
        for number, time in enumerate(scheduler.timesteps[: max(stops) + 1]):
            scaled = self._noising.scaled(scheduler, state, time)
            if number in stops:
                kept[number] = PartialSample(scaled, self._noising.training_time(time).expand(len(state)))
            if number == max(stops):
                break
            output = self._guided(scaled, time, conditioning, other, guidance)
            state = scheduler.step(output, time, state, **extra, return_dict=False)[0]
        return [kept[stop] for stop in stops]

    def export(self, folder: str | Path, *, force: bool = False) -> None:
        refuse_existing(folder, force=force)
        if self.adapted:
            raise ImmunityError(
                expected="a model without adapters",
                got=f"{self.name} with one attached",
                remedy="leaving the adapter's block first, or saving the adapter in a file of its own",
            )
        if self.left_out:
            warnings.warn(f"without {', '.join(self.left_out)}, which {self.name} has", stacklevel=2)
        with replacing(folder, force=force) as temporary, quiet_libraries():
            save_compatibly(self.pipeline, temporary, parts=self._parts, classes=self.parts, files=self._files)

    @cached_property
    def pipeline(self) -> Any:
        """The family's diffusers pipeline over the same modules: what changes here changes there."""
        with quiet_libraries():
            import diffusers

            kind = getattr(diffusers, self.pipeline_class)  # which is what imports it

        absent = dict.fromkeys(self.optional - set(self._parts))
        parts = {**absent, **self._parts, "scheduler": self._fresh_scheduler()}
        pipeline = kind(**parts, **self._pipeline_settings())
        pipeline.set_progress_bar_config(disable=True)
        return pipeline

    def _pipeline_settings(self) -> dict[str, Any]:
        """What the pipeline is made with, besides its parts."""
        return {}

    def _as_loaded_by_diffusers(self) -> AbstractContextManager[None]:
        """All weights marked as requiring gradients.

        Even without a graph, PyTorch chooses some kernels (linear layers on strided input) by that mark, and they round
        differently. Plain diffusers leaves the mark on, so pictures equal to its own, bit for bit, need it too.
        """
        return thawed(value for part in self.components.values() for value in part.parameters())

    def _fresh_scheduler(self) -> Any:
        # Multistep samplers remember their last outputs: a new one each time leaves nothing over from the last call.
        return type(self._scheduler).from_config(self._scheduler.config)

    def _scheduler_of(self, steps: int) -> Any:
        scheduler = self._fresh_scheduler()
        try:
            self._noising.set_steps(scheduler, steps)
        except ValueError as error:  # how samplers refuse more steps than the model was trained with
            raise ImmunityError(
                expected=f"sampling steps that {type(scheduler).__name__} can take",
                got=f"{steps} ({str(error).splitlines()[0]})",
                remedy="25",
            ) from error
        return scheduler


def _spare_from_overflow(t5: nn.Module) -> None:
    """Makes float32 of what transformers keeps in it, as T5's sums are beyond float16."""
    for name, module in t5.named_modules():
        if name.endswith(".wo"):
            module.float()


def _after(progress: Progress, done: int, total: int) -> Progress:
    return lambda step, _steps: progress(done + step, total)
