"""A reason not to trust a number."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

Severity = Literal["invalid", "caution", "note"]
About = Literal["sgr", "budget", "attack", "erasure", "others", "benign"]


@dataclass(frozen=True, kw_only=True)
class Flag:
    """A reason not to take a number at its face.

    invalid: the number does not mean what it is meant to; caution: it does, but not as much as it seems to; note:
    something was not measured.
    """

    code: str
    severity: Severity
    about: About
    """Which numbers it is shown beside."""
    message: str
    numbers: Mapping[str, float] = field(default_factory=dict)
    by_metric: Mapping[str, float] = field(default_factory=dict)
    """The same number for each metric concerned; empty if it concerns them all."""

    def concerns(self, metric: str) -> bool:
        return not self.by_metric or metric in self.by_metric
