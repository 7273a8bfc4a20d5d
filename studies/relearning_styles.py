"""Relearning styles by LoRA: the eight vendors as the paper's eight artists, with and without IMMA.

    immunity run studies/relearning_styles.py --out runs/relearning_styles
    immunity report runs/relearning_styles/seven --out styles.html

"An artwork in the style of …": erased with UCE, relearned from 20 of the artist's pictures of many objects. Three of
the eight are in `relearning.py` too, with the baselines beside them. What an erased style becomes cannot be itself,
hence one study of seven and one of the eighth. 96 cells, about an hour of one core.

What it showed: of openmoji, the one style that the model draws reliably, IMMA takes 4.3% by CLIP's part (2.5 to 6.6%);
the style classifier, which has room for it, sees 20%. Of the seven, which the unharmed model draws recognisably in a
third of its pictures, it takes 0.5% (−0.1 to 1.1%), clear of zero for none. So this is no reproduction of the paper's
artists: it says as much of the model's styles as of IMMA, and of the judges. DINO's and LPIPS's parts were trained to
look past a vendor's hand, and CLIP's tells few apart: had the attack brought nothing back, they would give the seven
3, −5 and 7%.
"""

from scale import DTYPE, ERASE_A_STYLE, IMMA, LORA_OF_A_STYLE, SAMPLER, STYLES

from immunity import Study, WorldBench


def study(title: str, *names: str) -> Study:
    return Study(
        title=title,
        bench=WorldBench(teacher="real", spread=5, other_pictures=2),
        concepts=names,
        eraser=ERASE_A_STYLE[names[0]],
        attack=LORA_OF_A_STYLE,
        defences={"imma": IMMA},
        sampler=SAMPLER,
        dtype=DTYPE,
    )


studies = {
    "seven": study("Relearning seven styles by LoRA", *(name for name in STYLES if name != "openmoji")),
    "openmoji": study("Relearning the style of openmoji by LoRA", "openmoji"),
}
