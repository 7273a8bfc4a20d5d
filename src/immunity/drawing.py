"""Drawing pictures while somebody waits for them."""

import math
from collections.abc import Sequence

from torch import Tensor

from immunity import processes
from immunity.errors import ImmunityError
from immunity.models import DiffusionModel


def draw(
    model: DiffusionModel,
    prompts: Sequence[str],
    seeds: Sequence[int],
    *,
    label: str,
    steps: int = 25,
    guidance: float = 7.5,
    negative: str = "",
    batch: int = 8,
) -> Tensor:
    """One picture a prompt, as `model.sample` has it. Once it has taken a few seconds a bar shows on stderr; none
    without a label."""
    from tqdm import tqdm

    if not math.isfinite(guidance):
        raise ImmunityError(expected="a finite guidance", got=str(guidance), remedy="--guidance 7.5")
    hidden = not label or not processes.is_first()
    with tqdm(desc=label, unit="step", delay=3, leave=False, disable=hidden) as bar:

        def report(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        return model.sample(
            prompts, seeds=seeds, steps=steps, guidance=guidance, negative=negative, batch=batch, progress=report
        )
