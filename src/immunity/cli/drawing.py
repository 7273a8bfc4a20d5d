"""Pictures with a progress bar."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from immunity.errors import ImmunityError

if TYPE_CHECKING:
    from torch import Tensor

    from immunity.models import DiffusionModel


def draw(
    model: "DiffusionModel",
    prompts: Sequence[str],
    seeds: Sequence[int],
    *,
    label: str,
    steps: int,
    guidance: float,
    negative: str = "",
    batch: int = 8,
) -> "Tensor":
    """One picture a prompt; the bar shows once it has taken a few seconds."""
    from tqdm import tqdm

    if not math.isfinite(guidance):
        raise ImmunityError(expected="a finite guidance", got=str(guidance), remedy="--guidance 7.5")

    with tqdm(desc=label, unit="step", delay=3, leave=False) as bar:

        def report(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        return model.sample(
            prompts, seeds=seeds, steps=steps, guidance=guidance, negative=negative, batch=batch, progress=report
        )
