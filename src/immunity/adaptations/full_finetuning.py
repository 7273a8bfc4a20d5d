"""Full fine-tuning: every weight of the denoiser, on the model's own training loss."""

from dataclasses import dataclass

from immunity.adaptations.additive import FullRank


@dataclass(frozen=True, kw_only=True)
class FullFinetuning(FullRank):
    """Fine-tuning of all weights, or a group of them, on pictures with their own prompts."""

    lr: float = 1e-5
    """Learning rate, the highest where it varies."""
