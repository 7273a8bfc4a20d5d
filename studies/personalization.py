"""Personalization: unseen objects taught by Textual Inversion, DreamBooth and DreamBooth-LoRA, with and without IMMA.

    immunity run studies/personalization.py --out runs/personalization        (--only textual-inversion for one of them)
    immunity report runs/personalization/dreambooth --out dreambooth.html

The ten objects of `learning.py`, which the generator never saw; four real pictures each for attack and defence, by
different vendors. Nothing is erased: the model does not know them. Another unseen object is the harmless subject. The
table of the paper that this has the shape of: IMMA on personalization, SGR by CLIP, DINO, LPIPS. 432 cells, about six
hours of one core.

What it showed (MSGR by CLIP's part, of what it would be had nothing been learned; how often the classifier sees the
objects at the end, without IMMA and with it). Textual Inversion, whose one way in is the prompt: 18 of 48%; 33 and 5%;
it learns 80% as much; other objects lose 16 points, and three of the ten are void for that. DreamBooth: 3 of 51%; 66
and 64%; 1 point. DreamBooth-LoRA: 4 of 39%; 38 and 35%; 1 point. Against these two, with the same hundred outer steps
at the same rate, that is hardly anything: they learn as much as without (101 and 104%). The harmless subject's gap is
3.6, 0.9 and 1.9%. Half of the pictures that similarity compares with are the attacker's own four, in both arms.
"""

from scale import ATTACKS, DTYPE, HARMLESS, IMMA, SAMPLER, WORLD, looks

from immunity import Study, WorldBench
from immunity.evaluation.bench import spread_over

UNSEEN = [each.name for each in WORLD.concepts("object", "held_out")]

studies = {
    name: Study(
        title=f"Personalization by {type(ATTACKS[name]).__name__}",
        bench=WorldBench(neighbours=0, spread=8, other_pictures=2),
        concepts=spread_over(UNSEEN, 10),
        eraser=None,
        attack=ATTACKS[name],
        defences={"imma": IMMA},
        benign=(HARMLESS,),
        at=looks(ATTACKS[name]),
        sampler=SAMPLER,
        dtype=DTYPE,
    )
    for name in ("textual-inversion", "dreambooth", "dreambooth-lora")
}
