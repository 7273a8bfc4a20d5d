"""Pivotal tuning: a new word and LoRA, trained together."""

from contextlib import AbstractContextManager
from dataclasses import dataclass

from immunity.adaptations.attached import Attached, together
from immunity.adaptations.lora import LowRank
from immunity.adaptations.new_token import NewToken, new_rows
from immunity.checks import at_least
from immunity.errors import ImmunityError
from immunity.models import DiffusionModel


@dataclass(frozen=True, kw_only=True)
class PivotalTuning(NewToken, LowRank):
    """Textual Inversion with LoRA: a word that lies near the subject, and weights that give way to it.

    After Roich et al. (ACM TOG 2022, arXiv 2106.05744), who did it in turn, for GANs; fine-tuners of diffusion models
    train both at once.
    """

    token_lr: float = 5e-4
    """Learning rate of the word; `lr` is LoRA's. Whatever scales that one, as `Imma.inner_lr` does, scales this too."""

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self, 0, "token_lr")
        if not self.lr:
            raise ImmunityError(
                expected="a learning rate for LoRA, of which the word's is a multiple",
                got="lr=0",
                remedy="Textual Inversion, which trains the word alone",
            )

    def attach(self, model: DiffusionModel, *, seed: int) -> AbstractContextManager[Attached]:
        parts = {"token": new_rows(model, self, seed=seed), "lora": super().attach(model, seed=seed)}
        return together(seed, parts, {"token": self.token_lr / self.lr})
