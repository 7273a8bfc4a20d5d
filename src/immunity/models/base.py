"""The interface that every method is written on: what a text-to-image diffusion model can be asked."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from immunity.deltas import hash_tensors
from immunity.errors import ImmunityError
from immunity.models.groups import Group
from immunity.models.vocabulary import Vocabulary

Progress = Callable[[int, int], None]
"""Called with the denoising steps done and the denoising steps in all, over all batches."""


@contextmanager
def thawed(parameters: Iterable[nn.Parameter]) -> Iterator[None]:
    """Lets the parameters require gradients for the length of a block."""
    frozen = [value for value in parameters if not value.requires_grad]
    try:
        for value in frozen:
            value.requires_grad_(True)
        yield
    finally:
        for value in frozen:
            value.requires_grad_(False)
            value.grad = None


@dataclass(frozen=True, eq=False)
class Conditioning:
    """What the text encoder says to the denoiser, one row a prompt."""

    embeddings: Tensor
    """[n, tokens, width]"""
    pooled: Tensor | None = None
    """[n, width], for families whose denoiser takes it."""
    mask: Tensor | None = None
    """[n, tokens], 1 for what is text and 0 for padding, for families whose denoiser is not shown the padding."""

    def __len__(self) -> int:
        return len(self.embeddings)

    def __getitem__(self, index: int | slice | Sequence[int] | Tensor) -> "Conditioning":
        """The chosen rows; one row stays a batch of one."""
        if isinstance(index, int):
            index = [index]
        return self._map(lambda tensor: tensor[index])

    @classmethod
    def cat(cls, parts: "Sequence[Conditioning]") -> "Conditioning":
        pooled = [part.pooled for part in parts if part.pooled is not None]
        masks = [part.mask for part in parts if part.mask is not None]
        return cls(
            torch.cat([part.embeddings for part in parts]),
            torch.cat(pooled) if pooled else None,
            torch.cat(masks) if masks else None,
        )

    def repeat(self, times: int) -> "Conditioning":
        """All rows, `times` times over: `encode_prompts([""]).repeat(n)` is a batch of the unconditional prompt."""
        return self._map(lambda tensor: tensor.repeat(times, *[1] * (tensor.ndim - 1)))

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> "Conditioning":
        """`dtype` is that of the numbers; a mask keeps its own."""
        return self._map(lambda tensor: tensor.to(device, dtype if tensor.is_floating_point() else None))

    def detach(self) -> "Conditioning":
        return self._map(Tensor.detach)

    def zeros_like(self) -> "Conditioning":
        """Nothing said, in the same shape."""
        return self._map(torch.zeros_like)

    def _map(self, function: Callable[[Tensor], Tensor]) -> "Conditioning":
        return Conditioning(
            function(self.embeddings),
            None if self.pooled is None else function(self.pooled),
            None if self.mask is None else function(self.mask),
        )


@dataclass(frozen=True, eq=False)
class LatentDistribution:
    """What the autoencoder says of images: a Gaussian over latents [n, c, h, w], scaled as the denoiser takes them."""

    mean: Tensor
    spread: Tensor
    """Standard deviation of each latent."""

    def sample(self, generator: torch.Generator) -> Tensor:
        noise = torch.randn(self.mean.shape, generator=generator, device=generator.device, dtype=self.mean.dtype)
        return self.mean + self.spread * noise.to(self.mean.device)


class PartialSample(NamedTuple):
    """A picture that the model is in the middle of making."""

    latents: Tensor
    """x_t [n, c, h, w], scaled as `predict` takes it."""
    times: Tensor
    """t [n], among those that `add_noise` takes."""


class DiffusionModel(ABC):
    """A text-to-image diffusion model; callers never ask which family or parametrization.

    θ, the weights that methods may change, is fixed when the model is made: `parameters` never includes what an adapter
    adds later. θ is frozen (requires no gradient) until a method thaws the part that it trains. Latents are scaled as
    the denoiser takes them. Shapes: images [n, 3, h, w] in [0, 1], latents [n, c, h, w], times [n]: whole numbers
    (int64) on a chain, float32 in a flow.
    """

    name: str
    device: torch.device
    dtype: torch.dtype
    """Of the denoiser and the text encoder."""
    components: dict[str, nn.Module]
    base_hash: str
    """SHA-256 of all weights as they were loaded, in float32: the same for every device and dtype."""
    parents: tuple[str, ...]
    """Hashes of the deltas applied so far, in order."""
    resolution: int
    """Height and width of the pictures, in pixels."""
    family: ClassVar[str]
    """What people call such models."""
    denoiser: ClassVar[str]
    """The name of that component."""
    latent_shape: tuple[int, int, int]
    """(c, h, w)"""
    left_out: tuple[str, ...] = ()
    """Parts of the folder that are neither in the model nor in what it exports, such as a safety checker."""

    def __init__(
        self, *, name: str, components: Mapping[str, nn.Module], trained: Sequence[str], groups: Mapping[str, Group]
    ) -> None:
        """`trained` names the components that make up θ; `groups` the parts of θ that `parameters` can be asked for."""
        self.name = name
        self.components = dict(components)
        self.parents = ()
        self.groups = dict(groups)
        for module in self.components.values():
            module.requires_grad_(False).eval()
        everything = self._everything()
        self._theta = {key: value for key, value in everything.items() if key.split(".", 1)[0] in trained}
        self.base_hash = hash_tensors(everything, dtype=torch.float32)

    def _everything(self) -> dict[str, nn.Parameter]:
        return {
            f"{part}.{parameter}": value
            for part, module in self.components.items()
            for parameter, value in module.named_parameters()
        }

    def settle(self, device: torch.device) -> None:
        """Takes note that the components are on that device now, and some of θ other objects than before."""
        everything = self._everything()
        self._theta = {name: everything[name] for name in self._theta}
        self.device = device

    def parameters(self, group: str) -> dict[str, nn.Parameter]:
        """θ, or a part of it, by names such as "unet.mid_block.….weight", in the order of the modules."""
        if group not in self.groups:
            raise ImmunityError(
                expected=f"a group of parameters that {type(self).__name__} has: {', '.join(sorted(self.groups))}",
                got=repr(group),
                remedy="one of these",
            )
        return {name: value for name, value in self._theta.items() if self.groups[group](name)}

    @property
    def adapted(self) -> bool:
        """Whether an adapter is inside, which makes the modules other than they were loaded."""
        found = [
            f"{part}.{name}"
            for part in dict.fromkeys(name.split(".", 1)[0] for name in self._theta)
            for name, _ in self.components[part].named_parameters()
        ]
        return sorted(found) != sorted(self._theta)

    def vocabularies(self) -> tuple[Vocabulary, ...]:
        """Of the text encoders that read prompts token by token from a table: what new words are added to."""
        raise ImmunityError(
            expected="a model whose prompts can have new words",
            got=f"{self.name}, a {type(self).__name__}",
            remedy="an adaptation without a new token, such as lora or dreambooth",
        )

    def as_read(self, prompt: str) -> str:
        """The prompt as the text encoders are given it."""
        return prompt

    @abstractmethod
    def encode_prompts(self, prompts: Sequence[str]) -> Conditioning:
        """Differentiable with respect to the text encoder where that has been thawed.

        A prompt longer than the tokenizer's limit is cut, with a warning.
        """

    def unconditional(self) -> Conditioning:
        """What guidance leads away from where nothing is asked for, one row: the empty prompt in most families."""
        return self.encode_prompts([""])

    def text_features(self, conditioning: Conditioning) -> Tensor:  # noqa: ARG002 (one signature)
        """What the projections of "text_kv" are applied to [n, tokens, width], where that is known without a picture.

        Raises `ImmunityError` in families where it depends on the picture, the time or another text encoder's mask.
        """
        raise ImmunityError(
            expected="a family whose cross-attention reads the text features as they are",
            got=f"{self.name}, {self.family}: unsupported, as what its keys and values read of a prompt is not a "
            "function of the prompt alone",
            remedy="an eraser that trains (esd)",
        )

    @abstractmethod
    def latent_distribution(self, images: Tensor) -> LatentDistribution:
        """Of the images, float32: encoded once, it can be sampled from as often as training needs."""

    def encode_images(self, images: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Latents of the images: the mean of their distribution, or a sample of it where a generator is given."""
        latents = self.latent_distribution(images)
        return latents.mean if generator is None else latents.sample(generator)

    @abstractmethod
    def decode_latents(self, latents: Tensor) -> Tensor:
        """Images in [0, 1], float32."""

    @abstractmethod
    def sample_times(self, n: int, generator: torch.Generator) -> Tensor:
        """Times drawn as in the model's own training."""

    @abstractmethod
    def add_noise(self, latents: Tensor, noise: Tensor, times: Tensor) -> Tensor:
        """x_t from x_0 and standard Gaussian noise."""

    @abstractmethod
    def predict(self, noisy: Tensor, times: Tensor, conditioning: Conditioning) -> Tensor:
        """The denoiser's raw output, in the dtype of `noisy`."""

    @abstractmethod
    def target(self, latents: Tensor, noise: Tensor, times: Tensor) -> Tensor:
        """What `predict` should equal."""

    @abstractmethod
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
        """One image a prompt, on the CPU, by the model's own sampler.

        Image i depends on (weights, prompts[i], seeds[i], steps, guidance, negative) only. That holds to the bit for
        the same `batch`, and to rounding for another, as matrix products of another size round differently.
        """

    @abstractmethod
    def states_on_path(self, steps: int) -> int:
        """How many states `sample_path` can stop at: one before each call of the denoiser.

        Most samplers have one a step; those of second order have nearly two (99 in 50), PNDM has one more (51).
        """

    @abstractmethod
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
        """Runs the model's own sampler of `steps` steps as far as the last of `stops`, and keeps the states at each.

        A stop k is the state after k calls of the denoiser (`states_on_path`); the answer is in the order of `stops`.
        `latents` is standard Gaussian noise, `unconditional` as long as `conditioning` (used where `guidance` > 1).
        `generator`, or one for each picture, matters only for a sampler that adds noise; without it such a sampler
        draws from seed 0.
        """

    @abstractmethod
    def export(self, folder: str | Path, *, force: bool = False) -> None:
        """Writes a complete folder that the family's own library loads without this package."""
