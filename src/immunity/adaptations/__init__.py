"""Ways to teach a model something, as an attacker or an honest user would: one file each."""

from immunity.adaptations.attached import Attached
from immunity.adaptations.base import Adaptation, AttackResult, adapt
from immunity.adaptations.batches import Batch, Batches
from immunity.adaptations.custom_diffusion import CustomDiffusion
from immunity.adaptations.denoising import denoising_loss
from immunity.adaptations.dreambooth import Dreambooth
from immunity.adaptations.dreambooth_lora import DreamboothLora
from immunity.adaptations.full_finetuning import FullFinetuning
from immunity.adaptations.lora import Lora
from immunity.adaptations.mixture import Mixture
from immunity.adaptations.peft_adapter import PeftAdapter
from immunity.adaptations.pivotal_tuning import PivotalTuning
from immunity.adaptations.textual_inversion import TextualInversion

AnyAdaptation = (
    Lora
    | Dreambooth
    | DreamboothLora
    | TextualInversion
    | CustomDiffusion
    | PivotalTuning
    | FullFinetuning
    | PeftAdapter
)

Foreseen = Adaptation | Mixture
"""What one may expect to be run."""

__all__ = [
    "Adaptation",
    "AnyAdaptation",
    "Attached",
    "AttackResult",
    "Batch",
    "Batches",
    "CustomDiffusion",
    "Dreambooth",
    "DreamboothLora",
    "Foreseen",
    "FullFinetuning",
    "Lora",
    "Mixture",
    "PeftAdapter",
    "PivotalTuning",
    "TextualInversion",
    "adapt",
    "denoising_loss",
]
