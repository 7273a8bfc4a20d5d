"""The adaptations that a defence expects, as it plays against them."""

from collections.abc import Collection, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from immunity.adaptations import Adaptation, Attached, Batches, Foreseen, Mixture
from immunity.adaptations.mixture import Drawn
from immunity.concepts import Examples
from immunity.models import DiffusionModel
from immunity.optimize import Journal, derived_seed
from immunity.stepping import Stepper


@dataclass(frozen=True, eq=False)
class Opponent:
    """An adaptation with its φ attached to the model."""

    adaptation: Adaptation
    batches: Batches
    phi: Attached
    stepper: Stepper
    """Takes its steps."""
    lr_factor: float
    """Of its learning rate, this time."""


class Opponents:
    """One of them at a time is attached. Its φ and moments carry over from its last turn to its next."""

    def __init__(
        self,
        model: DiffusionModel,
        examples: Examples,
        against: Foreseen,
        *,
        changing: Collection[str],
        seed: int,
        turns: int = 0,
        steps: int = 1,
        lr: float | None = None,
        reinitialise_every: int = 0,
        journal: Journal | None = None,
    ) -> None:
        """`changing` names the parameters of θ that change meanwhile. `turns`, each of so many `steps` of φ, is the
        length of the schedules of learning rates: a member's own turns are counted among them. `lr` is one in place of
        their own; `reinitialise_every`: turns after which φ and its optimizer begin anew, 0 for never; `journal`: see
        `Adaptation.prepare`.
        """
        self._model, self._seed, self._lr = model, seed, lr
        self._turns, self._steps, self._every = turns, steps, reinitialise_every
        self._mixture = against if isinstance(against, Mixture) else Mixture(of=(against,))
        self._members = self._mixture.members()
        self._batches = [one.prepare(model, examples, changing=changing, journal=journal) for one in self._members]
        self._attached = ExitStack()
        self._present: Opponent | None = None
        self._number = -1
        self._generation = 0
        self._states: dict[int, dict[str, Tensor]] = {}

    def __enter__(self) -> "Opponents":
        return self

    def __exit__(self, *_: object) -> None:
        self._attached.close()
        self._present = None

    def choose(self, turn: int) -> Opponent:
        """The opponent of that turn, attached; the last one is put away."""
        generation = turn - turn % self._every if self._every else 0
        number, adaptation, factor = self._draw(turn)
        if generation != self._generation:
            self._attached.close()
            self._present, self._generation, self._states = None, generation, {}
        if self._present is None or self._number != number:
            self._put_away()
            self._present = self._attach(number, adaptation)
            self._number = number
        if self._present.lr_factor != factor:
            self._present = replace(self._present, lr_factor=factor)
        return self._present

    def _draw(self, turn: int) -> Drawn:
        return self._mixture.draw(turn, seed=derived_seed(self._seed, "mixture"))

    def _put_away(self) -> None:
        if self._present is not None:
            self._states[self._number] = self._present.stepper.state_dict()
            self._present = None
        self._attached.close()

    def _attach(self, number: int, adaptation: Adaptation) -> Opponent:
        words = ("φ", self._generation, number) if number else ("φ", self._generation)
        phi = self._attached.enter_context(adaptation.attach(self._model, seed=derived_seed(self._seed, *words)))
        turns = range(self._generation, self._generation + self._turns)
        descent = adaptation.descent(self._steps * sum(self._draw(turn).number == number for turn in turns))
        if self._lr is not None:
            descent = replace(descent, lr=self._lr)
        stepper = Stepper(phi.parameters(), descent, clip=adaptation.clip, lr_factors=phi.lr_factors())
        if number in self._states:
            stepper.load_state_dict(self._states.pop(number))
        return Opponent(adaptation, self._batches[number], phi, stepper, 1.0)

    def state_dict(self) -> dict[str, Tensor]:
        """φ and moments of all who had a turn."""
        states = dict(self._states)
        if self._present is not None:
            states[self._number] = self._present.stepper.state_dict()
        kept = {f"{number}/{key}": value for number, state in states.items() for key, value in state.items()}
        return {"generation": torch.tensor(self._generation), **kept}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        self.__exit__()
        self._generation, self._states = int(state["generation"]), {}
        for key, value in state.items():
            if "/" in key:
                number, name = key.split("/", 1)
                self._states.setdefault(int(number), {})[name] = value
