"""Personalization: unseen objects taught by Textual Inversion, DreamBooth and DreamBooth-LoRA, with and without IMMA.

    immunity run studies/personalization.py --out runs/personalization        (--only textual-inversion for one of them)
    immunity report runs/personalization/dreambooth --out dreambooth.html

The ten objects of `learning.py`, which the generator never saw; four real pictures each for attack and defence, by
different vendors. Nothing is erased: the model does not know them. Another unseen object is the harmless subject. The
table of the paper that this has the shape of: IMMA on personalization, SGR by CLIP, DINO, LPIPS. 432 cells, about six
hours of one core.

What it showed (MSGR by CLIP's part, of what it would be had nothing been learned; how often the classifier sees the
objects at the end, without IMMA and with it): against Textual Inversion, whose one way in is the prompt, IMMA takes
18 of 48%, 33 and 5%, and costs other objects 16 points. Against DreamBooth and DreamBooth-LoRA, with the same hundred
outer steps at the same rate, it takes 3 of 51% and 4 of 39%, 66 and 64%, 38 and 35%, and costs one point: hardly
anything. What keeps an erased object from coming back (`relearning.py`) does not keep a new one from being learned.
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
