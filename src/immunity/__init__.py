"""Erase a concept from a text-to-image model, attack the result, immunize it, and report the evidence."""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from immunity.adaptations import (
        AttackResult,
        CustomDiffusion,
        Dreambooth,
        DreamboothLora,
        FullFinetuning,
        Lora,
        Mixture,
        PeftAdapter,
        PivotalTuning,
        TextualInversion,
        adapt,
    )
    from immunity.concepts import Concept, Examples
    from immunity.deltas import Delta, Provenance
    from immunity.erasers import Esd, Uce
    from immunity.errors import ImmunityError
    from immunity.evaluation.folder_bench import FolderBench, Subject
    from immunity.evaluation.study import Sampler, Study
    from immunity.evaluation.world_bench import WorldBench
    from immunity.immunizers import AscentOnly, Imma, RandomPerturbation
    from immunity.loading import load
    from immunity.models import Conditioning, DiffusionModel
    from immunity.optimize import Journal
    from immunity.poisons import Advdm, Aspl, EncoderAttack, Poisoned, RandomNoise
    from immunity.report.page import write_report
    from immunity.worlds import World

__all__ = [
    "Advdm",
    "AscentOnly",
    "Aspl",
    "AttackResult",
    "Concept",
    "Conditioning",
    "CustomDiffusion",
    "Delta",
    "DiffusionModel",
    "Dreambooth",
    "DreamboothLora",
    "EncoderAttack",
    "Esd",
    "Examples",
    "FolderBench",
    "FullFinetuning",
    "Imma",
    "ImmunityError",
    "Journal",
    "Lora",
    "Mixture",
    "PeftAdapter",
    "PivotalTuning",
    "Poisoned",
    "Provenance",
    "RandomNoise",
    "RandomPerturbation",
    "Sampler",
    "Study",
    "Subject",
    "TextualInversion",
    "Uce",
    "World",
    "WorldBench",
    "adapt",
    "load",
    "write_report",
]

# Each name is fetched at its first use: `immunity --help` would otherwise wait for PyTorch.
_HOMES = {
    "Advdm": "poisons",
    "AscentOnly": "immunizers",
    "Aspl": "poisons",
    "AttackResult": "adaptations",
    "Concept": "concepts",
    "Conditioning": "models",
    "CustomDiffusion": "adaptations",
    "Delta": "deltas",
    "DiffusionModel": "models",
    "Dreambooth": "adaptations",
    "DreamboothLora": "adaptations",
    "EncoderAttack": "poisons",
    "Esd": "erasers",
    "Examples": "concepts",
    "FolderBench": "evaluation.folder_bench",
    "FullFinetuning": "adaptations",
    "Imma": "immunizers",
    "ImmunityError": "errors",
    "Journal": "optimize",
    "Lora": "adaptations",
    "Mixture": "adaptations",
    "PeftAdapter": "adaptations",
    "PivotalTuning": "adaptations",
    "Poisoned": "poisons",
    "Provenance": "deltas",
    "RandomNoise": "poisons",
    "RandomPerturbation": "immunizers",
    "Sampler": "evaluation.study",
    "Study": "evaluation.study",
    "Subject": "evaluation.folder_bench",
    "TextualInversion": "adaptations",
    "Uce": "erasers",
    "World": "worlds",
    "WorldBench": "evaluation.world_bench",
    "adapt": "adaptations",
    "load": "loading",
    "write_report": "report.page",
}


def __getattr__(name: str) -> object:
    if name in _HOMES:
        return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
