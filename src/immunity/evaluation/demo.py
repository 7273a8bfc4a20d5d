"""The whole story on the embedded world, small enough for a few minutes on two cores."""

from dataclasses import dataclass

from immunity.adaptations import Lora
from immunity.erasers import Esd
from immunity.evaluation.study import Sampler, Study
from immunity.evaluation.world_bench import WorldBench
from immunity.immunizers import Imma, RandomPerturbation


@dataclass(frozen=True, kw_only=True)
class Budget:
    """What the demo spends, in pictures and steps.

    On the embedded model a forward pass costs about 1 GFLOP a picture, a step of training 3.1 and a picture drawn two
    forward passes a step of the sampler.
    """

    lessons: int = 16
    """Pictures for each of attack and defence."""
    pictures: int = 8
    """Pictures drawn at each point."""
    sampler_steps: int = 12
    other_concepts: int = 6
    other_pictures: int = 2
    """Of each of them."""
    erase_steps: int = 60
    immunize_steps: int = 200
    attack_steps: int = 80
    at: tuple[int, ...] = (10, 20, 40, 80)
    batch: int = 4
    """Pictures a step of training."""
    guidance: float = 4.0


def demo_study(concept: str, *, budget: Budget | None = None, bench: WorldBench | None = None) -> Study:
    """The study of `immunity demo`. `bench` is for a world that is elsewhere."""
    b = budget or Budget()
    bench = bench or WorldBench(
        lessons=b.lessons,
        neighbours=b.other_concepts // 2,
        spread=b.other_concepts - b.other_concepts // 2,
        other_pictures=b.other_pictures,
    )
    return Study(
        title=f"Relearning {concept} on the world {bench.where().name}",
        bench=bench,
        concepts=(concept,),
        seeds=(0,),
        eraser=Esd(lr=1e-4, eta=2.0, steps=b.erase_steps, batch=b.batch, sampler_steps=10, states_per_run=10),
        attack=Lora(lr=1e-3, steps=b.attack_steps, batch=b.batch),
        defences={"imma": Imma(steps=b.immunize_steps, outer_lr=1e-4)},
        baselines={"noise": RandomPerturbation(like="imma")},
        at=b.at,
        pictures=b.pictures,
        sampler=Sampler(steps=b.sampler_steps, guidance=b.guidance),
    )
