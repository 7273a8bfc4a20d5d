"""Personalization: unseen objects taught by Textual Inversion, DreamBooth and DreamBooth-LoRA, with and without IMMA.

    immunity run studies/personalization.py --out runs/personalization        (--only textual-inversion for one of them)
    immunity report runs/personalization/dreambooth --out dreambooth.html

Ten objects that the generator never saw, at even distances in the list of those; four real pictures each for attack
and defence, by different vendors. Nothing is erased: the model does not know them. Two further unseen objects are the
harmless subjects. The table of the paper that this has the shape of: IMMA on personalization, SGR by CLIP, DINO, LPIPS.
"""

from attacks import ALL

from immunity import Imma, Sampler, Study, World, WorldBench
from immunity.evaluation.bench import spread_over

UNSEEN = [each.name for each in World.open("emoji").concepts("object", "held_out")]
CHOSEN = spread_over(UNSEEN, 12)

studies = {
    name: Study(
        title=f"Personalization by {type(ALL[name]).__name__}",
        bench=WorldBench(neighbours=0, spread=8, other_pictures=2),
        concepts=CHOSEN[:10],
        eraser=None,
        attack=ALL[name],
        defences={"imma": Imma(steps=300, outer_lr=1e-4)},
        benign=CHOSEN[10:],
        sampler=Sampler(steps=12, guidance=4.0),
    )
    for name in ("textual-inversion", "dreambooth", "dreambooth-lora")
}
