"""Textual Inversion: nothing of the model is trained, only a new word for it."""

from contextlib import AbstractContextManager
from dataclasses import dataclass

from immunity.adaptations.attached import Attached
from immunity.adaptations.new_token import NewToken, new_rows
from immunity.models import DiffusionModel


@dataclass(frozen=True, kw_only=True)
class TextualInversion(NewToken):
    """Textual Inversion (Gal et al., ICLR 2023, arXiv 2208.01618): the vectors of one new word.

    Its result is a file that others load into the same model; no weight is changed. Rate, steps and clip are those of
    the IMMA paper's attack. There, as in the paper, the word begins at one for its kind: give that as `initialiser`.
    """

    lr: float = 5e-4
    """Learning rate, the highest where it varies."""
    steps: int = 2000
    """Training steps."""
    clip: float | None = None
    """Largest norm of the gradient; None for no limit."""
    captions: tuple[str, ...] = (
        "a photo of a {}",
        "a rendering of a {}",
        "a cropped photo of the {}",
        "the photo of a {}",
        "a close-up photo of a {}",
        "a bright photo of the {}",
        "a photo of one {}",
        "a good photo of a {}",
        "a depiction of a {}",
        "an illustration of a {}",
    )
    """What all pictures are called, in turn; {} is the word, and the noun after it. Without any, the pictures' own
    prompts, in which {} may stand too."""

    def attach(self, model: DiffusionModel, *, seed: int) -> AbstractContextManager[Attached]:
        return new_rows(model, self, seed=seed)
