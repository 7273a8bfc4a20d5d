"""Erase a concept from a text-to-image model, attack the result, immunize it, and report the evidence."""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from immunity.concepts import Concept, Examples
    from immunity.deltas import Delta, Provenance
    from immunity.errors import ImmunityError
    from immunity.loading import load
    from immunity.models import Conditioning, DiffusionModel
    from immunity.worlds import World

__all__ = [
    "Concept",
    "Conditioning",
    "Delta",
    "DiffusionModel",
    "Examples",
    "ImmunityError",
    "Provenance",
    "World",
    "load",
]

# Each name is fetched at its first use: `immunity --help` would otherwise wait for PyTorch.
_HOMES = {
    "Concept": "concepts",
    "Conditioning": "models",
    "Delta": "deltas",
    "DiffusionModel": "models",
    "Examples": "concepts",
    "ImmunityError": "errors",
    "Provenance": "deltas",
    "World": "worlds",
    "load": "loading",
}


def __getattr__(name: str) -> object:
    if name in _HOMES:
        return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
