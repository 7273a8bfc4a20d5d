"""DreamBooth with LoRA in place of whole weights."""

from dataclasses import dataclass

from immunity.adaptations.lora import LowRank
from immunity.adaptations.prior import PriorPreservation
from immunity.adaptations.words import Named


@dataclass(frozen=True, kw_only=True)
class DreamboothLora(Named, PriorPreservation, LowRank):
    """DreamBooth's rare word and prior preservation (Ruiz et al., CVPR 2023), with LoRA on attention projections.

    As for DreamBooth, the class follows the rare word in the papers: give it as `noun`.
    """

    steps: int = 500
    """Training steps."""
