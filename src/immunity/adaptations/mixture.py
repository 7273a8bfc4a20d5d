"""Not knowing which adaptation it will be: a declared set of them, from which one is drawn again and again."""

import dataclasses
from dataclasses import dataclass
from typing import NamedTuple

from immunity.adaptations.base import Adaptation, described
from immunity.adaptations.peft_layers import LayerAdaptation
from immunity.errors import ImmunityError
from immunity.optimize import derived_seed


class Drawn(NamedTuple):
    """What a draw gives."""

    number: int
    """Of the member."""
    adaptation: Adaptation
    lr_factor: float


@dataclass(frozen=True, kw_only=True)
class Mixture:
    """Adaptations, each as likely as any other; and for each, learning rates and ranks, each as likely as any other."""

    of: tuple[Adaptation, ...]
    """The adaptations."""
    lr_factors: tuple[float, ...] = (1.0,)
    """Of an adaptation's own learning rate, as those of different kinds are far apart: 0.3, 1, 3."""
    ranks: tuple[int, ...] = ()
    """Of those that have a rank; their own without."""

    def __post_init__(self) -> None:
        if not self.of or not self.lr_factors:
            raise ImmunityError(
                expected="adaptations to draw from, and factors of their learning rates",
                got=f"{len(self.of)} and {len(self.lr_factors)}",
                remedy="Mixture(of=(Lora(), Dreambooth()))",
            )
        for factor in self.lr_factors:
            if not 0 < factor < float("inf"):
                raise ImmunityError(
                    expected="factors of the learning rate above 0",
                    got=str(factor),
                    remedy="lr_factors=(0.3, 1.0, 3.0)",
                )
        if self.ranks and not any(isinstance(one, LayerAdaptation) for one in self.of):
            raise ImmunityError(
                expected="ranks for adaptations some of which have one",
                got=f"ranks={self.ranks} for {', '.join(type(one).__name__ for one in self.of)}",
                remedy="leaving them out",
            )
        self.members()  # a rank that none of them can have is refused now

    def members(self) -> tuple[Adaptation, ...]:
        """Each has parameters of its own: one for each adaptation and rank."""
        return tuple(member for number in range(len(self.of)) for member in self._ranked(number))

    def _ranked(self, number: int) -> tuple[Adaptation, ...]:
        one = self.of[number]
        if not self.ranks or not isinstance(one, LayerAdaptation):
            return (one,)
        return tuple(dataclasses.replace(one, rank=rank) for rank in self.ranks)

    def draw(self, number: int, *, seed: int) -> Drawn:
        """The draw of that number, which follows from it and the seed alone."""
        chosen = derived_seed(seed, "member", number) % len(self.of)
        ranked = self._ranked(chosen)
        place = derived_seed(seed, "rank", number) % len(ranked)
        before = sum(len(self._ranked(other)) for other in range(chosen))
        factor = self.lr_factors[derived_seed(seed, "lr", number) % len(self.lr_factors)]
        return Drawn(before + place, ranked[place], factor)

    def described(self) -> dict[str, object]:
        """For the provenance of what was made with it in mind."""
        return {
            "method": type(self).__name__,
            "of": [described(one) for one in self.of],
            "lr_factors": list(self.lr_factors),
            "ranks": list(self.ranks),
        }
