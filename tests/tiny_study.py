"""A whole study on the tiny world, in seconds, and an attacker who may kill the process in the middle of it."""

import os
import signal
import sys
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor

from immunity.adaptations import Lora
from immunity.erasers import Esd
from immunity.evaluation.study import Sampler, Study
from immunity.evaluation.world_bench import WorldBench
from immunity.immunizers import AscentOnly, Imma, RandomPerturbation


@dataclass(frozen=True, kw_only=True)
class Mortal(Lora):
    """A LoRA that counts its losses in a file, and kills the process (-9) at those that LETHAL names."""

    def loss(self, model, batch, generator) -> Tensor:
        if counter := os.environ.get("LOSSES_COUNTED_IN"):
            count = int(Path(counter).read_text() or 0) + 1
            Path(counter).write_text(str(count))
            if str(count) in os.environ["LETHAL"].split():
                os.kill(os.getpid(), signal.SIGKILL)
        return super().loss(model, batch, generator)


def bench(world: Path, **changes) -> WorldBench:
    return replace(WorldBench(folder=world, lessons=3, references=4, other_pictures=2, spread=2), **changes)


def study(world: Path, **changes) -> Study:
    made = Study(
        title="Relearning church on a toy",
        bench=bench(world),
        concepts=("church",),
        seeds=(0, 1),
        eraser=Esd(steps=2, lr=1e-3, sampler_steps=2),
        attack=Mortal(steps=4, lr=1e-2),
        defences={"imma": Imma(steps=4, outer_lr=1e-2)},
        baselines={
            "ascent": AscentOnly(steps=2, lr=1e-2),
            "noise": RandomPerturbation(like="imma"),
            "nothing": AscentOnly(steps=0),
        },
        benign=("dog face",),
        at=(2, 4),
        pictures=2,
        sampler=Sampler(steps=2, guidance=2.0),
    )
    return replace(made, **changes)


def short(world: Path, **changes) -> Study:
    """The least that is a study."""
    least = {"seeds": (0,), "baselines": {}, "benign": (), "attack": Lora(steps=2, lr=1e-2), "at": (2,), "eraser": None}
    return study(world, **(least | changes))


if __name__ == "__main__":
    # Each attempt is a process of its own, forked before PyTorch has done anything; so the libraries are loaded once.
    import diffusers
    import peft  # noqa: F401
    import transformers

    for name in ("AutoencoderKL", "DDIMScheduler", "StableDiffusionPipeline", "UNet2DConditionModel"):
        getattr(diffusers, name)
    for name in ("CLIPTextModel", "ResNetForImageClassification", "VisionTextDualEncoderModel", "MobileNetV1Model"):
        getattr(transformers, name)
    world, folder = map(Path, sys.argv[1:])
    attempts = 0
    while True:
        attempts += 1
        child = os.fork()
        if not child:
            study(world, seeds=(0,), baselines={}, benign=()).run(folder, every=1, progress=False)
            os._exit(0)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if status != -signal.SIGKILL:
            print(attempts)
            sys.exit(status)
