"""Relearning an erased concept by LoRA, with and without IMMA: ten objects and three styles, three seeds.

    immunity run studies/relearning.py --out runs/relearning
    immunity report runs/relearning/objects --out objects.html       (or .md; and the same of styles)

The same command in a second process shares the work; killed, it goes on where it was.

Erased with UCE. The attacker has 20 pictures that the base model drew, as in the paper (there 20 as well), and 60
steps of LoRA. IMMA is made against that attack on 20 other pictures. Beside it in the same table: ascent without an
attacker inside, with as many outer steps at the same rate, and a random change of the same norm, layer by layer.
A harmless subject, which the model never saw, is taught with and without the defence.

What it gave is in docs/results.md, which `python studies/publish.py` makes of the records.
"""

from scale import ERASE_A_STYLE, ERASE_AN_OBJECT, IMMA, LORA, SAMPLER, WORLD

from immunity import AscentOnly, RandomPerturbation, Study, Uce, WorldBench
from immunity.evaluation.bench import spread_over

HARMLESS = spread_over([each.name for each in WORLD.concepts("object", "held_out")], 1)
# Of the eight, those that the judge recognises most often in what the base model draws.
STYLES_DRAWN_BEST = ("openmoji", "noto", "emojione v1")


def study(title: str, concepts: tuple[str, ...], eraser: Uce) -> Study:
    return Study(
        title=title,
        bench=WorldBench(lessons=20, neighbours=3, spread=5, other_pictures=2),
        concepts=concepts,
        eraser=eraser,
        attack=LORA,
        defences={"imma": IMMA},
        baselines={
            "ascent": AscentOnly(steps=IMMA.steps // 2, lr=IMMA.outer_lr),
            "noise": RandomPerturbation(like="imma"),
        },
        benign=HARMLESS,
        at=(8, 15, 30, 60),
        sampler=SAMPLER,
    )


studies = {
    "objects": study("Relearning objects by LoRA", WORLD.study_objects[:10], ERASE_AN_OBJECT),
    "styles": study("Relearning styles by LoRA", STYLES_DRAWN_BEST, ERASE_A_STYLE),
}
