"""DreamBooth: all weights of the denoiser learn one subject by a rare word."""

from dataclasses import dataclass

from immunity.adaptations.additive import FullRank
from immunity.adaptations.prior import PriorPreservation
from immunity.adaptations.words import Named


@dataclass(frozen=True, kw_only=True)
class Dreambooth(Named, PriorPreservation, FullRank):
    """DreamBooth (Ruiz et al., CVPR 2023, arXiv 2208.12242): full fine-tuning on a few pictures, called by a rare word.

    With prior preservation (class_prompt, prior_pictures) the loss is that of the subject's pictures plus that of
    pictures of its class, which the model makes once beforehand. Rate and steps are those of the IMMA paper's attack.
    There, as in the paper, the class follows the rare word ("a photo of sks church"): give it as `noun`.
    """

    lr: float = 5e-6
    """Learning rate, the highest where it varies."""
    steps: int = 500
    """Training steps."""
