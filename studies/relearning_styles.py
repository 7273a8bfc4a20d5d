"""Relearning styles by LoRA: the eight vendors as the paper's eight artists, with and without IMMA.

    immunity run studies/relearning_styles.py --out runs/relearning_styles
    immunity report runs/relearning_styles --out styles.html

"An artwork in the style of …": erased with UCE, relearned from 20 pictures of many objects that the base model drew in
that style. Three of the eight are in `relearning.py` too, with the baselines beside them.
"""

from scale import ERASE_A_STYLE, IMMA, LORA, SAMPLER, STYLES

from immunity import Study, WorldBench

study = Study(
    title="Relearning the eight styles by LoRA",
    bench=WorldBench(spread=5, other_pictures=2),
    concepts=STYLES,
    eraser=ERASE_A_STYLE,
    attack=LORA,
    defences={"imma": IMMA},
    at=(8, 15, 30, 60),
    sampler=SAMPLER,
)
