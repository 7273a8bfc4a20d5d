"""ASPL, the poison of Anti-DreamBooth: pictures on which a model fails that is being taught with them."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from immunity.adaptations import AnyAdaptation, Batches, Dreambooth
from immunity.adaptations.base import described
from immunity.checks import at_least
from immunity.concepts import Examples
from immunity.deltas import Provenance
from immunity.models import DiffusionModel, thawed
from immunity.optimize import Journal, Kept, derived_seed
from immunity.poisons.base import Poison
from immunity.stepping import Stepper, StepResult


@dataclass(frozen=True, kw_only=True)
class Aspl(Poison):
    """Alternating surrogate and perturbation learning (Anti-DreamBooth, Le et al., ICCV 2023, arXiv 2303.15433).

    A round: φ learns from the clean pictures for a few steps; the pictures climb its loss, as they are by now; φ goes
    back to where it was, and learns from the poisoned pictures for as many steps. Each time its optimizer begins anew.
    """

    surrogate: AnyAdaptation = field(default_factory=Dreambooth)
    """The adaptation that shall fail, which takes the part of the attacker's."""
    rounds: int = 50
    """How often all of that is done."""
    surrogate_steps: int = 3
    """Of φ, on clean and on poisoned pictures each."""
    steps: int = 6
    """Of each picture in a round."""

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self, 0, "rounds", "surrogate_steps", "steps")

    def described(self) -> dict[str, object]:
        return super().described() | {"surrogate": described(self.surrogate)}

    def __call__(
        self, model: DiffusionModel, examples: Examples, *, seed: int, journal: Journal | None = None
    ) -> Examples:
        journal = journal or Journal()
        pictures = self._begin(model, examples)
        inputs = {"examples": examples.digest(), "surrogate": described(self.surrogate)}
        provenance = Provenance.of(self, model, seed=seed, inputs=inputs)
        attack = self.surrogate
        clean = attack.prepare(model, examples, journal=journal)
        order = derived_seed(seed, "pictures")

        with attack.attach(model, seed=derived_seed(seed, "φ")) as phi:
            descent = attack.descent(self.surrogate_steps)

            def learn(batches: Batches, number: int, generator: torch.Generator) -> None:
                surrogate = Stepper(phi.parameters(), descent, clip=attack.clip, lr_factors=phi.lr_factors())
                with thawed(phi.parameters()):
                    for step in range(number * self.surrogate_steps, (number + 1) * self.surrogate_steps):
                        surrogate.step(attack.losses(model, batches, step, seed=order, generator=generator))

            def climb(generator: torch.Generator) -> StepResult:
                def loss(images: Tensor, numbers: Tensor) -> Tensor:
                    latents = model.encode_images(images, generator)
                    return attack.loss(model, clean.captioned(latents, numbers, generator), generator)

                result = StepResult(0.0, 0.0)
                for _ in range(self.steps):
                    result = pictures.ascend(loss)
                return result

            def play(number: int, generator: torch.Generator) -> StepResult:
                before = phi.state_dict()
                learn(clean, number, generator)
                result = climb(generator)
                phi.load_state_dict(before)
                learn(clean.showing(model, pictures.images), number, generator)
                return result

            levels: dict[str, Kept] = {"surrogate": phi, "pictures": pictures}
            each = 2 * self.surrogate_steps + self.steps
            journal.loop(levels, provenance, steps=self.rounds, seed=seed, of=max(1, each)).run(play)
        return pictures.of(examples)
