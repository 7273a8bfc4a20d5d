"""Making the models that a study compares: each delta once, however many cells need it."""

import dataclasses
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

from immunity.adaptations.base import described
from immunity.concepts import Examples
from immunity.deltas import Delta
from immunity.erasers import AnyEraser
from immunity.evaluation.laboratory import Laboratory
from immunity.evaluation.store import Recipe
from immunity.immunizers import AnyImmunizer, RandomPerturbation
from immunity.poisons import Poisoned
from immunity.records import CellKey, Role


def change(
    laboratory: Laboratory, key: CellKey, role: Role, defence: Examples | None, until: ExitStack
) -> dict[str, str]:
    """Turns the base model into the cell's, until `until` ends; gives the hash of each delta by what it does.

    `defence`: the pictures that it is immunized with, if it is.
    """
    hashes: dict[str, str] = {}
    if role != "base" and laboratory.study.eraser is not None:
        hashes["erase"] = _apply(laboratory, _erased(laboratory, key, laboratory.study.eraser), until)
    if defence is not None:
        hashes["immunize"] = _apply(laboratory, _immunized(laboratory, key, key.arm, defence), until)
    return hashes


def _apply(laboratory: Laboratory, delta: Delta, until: ExitStack) -> str:
    until.enter_context(delta.applied(laboratory.model))
    return delta.hash


def _erased(laboratory: Laboratory, key: CellKey, eraser: AnyEraser) -> Delta:
    """For the base model, which the model is when this is called."""
    concept, seed = laboratory.panel.concept(key.concept), laboratory.seed(key, "erase")

    def make(work: Path) -> Delta:
        journal = laboratory.journal(work, f"{key.concept} {key.seed}: erase")
        return eraser(laboratory.model, [concept], seed=seed, journal=journal)

    recipe = _recipe(laboratory, eraser, seed) | {"concept": dataclasses.asdict(concept)}
    return laboratory.store.delta("erase", recipe, make)


class _Known(NamedTuple):
    """Where a delta is, or will be."""

    path: Path
    recipe: Recipe


def _immunized(laboratory: Laboratory, key: CellKey, arm: str, examples: Examples) -> Delta:
    """For the erased model, which the model is when this is called."""
    method = _immunizer(laboratory, arm)
    path, recipe = _where(laboratory, key, arm, examples)
    if not path.exists() and isinstance(method, RandomPerturbation) and method.like is not None:
        _immunized(laboratory, key, method.like, examples)
        method = dataclasses.replace(method, like=str(_where(laboratory, key, method.like, examples).path))

    def make(work: Path) -> Delta:
        journal = laboratory.journal(work, f"{key.concept} {key.seed}: {arm}")
        seed = laboratory.seed(key, "immunize")
        if isinstance(method, AnyEraser):
            return method(laboratory.model, [laboratory.panel.concept(key.concept)], seed=seed, journal=journal)
        return method(laboratory.model, examples, laboratory.study.foreseen(arm), seed=seed, journal=journal)

    return laboratory.store.delta(arm, recipe, make)


def _immunizer(laboratory: Laboratory, arm: str) -> AnyImmunizer | AnyEraser:
    method = laboratory.study.method(arm)
    assert not isinstance(method, Poisoned), "it changes pictures, and no model"
    return method


def _where(laboratory: Laboratory, key: CellKey, arm: str, examples: Examples) -> _Known:
    method = _immunizer(laboratory, arm)
    recipe = _recipe(laboratory, method, laboratory.seed(key, "immunize"))
    if isinstance(method, AnyEraser):  # which reads words, and neither pictures nor what is expected
        recipe |= {"concept": dataclasses.asdict(laboratory.panel.concept(key.concept))}
    else:
        recipe |= {"examples": examples.digest(), "against": described(laboratory.study.foreseen(arm))}
    if isinstance(method, RandomPerturbation) and method.like is not None:
        # The name of an arm is not enough: it could be another method in another version of the study.
        recipe["like"] = _where(laboratory, key, method.like, examples).recipe
    return _Known(laboratory.store.delta_path(arm, recipe), recipe)


def _recipe(laboratory: Laboratory, method: AnyEraser | AnyImmunizer, seed: int) -> dict[str, object]:
    return {
        "base": laboratory.model.base_hash,
        "dtype": laboratory.study.dtype,
        "parents": laboratory.model.parents,
        "method": type(method).__name__,
        "fields": dataclasses.asdict(method),
        "seed": seed,
    }
