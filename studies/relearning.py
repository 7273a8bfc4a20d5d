"""Relearning an erased concept by LoRA, with and without IMMA: ten objects and three styles, three seeds.

    immunity run studies/relearning.py --out runs/relearning
    immunity report runs/relearning/objects --out objects.html       (or .md; and the same of the others)

The same command in a second process shares the work; killed, it goes on where it was.

Erased with UCE, an object towards a house and a style towards another. The attacker has 20 pictures that the base model
drew, as in the paper (there 20 as well), and 60 steps of LoRA; of a style 20 of the artist's own, and 120 steps at
twice the rate. IMMA is made against that attack on 20 other pictures. Beside it: ascent without an attacker inside,
with as many outer steps at the same rate, and a random change of the same norm, layer by layer. A harmless subject,
which the model never saw and which therefore takes a longer attack, is taught without a defence and with each.

What it showed (by CLIP's part). Objects: erased, none of ten is seen any more, and the attack brings back 96%. After
IMMA the attacker's pictures are 28% less like the object over the looks at the attack (MSGR), 25% at its end, where the
classifier sees 31%; six of ten are not back then. A gap of 14% is there before the attack begins, and that is not all:
the attack adds to the immunized model 58% of what it adds to the undefended one. Other objects lose nothing. But ascent
without an attacker inside does more, 42%, 33% at the end and 15% seen, at no higher price: others lose 0.8 points (−0.8
to 2.7), and the harmless subject is learned as it is without (−2.4%, −5.5 to 0.0; with IMMA −3.1%, so a little faster).
More of it is there beforehand (30%), and learning is slowed less (75%). In this world, then, the attacker inside makes
for slower learning, and is not what protects most. A random change of the same size does nothing.

Styles: openmoji, in no picture once erased, is back in all after the attack and in 96% of them in spite of IMMA, which
takes 4% by CLIP's part (2.3 to 5.4) and hinders no learning; ascent takes 5% and ruins other styles (22 points). The
two others are void: the attack brings back 67% of what is there in 96%, too weak to say anything of a defence.
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
