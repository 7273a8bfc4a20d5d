"""What the methods' `__post_init__` ask of their fields."""

import dataclasses
from typing import TYPE_CHECKING

from immunity.errors import ImmunityError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance


def at_least(method: "DataclassInstance", bound: float, *fields: str) -> None:
    """Raises unless each of the named fields is a finite number ≥ `bound`; NaN is refused too."""
    for field in fields:
        value = getattr(method, field)
        if not value >= bound:
            _refuse(method, field, f"of at least {bound:g}")
        if value == float("inf"):
            _refuse(method, field, "that is finite")


def positive(method: "DataclassInstance", *fields: str) -> None:
    """Raises unless each of the named fields is a finite number > 0."""
    for field in fields:
        value = getattr(method, field)
        if not 0 < value < float("inf"):
            _refuse(method, field, "above 0")


def one_of(method: "DataclassInstance", field: str, allowed: tuple[str, ...]) -> None:
    if getattr(method, field) not in allowed:
        _refuse(method, field, f"among {', '.join(allowed)}")


def unused(method: "DataclassInstance", *fields: str, without: str) -> None:
    """Raises where one of the named fields was given another value than its default, and would be ignored."""
    for entry in dataclasses.fields(method):
        if entry.name in fields and getattr(method, entry.name) != entry.default:
            _refuse(method, entry.name, f"as it is by default, where it is not used ({without})")


def generator_seed(seed: int, *, count: int = 1) -> None:
    """Raises unless a generator takes `seed` and the `count` - 1 numbers after it."""
    if not 0 <= seed <= 2**63 - count:
        raise ImmunityError(expected="a seed from 0 to 2^63 − 1", got=str(seed), remedy="--seed 0")


def _refuse(method: "DataclassInstance", field: str, wanted: str) -> None:
    name = type(method).__name__
    default = next(entry.default for entry in dataclasses.fields(method) if entry.name == field)
    raise ImmunityError(
        expected=f"{field} {wanted}",
        got=f"{name}({field}={getattr(method, field)!r})",
        remedy="another value" if default is dataclasses.MISSING else f"the default, {field}={default!r}",
    )
