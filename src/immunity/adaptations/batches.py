"""What an adaptation learns from: pictures, encoded once, and the batches drawn from them."""

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from immunity import processes
from immunity.concepts import Examples
from immunity.errors import ImmunityError
from immunity.models import Conditioning, DiffusionModel
from immunity.models.base import LatentDistribution
from immunity.optimize import derived_seed

_ENCODED_AT_ONCE = 8  # pictures; bounds the autoencoder's memory


@dataclass(frozen=True, eq=False)
class Batch:
    """What one training step sees."""

    latents: Tensor
    """x_0 [n, c, h, w], scaled as the denoiser takes it."""
    prompts: tuple[str, ...]
    cached: Conditioning | None = None
    """Of the prompts, one row each; None where the text encoder is in training and must be asked anew."""
    prior: "Batch | None" = None
    """Pictures of the class that the concept belongs to, for adaptations with a prior term."""

    def conditioning(self, model: DiffusionModel) -> Conditioning:
        """Of the prompts, or of this process's share of them."""
        own = processes.rows(len(self.prompts))
        return model.encode_prompts(self.prompts[own]) if self.cached is None else self.cached[own]


@dataclass(frozen=True, eq=False)
class Batches:
    """Pictures as the distributions of their latents, and their prompts, from which batches are drawn.

    A batch samples the latents anew, as if the pictures had been encoded again, at no cost.
    """

    latents: LatentDistribution
    """Of each picture (a mirrored picture counts as one)."""
    prompts: tuple[str, ...]
    """One for each picture; or all pictures with a first caption, all with a second, …"""
    cached: Conditioning | None
    """One row for each distinct prompt, unless prompts are encoded at each step."""
    rows: Tensor
    """Of each prompt: its number among the distinct ones."""
    epoch: Tensor
    """The prompts of one epoch, by number, each with its picture: each at least once."""
    mirrored: bool = False
    """Whether the second half of the pictures is the first half's mirror images."""
    prior: "Batches | None" = None
    """Pictures of the class that the concept belongs to. Batches drawn from this object never have any."""

    @classmethod
    @torch.no_grad()
    def encode(
        cls,
        model: DiffusionModel,
        examples: Examples,
        *,
        captions: Sequence[str] = (),
        mirror: bool = False,
        balance: bool = False,
        cache_prompts: bool = True,
    ) -> "Batches":
        """`captions` take the place of the pictures' own prompts, each picture having every one of them in an epoch;
        `mirror` adds each picture's mirror image; `balance` makes an epoch show every prompt equally often.
        """
        if not len(examples):
            raise ImmunityError(
                expected="at least one picture to learn from", got="none", remedy="a folder that has pictures"
            )
        images = torch.cat([examples.images, examples.images.flip(-1)]) if mirror else examples.images
        prompts = examples.prompts * (2 if mirror else 1)
        if captions:
            prompts = tuple(caption for caption in captions for _ in prompts)
        distinct, rows = numbered(prompts)
        return cls(
            _latents(model, images),
            prompts,
            encoded(model, distinct) if cache_prompts else None,
            rows,
            _epoch(prompts, balance=balance),
            mirrored=mirror,
        )

    def showing(self, model: DiffusionModel, images: Tensor) -> "Batches":
        """The same with others in the place of its pictures, one for each."""
        shown = torch.cat([images, images.flip(-1)]) if self.mirrored else images
        return replace(self, latents=_latents(model, shown))

    def captioned(self, latents: Tensor, numbers: Tensor, generator: torch.Generator) -> Batch:
        """Other latents in the place of those pictures', by their numbers, each with one of the picture's captions."""
        pictures = len(self.latents.mean)
        captions = torch.randint(len(self.prompts) // pictures, numbers.shape, generator=generator)
        return self._batch(latents, numbers + captions * pictures)

    def draw(self, size: int, number: int, *, seed: int, generator: torch.Generator) -> Batch:
        """The `number`-th batch of `size` pictures.

        Which pictures it holds follows from `seed` and `number` alone: epoch after epoch, each in an order of its own,
        so that a run can be taken up anywhere. The latents are sampled with the generator.
        """
        chosen = torch.stack([self._picture(number * size + offset, seed) for offset in range(size)])
        pictures = chosen % len(self.latents.mean)
        latents = LatentDistribution(self.latents.mean[pictures], self.latents.spread[pictures]).sample(generator)
        return self._batch(latents, chosen)

    def _batch(self, latents: Tensor, chosen: Tensor) -> Batch:
        """With the prompts of those numbers."""
        prompts = tuple(self.prompts[i] for i in chosen.tolist())
        return Batch(latents, prompts, None if self.cached is None else self.cached[self.rows[chosen]])

    def _picture(self, position: int, seed: int) -> Tensor:
        turn, place = divmod(position, len(self.epoch))
        generator = torch.Generator().manual_seed(derived_seed(seed, "epoch", turn))
        order = torch.randperm(len(self.epoch), generator=generator)
        return self.epoch[order[place]]


def encoded(model: DiffusionModel, prompts: Sequence[str]) -> Conditioning:
    """Of any number of prompts: what an encoder holds of them meanwhile is many times what is kept."""
    parts = [prompts[start : start + _ENCODED_AT_ONCE] for start in range(0, len(prompts), _ENCODED_AT_ONCE)]
    return Conditioning.cat([model.encode_prompts(part) for part in parts])


@torch.no_grad()
def _latents(model: DiffusionModel, images: Tensor) -> LatentDistribution:
    parts = [model.latent_distribution(part) for part in images.split(_ENCODED_AT_ONCE)]
    return LatentDistribution(torch.cat([part.mean for part in parts]), torch.cat([part.spread for part in parts]))


def numbered(prompts: Sequence[str]) -> tuple[list[str], Tensor]:
    """The distinct ones, in the order in which they come, and the number of each prompt among them."""
    numbers = {prompt: number for number, prompt in enumerate(dict.fromkeys(prompts))}
    return list(numbers), torch.tensor([numbers[prompt] for prompt in prompts])


def changes_text(changing: Collection[str]) -> bool:
    """Whether parameters of these names are in a text encoder."""
    return any(name.startswith("text_encoder") for name in changing)


def _epoch(prompts: tuple[str, ...], *, balance: bool) -> Tensor:
    if not balance:
        return torch.arange(len(prompts))
    most = max(Counter(prompts).values())
    of_prompt = {prompt: [i for i, other in enumerate(prompts) if other == prompt] for prompt in dict.fromkeys(prompts)}
    return torch.tensor([numbers[i % len(numbers)] for numbers in of_prompt.values() for i in range(most)])
