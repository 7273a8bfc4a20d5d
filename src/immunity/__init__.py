"""Erase a concept from a text-to-image model, attack the result, immunize it, and report the evidence."""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from immunity.adaptations import AttackResult, Lora, adapt
    from immunity.concepts import Concept, Examples
    from immunity.deltas import Delta, Provenance
    from immunity.erasers import Esd, Uce
    from immunity.errors import ImmunityError
    from immunity.immunizers import AscentOnly, Imma, RandomPerturbation
    from immunity.loading import load
    from immunity.models import Conditioning, DiffusionModel
    from immunity.optimize import Journal
    from immunity.worlds import World

__all__ = [
    "AscentOnly",
    "AttackResult",
    "Concept",
    "Conditioning",
    "Delta",
    "DiffusionModel",
    "Esd",
    "Examples",
    "Imma",
    "ImmunityError",
    "Journal",
    "Lora",
    "Provenance",
    "RandomPerturbation",
    "Uce",
    "World",
    "adapt",
    "load",
]

# Each name is fetched at its first use: `immunity --help` would otherwise wait for PyTorch.
_HOMES = {
    "AscentOnly": "immunizers",
    "AttackResult": "adaptations",
    "Concept": "concepts",
    "Conditioning": "models",
    "Delta": "deltas",
    "DiffusionModel": "models",
    "Esd": "erasers",
    "Examples": "concepts",
    "Imma": "immunizers",
    "ImmunityError": "errors",
    "Journal": "optimize",
    "Lora": "adaptations",
    "Provenance": "deltas",
    "RandomPerturbation": "immunizers",
    "Uce": "erasers",
    "World": "worlds",
    "adapt": "adaptations",
    "load": "loading",
}


def __getattr__(name: str) -> object:
    if name in _HOMES:
        return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
