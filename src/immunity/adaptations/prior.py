"""Prior preservation (Ruiz et al., 2023): pictures of the subject's class, made by the model itself, keep the rest."""

import dataclasses
import hashlib
from abc import ABC
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from immunity import processes
from immunity.adaptations.base import Adaptation
from immunity.adaptations.batches import Batch, Batches, changes_text
from immunity.atomic import load_tensors, save_tensors
from immunity.checks import at_least, unused
from immunity.concepts import Examples
from immunity.drawing import draw
from immunity.errors import ImmunityError
from immunity.models import DiffusionModel
from immunity.optimize import Journal, derived_seed, identity
from immunity.pictures import to_bytes

_AT_ONCE = 8  # pictures, which are lost at most where a run is killed


@dataclass(frozen=True, kw_only=True)
class PriorPreservation(Adaptation, ABC):
    """An adaptation that can pay for losing the class of its subject."""

    class_prompt: str | None = None
    """What pictures of the class are drawn from, by the model before it is adapted: "a photo of a church"."""
    prior_pictures: int = 0
    """How many of them, made once; 0 for no prior preservation."""
    prior_weight: float = 1.0
    """Of their loss, relative to that of the subject's pictures."""
    prior_steps: int = 25
    """Denoising steps for each."""
    prior_guidance: float = 7.5
    """Weight of the class prompt against no prompt in drawing them."""

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self, 0, "prior_pictures", "prior_weight")
        at_least(self, 1, "prior_steps")
        if self.prior_pictures and not self.class_prompt:
            raise ImmunityError(
                expected="a class prompt for prior preservation",
                got=f"prior_pictures={self.prior_pictures} without one",
                remedy='class_prompt="a photo of a church" (--class-prompt), or prior_pictures=0',
            )
        if self.class_prompt is not None and not self.prior_pictures:
            raise ImmunityError(
                expected="pictures of the class for prior preservation",
                got=f"class_prompt={self.class_prompt!r} with prior_pictures=0",
                remedy="prior_pictures=100 (--prior-pictures), or no class prompt",
            )
        if not self.prior_pictures:
            unused(self, "prior_weight", "prior_steps", "prior_guidance", without="with prior_pictures=0")

    def prepare(
        self,
        model: DiffusionModel,
        examples: Examples,
        *,
        changing: Collection[str] = (),
        journal: Journal | None = None,
    ) -> Batches:
        batches = super().prepare(model, examples, changing=changing, journal=journal)
        if not self.prior_pictures:
            return batches
        cache_prompts = not (self.trains_text(model) or changes_text(changing))
        pictures = self._class_pictures(model, journal or Journal())
        prior = Batches.encode(model, pictures, mirror=self.mirror, cache_prompts=cache_prompts)
        return dataclasses.replace(batches, prior=prior)

    def draw(self, batches: Batches, number: int, *, seed: int, generator: torch.Generator) -> Batch:
        batch = super().draw(batches, number, seed=seed, generator=generator)
        if batches.prior is None:
            return batch
        prior = super().draw(batches.prior, number, seed=derived_seed(seed, "prior"), generator=generator)
        return dataclasses.replace(batch, prior=prior)

    def loss(self, model: DiffusionModel, batch: Batch, generator: torch.Generator) -> Tensor:
        """Of the subject's pictures, and of the batch's prior where it has one."""
        subject = super().loss(model, batch, generator)
        if batch.prior is None:
            return subject
        return subject + self.prior_weight * super().loss(model, batch.prior, generator)

    def _class_pictures(self, model: DiffusionModel, journal: Journal) -> Examples:
        """The same for the same model, whoever asks: the adaptation's own seed has no part in them.

        They are kept as they are made, and those that are there are not made again.
        """
        assert self.class_prompt is not None
        count = self.prior_pictures
        file = None if journal.folder is None else journal.folder / f"class-{self._key(model)}.safetensors"
        kept = None
        if file is not None:
            # All processes must find the same, as a model that is split draws with all of them or not at all. So they
            # look once the first has written what was drawn last, and have looked before it writes again.
            processes.wait()
            kept = _read(file)
            processes.wait()
        made = [] if kept is None else [kept]
        for first in range(0 if kept is None else len(kept), count, _AT_ONCE):
            numbers = range(first, min(first + _AT_ONCE, count))
            drawn = draw(
                model,
                (self.class_prompt,) * len(numbers),
                [derived_seed(0, "class pictures", number) % 2**32 for number in numbers],
                label=journal.label and f"{journal.label}: class pictures {numbers[-1] + 1}/{count}",
                steps=self.prior_steps,
                guidance=self.prior_guidance,
                batch=_AT_ONCE,
            )
            made.append(to_bytes(drawn).contiguous())  # as they are read back: kernels round by a tensor's layout
            if file is not None:
                save_tensors(file, {"images": torch.cat(made)}, {}, force=True)
        prompts = (self.class_prompt,) * count
        return Examples(torch.cat(made).float() / 255, prompts, ("made by the model",) * count)

    def _key(self, model: DiffusionModel) -> str:
        """Of the file of these pictures: all that they depend on."""
        what = {
            "model": [model.base_hash, *model.parents, str(model.dtype)],
            "prompt": self.class_prompt,
            "drawn": [self.prior_pictures, self.prior_steps, self.prior_guidance],
        }
        return hashlib.sha256(identity(what).encode()).hexdigest()[:16]


def _read(file: Path) -> Tensor | None:
    """The pictures in it; None if it is not there, or damaged."""
    try:
        kept, _ = load_tensors(file, expected="class pictures", remedy="removing it")
    except ImmunityError:
        return None  # made anew
    return kept.get("images")
