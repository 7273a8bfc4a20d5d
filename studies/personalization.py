"""Personalization: unseen objects taught by Textual Inversion, DreamBooth and DreamBooth-LoRA, with and without IMMA.

    immunity run studies/personalization.py --out runs/personalization        (--only textual-inversion for one of them)
    immunity report runs/personalization/dreambooth --out dreambooth.html

Ten objects that the generator never saw, at even distances in the list of those; four real pictures each for attack
and defence, by different vendors. Nothing is erased: the model does not know them. Two further unseen objects are the
harmless subjects. The table of the paper that this has the shape of: IMMA on personalization, SGR by CLIP, DINO, LPIPS.
"""

from scale import ATTACKS, IMMA, SAMPLER, WORLD

from immunity import Study, WorldBench
from immunity.evaluation.bench import spread_over

UNSEEN = [each.name for each in WORLD.concepts("object", "held_out")]
CHOSEN = spread_over(UNSEEN, 12)

studies = {
    name: Study(
        title=f"Personalization by {type(ATTACKS[name]).__name__}",
        bench=WorldBench(neighbours=0, spread=8, other_pictures=2),
        concepts=CHOSEN[:10],
        eraser=None,
        attack=ATTACKS[name],
        defences={"imma": IMMA},
        benign=CHOSEN[10:],
        sampler=SAMPLER,
    )
    for name in ("textual-inversion", "dreambooth", "dreambooth-lora")
}
