"""What every cell of a study is made with: the model, the judges, seeds, pictures, and where things are kept."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from immunity.concepts import Examples
from immunity.drawing import draw
from immunity.evaluation.bench import Panel, Purpose, ToDraw
from immunity.evaluation.store import Store
from immunity.models import DiffusionModel
from immunity.optimize import Journal, derived_seed
from immunity.pictures import in_eight_bits
from immunity.poisons import Poisoned
from immunity.records import CellKey

if TYPE_CHECKING:
    from immunity.evaluation.study import Study


def alone(key: CellKey, purpose: Purpose) -> bool:
    """Whether no defence has a claim on the pictures. It has on those of its own concept, whatever subject is taught:
    the model that a harmless subject meets is the one that the concept meets."""
    return purpose != "defence" and key.subject != key.concept


@dataclass(frozen=True, eq=False, kw_only=True)
class Laboratory:
    """A study with its model and judges in memory."""

    study: "Study"
    model: DiffusionModel
    """The base model, whenever no delta is applied."""
    panel: Panel
    store: Store
    every: int
    """Steps of training between two checkpoints."""
    progress: bool

    def seed(self, key: CellKey, *purpose: str | int) -> int:
        """The arm is not in it: that is what pairs the arms."""
        return derived_seed(self.study.seed, key.concept, key.seed, *purpose)

    def picture_seeds(self, key: CellKey, use: str, count: int) -> tuple[int, ...]:
        # Short enough to be typed by who wants to see the picture again.
        return tuple(self.seed(key, use, key.subject, i) % 2**32 for i in range(count))

    def journal(self, work: Path, label: str) -> Journal:
        return Journal(folder=work, every=self.every, label=label if self.progress else "")

    def draw(self, prompts: Sequence[str], seeds: Sequence[int], label: str) -> Tensor:
        """What the model as it stands makes of the prompts, as picture files would hold it."""
        sampler = self.study.sampler
        images = draw(
            self.model,
            prompts,
            seeds,
            label=f"{label}: draw" if self.progress else "",
            steps=sampler.steps,
            guidance=sampler.guidance,
            batch=sampler.batch,
        )
        return in_eight_bits(images)

    def pictures(self, key: CellKey, purpose: Purpose) -> Examples:
        """What the attack on the subject or the defence of the concept learns from, or results are compared with.

        Call it while no delta is applied: what is drawn, the base model draws. References are the same for all seeds.
        """
        name = key.concept if purpose == "defence" else key.subject
        seed = 0 if purpose == "reference" else key.seed
        source = self.panel.pictures(
            name,
            purpose,
            seed=derived_seed(self.study.seed, name, seed, "split"),
            alone=alone(key, purpose),
        )
        if not isinstance(source, ToDraw):
            return dataclasses.replace(source, name=name)
        prompts = source.prompts
        seeds = [derived_seed(self.study.seed, name, seed, purpose, i) % 2**32 for i in range(len(prompts))]

        def make(_: Path) -> Examples:
            assert not self.model.parents, "only the base model teaches"
            images = self.draw(prompts, seeds, f"{name}: pictures for {purpose}")
            captions = prompts if source.captions is None else source.captions
            return Examples(images, captions, tuple(f"{self.model.name}, seed {each}" for each in seeds))

        recipe = {
            "base": self.model.base_hash,
            "dtype": self.study.dtype,
            "prompts": prompts,
            "seeds": seeds,
            "sampler": dataclasses.asdict(self.study.sampler),
        }
        if source.captions is not None:
            recipe["captions"] = source.captions
        made = self.store.pictures(f"{name}-{seed}-{purpose}", recipe, size=self.model.resolution, make=make)
        return dataclasses.replace(made, name=name)

    def poisoned(self, key: CellKey, method: Poisoned, examples: Examples) -> Examples:
        """What the attacker learns from, of the pictures that they came by.

        Call it while the model is the one that they attack: whoever poisons the pictures knows it.
        """
        seed = self.seed(key, "poison")
        chosen = method.chosen(examples, seed=seed)
        if not chosen:
            return method.among(examples, chosen, examples.images[:0])
        recipe = {
            "base": self.model.base_hash,
            "dtype": self.study.dtype,
            "parents": self.model.parents,
            "poison": method.by.described(),
            "examples": examples.take(chosen).digest(),
            "seed": seed,
        }

        def make(work: Path) -> Examples:
            journal = self.journal(work, f"{key.concept} {key.seed}: poison")
            return method.by(self.model, examples.take(chosen), seed=seed, journal=journal)

        name = f"{key.subject}-{key.seed}-{type(method.by).__name__}"
        made = self.store.pictures(name, recipe, size=self.model.resolution, make=make)
        return method.among(examples, chosen, made.images)
