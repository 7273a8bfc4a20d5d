"""Loss trajectories of every method that trains, on tiny models: a change that should not change results must not.

python -m tests.golden.trajectories          records them anew into losses.json, for a change that should
"""

import json
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

import torch

from immunity import Concept, DiffusionModel, Examples, Journal, load
from immunity.adaptations import (
    CustomDiffusion,
    Dreambooth,
    DreamboothLora,
    FullFinetuning,
    Lora,
    PeftAdapter,
    PivotalTuning,
    TextualInversion,
    adapt,
)
from immunity.adaptations.base import Adaptation
from immunity.erasers import Esd
from immunity.immunizers import AscentOnly, Imma

from tests import tiny

FILE = Path(__file__).with_name("losses.json")
STEPS = 6
FAMILIES: tuple[tiny.Family, ...] = ("sd1", "sd2v", "sdxl", "sd3", "flux")
LORA = Lora(lr=1e-2, batch=2, steps=STEPS)

ATTACKS: Mapping[str, Adaptation] = {
    "lora": LORA,
    "lora-snr-offset": Lora(lr=1e-2, batch=2, steps=STEPS, min_snr=5.0, noise_offset=0.05, times="low-noise"),
    "dreambooth": Dreambooth(lr=1e-3, batch=2, steps=STEPS),
    "dreambooth-lora": DreamboothLora(lr=1e-2, batch=2, steps=STEPS),
    "full": FullFinetuning(lr=1e-3, batch=2, steps=STEPS),
    "custom-diffusion": CustomDiffusion(lr=1e-3, batch=2, steps=STEPS),
    "textual-inversion": TextualInversion(lr=1e-1, batch=2, steps=STEPS),
    "pivotal": PivotalTuning(lr=1e-2, batch=2, steps=STEPS),
    "dora": PeftAdapter(kind="dora", lr=1e-2, batch=2, steps=STEPS),
}

Losses = list[float]


def _attack(adaptation: Adaptation) -> Callable[[DiffusionModel], Losses]:
    return lambda model: list(adapt(model, pictures(model), adaptation, seed=0).losses)


def _esd(model: DiffusionModel) -> Losses:
    return _watched(
        lambda journal: Esd(steps=STEPS, batch=2, lr=1e-3, sampler_steps=4)(
            model, [Concept(name="church")], seed=0, journal=journal
        )
    )


def _imma(method: Imma | AscentOnly) -> Callable[[DiffusionModel], Losses]:
    return lambda model: _watched(lambda journal: method(model, pictures(model), LORA, seed=0, journal=journal))


RUNS: Mapping[str, Callable[[DiffusionModel], Losses]] = {
    "esd": _esd,
    "imma": _imma(Imma(steps=STEPS, outer_lr=1e-3)),
    "imma-retention": _imma(
        Imma(steps=STEPS, outer_lr=1e-3, retention="denoising", retention_prompts=("cat",), retention_pictures=2)
    ),
    "ascent-only": _imma(AscentOnly(steps=STEPS, lr=1e-3)),
    **{name: _attack(adaptation) for name, adaptation in ATTACKS.items()},
}
CASES = [(family, run) for family in FAMILIES for run in (RUNS if family == "sd1" else ("esd", "imma", "lora"))]


def pictures(model: DiffusionModel) -> Examples:
    images = torch.rand(4, 3, model.resolution, model.resolution, generator=torch.Generator().manual_seed(0))
    return Examples(images, ("image of church",) * 4, tuple("abcd"))


def _watched(run: Callable[[Journal], object]) -> Losses:
    losses: Losses = []
    run(Journal(on_step=lambda _, result: losses.append(result.loss)))
    return losses


def main() -> None:
    with tempfile.TemporaryDirectory() as scratch:
        folders = tiny.Folders(Path(scratch))
        recorded = {f"{family} {run}": RUNS[run](load(folders[family])) for family, run in CASES}
    FILE.write_text(json.dumps(recorded, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
