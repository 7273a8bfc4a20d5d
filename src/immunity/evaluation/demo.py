"""The whole story on the embedded world, small enough for a few minutes on two cores."""

from dataclasses import dataclass

from immunity.adaptations import Lora
from immunity.erasers import Uce
from immunity.evaluation.bench import spread_over
from immunity.evaluation.study import Sampler, Study
from immunity.evaluation.world_bench import WorldBench
from immunity.immunizers import Imma, RandomPerturbation
from immunity.worlds import World

HARMLESS = "pineapple"
"""Taught with and without the defence: of ten objects that the model never saw, the one that every attack teaches
by CLIP's part (`studies/learning.py`). What the control does not learn says nothing of the defence."""


@dataclass(frozen=True, kw_only=True)
class Budget:
    """What the demo spends.

    On the embedded model a forward pass costs about 1 GFLOP a picture and a step of training 3.1; a picture is drawn
    with two forward passes a step of the sampler. So `pictures` and `steps` below are what it takes, in all.
    """

    lessons: int = 12
    """Pictures for each of attack and defence, drawn by the base model."""
    pictures: int = 8
    """Pictures of each model at each point."""
    preserved: int = 50
    """Concepts that the eraser preserves. With all 200 the closed form has more constraints than the text has features
    (256), and leaves most of the concept where it was."""
    others: int = 6
    """Other concepts that are watched."""
    other_pictures: int = 2
    """Of each of them, before the attack."""
    sampler_steps: int = 8
    guidance: float = 2.0
    immunize_steps: int = 200
    """Half-steps of IMMA."""
    at: tuple[int, ...] = (10, 25, 60)
    """Steps of the attack after which pictures are drawn; it ends with the last."""
    batch: int = 4
    """Pictures a step of training."""
    harmless_steps: int = 120
    """Of teaching something harmless: what the model never saw takes longer, at a higher rate, than what was erased."""


def demo_study(concept: str, *, budget: Budget | None = None, bench: WorldBench | None = None) -> Study:
    """The study of `immunity demo`. `bench` is for a world that is elsewhere than in the package."""
    b = budget or Budget()
    near = b.others // 2
    bench = bench or WorldBench(
        lessons=b.lessons, neighbours=near, spread=b.others - near, other_pictures=b.other_pictures
    )
    world = bench.where()
    unseen = [each.name for each in world.concepts("object", "held_out")]
    return Study(
        title=f"Relearning {concept} on the world {world.name}",
        bench=bench,
        concepts=(concept,),
        seeds=(0,),
        # The one eraser that takes no time.
        eraser=Uce(anchor=(_instead(world, concept),), preserve=_others(world, concept, b.preserved)),
        attack=Lora(lr=1e-3, steps=b.at[-1], batch=b.batch),
        defences={"imma": Imma(steps=b.immunize_steps, outer_lr=1e-4)},
        baselines={"noise": RandomPerturbation(like="imma")},
        benign=(HARMLESS,) if HARMLESS in unseen else spread_over(unseen, 1),
        benign_attack=Lora(lr=3e-3, steps=b.harmless_steps, batch=b.batch),
        at=b.at,
        pictures=b.pictures,
        sampler=Sampler(steps=b.sampler_steps, guidance=b.guidance),
    )


def _instead(world: World, concept: str) -> str:
    """What it becomes: a house, or another of its kind. Towards nothing, church is still in some of its pictures."""
    others = _others(world, concept, 2**31)
    return "house" if "house" in others else others[0]


def _others(world: World, concept: str, count: int) -> tuple[str, ...]:
    """At most so many of the concept's kind, which stand for all that is to be kept."""
    is_style = world.concept(concept).kind == "style"
    known = world.concepts("style" if is_style else "object", "trained")
    return spread_over([each.name for each in known if each.name != concept], count)
