"""Ways to teach a model something, as an attacker or an honest user would: one file each."""

from immunity.adaptations.base import Adaptation, Attached, AttackResult, adapt, denoising_loss
from immunity.adaptations.batches import Batch, Batches
from immunity.adaptations.lora import Lora

AnyAdaptation = Lora  # a union as soon as there are two

__all__ = [
    "Adaptation",
    "AnyAdaptation",
    "Attached",
    "AttackResult",
    "Batch",
    "Batches",
    "Lora",
    "adapt",
    "denoising_loss",
]
