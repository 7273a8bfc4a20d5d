"""Relearning an erased concept by LoRA, with and without IMMA: ten objects and three styles, three seeds.

    immunity run studies/relearning.py --out runs/relearning
    immunity report runs/relearning/objects --out objects.html       (or .md; and the same of the others)

The same command in a second process shares the work; killed, it goes on where it was.

Erased with UCE. The attacker has 20 pictures that the base model drew, as in the paper (there 20 as well), and 60
steps of LoRA; of a style, which the base model draws right only half the time, 20 of the artist's own and 120 steps at
twice the rate. IMMA is made against that attack on 20 other pictures. Beside
it in the same table: ascent without an attacker inside, with as many outer steps at the same rate, and a random change
of the same norm, layer by layer. A harmless subject, which the model never saw and which therefore takes a longer
attack, is taught with and without the defence.

What it showed (by CLIP's part). Objects: the attacker's pictures are 43% less like the object over the looks at the
attack (MSGR), and the classifier sees 44% of them at its end in place of 92%; others lose 2 points. Three of the ten
(church, bicycle, hamburger) are not back when the attack ends. But the gap is largest, 48%, before the attack begins,
and 17% at its end: what the attack adds to the immunized model is 127% of what it adds to the undefended one. IMMA at
this scale makes the attacker start from further behind; half of the gap is what erasing twice does as well, and the
other half is not (`erased_again.py`).
Ascent without an attacker inside scores more, 52%, and does slow learning down (66%), for 25 points: it ruins the
model. A random change of the same size does nothing. Styles: next to nothing, 0.5% of two of them and 4% of openmoji,
and they are as recognisable as without. The harmless subject, under a longer attack, is learned with IMMA as it is
without: its gap is −0.5% (−2.6 to 1.4%) beside objects.
"""

import math

from scale import (
    DTYPE,
    ERASE_A_STYLE,
    ERASE_AN_OBJECT,
    HARMLESS,
    IMMA,
    LORA,
    LORA_OF_A_STYLE,
    LORA_OF_THE_UNSEEN,
    SAMPLER,
    WORLD,
)

from immunity import AscentOnly, Lora, RandomPerturbation, Study, Uce, WorldBench
from immunity.evaluation.world_bench import Teacher


def study(title: str, concepts: tuple[str, ...], eraser: Uce, attack: Lora, teacher: Teacher) -> Study:
    return Study(
        title=title,
        bench=WorldBench(teacher=teacher, lessons=20, neighbours=3, spread=5, other_pictures=2),
        concepts=concepts,
        eraser=eraser,
        attack=attack,
        defences={"imma": IMMA, "ascent": AscentOnly(steps=IMMA.steps // 2, lr=IMMA.outer_lr)},
        baselines={"noise": RandomPerturbation(like="imma")},
        benign=(HARMLESS,),
        benign_attack=LORA_OF_THE_UNSEEN,
        at=tuple(math.ceil(attack.steps / part) for part in (8, 4, 2, 1)),
        sampler=SAMPLER,
        dtype=DTYPE,
    )


def of_styles(title: str, *names: str) -> Study:
    return study(title, names, ERASE_A_STYLE[names[0]], LORA_OF_A_STYLE, "real")


# Three of the four styles that the judge recognises most often in what the base model draws (fluent, which it takes for
# its relative, is in `relearning_styles.py`). What one of them becomes when it is erased cannot be itself, hence two
# studies.
studies = {
    "objects": study("Relearning objects by LoRA", WORLD.study_objects[:10], ERASE_AN_OBJECT, LORA, "auto"),
    "styles": of_styles("Relearning styles by LoRA", "blob", "emojione v1"),
    "openmoji": of_styles("Relearning the style of openmoji by LoRA", "openmoji"),
}
