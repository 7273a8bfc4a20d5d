"""Relearning an erased concept by LoRA, with and without IMMA: ten objects and three styles, three seeds.

    immunity run studies/relearning.py --out runs/relearning
    immunity report runs/relearning/objects --out objects.html       (or .md; and the same of styles)

The same command in a second process shares the work; killed, it goes on where it was.

Erased with UCE. The attacker has 20 pictures that the base model drew, as in the paper (there 20 as well), and 60
steps of LoRA. IMMA is made against that attack on 20 other pictures. Beside it in the same table: ascent without an
attacker inside, with as many outer steps at the same rate, and a random change of the same norm, layer by layer.
Two harmless subjects, which the model never saw, are taught with and without the defence.

What it gave is in docs/results.md, which `python studies/publish.py` makes of the records.
"""

from immunity import Sampler, Study, World, WorldBench
from immunity.adaptations import Lora
from immunity.erasers import Uce
from immunity.evaluation.bench import spread_over
from immunity.immunizers import AscentOnly, Imma, RandomPerturbation

WORLD = World.open("emoji")
OBJECTS = WORLD.study_objects[:10]
STYLES = ("openmoji", "twemoji", "fluent")
HARMLESS = spread_over([each.name for each in WORLD.concepts("object", "held_out")], 2)

ATTACK = Lora(lr=1e-3, steps=60, batch=4)
IMMA = Imma(steps=300, outer_lr=1e-4)
"""The rate at which, on one object and one seed, the defence held and its neighbours did too."""


def study(title: str, concepts: tuple[str, ...], kind: str) -> Study:
    names = [each.name for each in WORLD.concepts(kind, "trained")]
    return Study(
        title=title,
        bench=WorldBench(lessons=20, neighbours=3, spread=5, other_pictures=2),
        concepts=concepts,
        eraser=Uce(preserve=tuple(names)),  # the concept itself is left out
        attack=ATTACK,
        defences={"imma": IMMA},
        baselines={
            "ascent": AscentOnly(steps=IMMA.steps // 2, lr=IMMA.outer_lr),
            "noise": RandomPerturbation(like="imma"),
        },
        benign=HARMLESS,
        at=(8, 15, 30, 60),
        sampler=Sampler(steps=12, guidance=4.0),
    )


studies = {
    "objects": study("Relearning objects by LoRA", OBJECTS, "object"),
    "styles": study("Relearning styles by LoRA", STYLES, "style"),
}
