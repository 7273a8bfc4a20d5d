"""A set of adaptations as flags."""

import shlex
from dataclasses import dataclass
from typing import Any

from immunity import adaptations
from immunity.adaptations import Adaptation, AnyAdaptation
from immunity.cli.choices import read, subcommands
from immunity.errors import ImmunityError


@dataclass(frozen=True, kw_only=True)
class Mixture:
    """A set of adaptations, from which each cycle of the defence draws one."""

    of: tuple[str, ...]
    """The adaptations, each as on the command line and in quotes if it has flags: --of "lora --rank 16" dreambooth."""
    lr_factors: tuple[float, ...] = (1.0,)
    """Factors of their learning rates, one of which each cycle draws: 0.3 1 3."""
    ranks: tuple[int, ...] = ()
    """Ranks, one of which each cycle draws for those that have a rank; their own without."""

    def made(self) -> adaptations.Mixture:
        return adaptations.Mixture(
            of=tuple(_parsed(text) for text in self.of), lr_factors=self.lr_factors, ranks=self.ranks
        )


def _parsed(text: str) -> Adaptation:
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise ImmunityError(expected="an adaptation and its flags", got=f"{text!r} ({error})", remedy="lora") from error
    choice: Any = subcommands(AnyAdaptation)
    parsed: Adaptation = read(choice, words, prog="immunity immunize … --against mixture --of")
    return parsed
