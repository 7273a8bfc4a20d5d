"""Is IMMA more than a stronger erasure? The same attack on models that were immunized, and that were erased once more.

    immunity run studies/erased_again.py --out runs/erased_again
    immunity report runs/erased_again --out erased_again.html

The three objects of `attacker.py`, erased with UCE. One half of the gap that IMMA makes is there before any attack
(`relearning.py`, `head-start`): the immunized model draws even less of the object than the erased one. So the controls
here are erased a second time, without any thought of an attack, by ESD at three strengths (cross-attention, and the
whole denoiser at two rates), 60 steps each. 63 cells, about forty minutes of one core.

What it showed (MSGR by CLIP's part; how often the classifier sees the objects at the end, 96% undefended): it is more.
A second erasure whose head start is nearly IMMA's (cross-attention, 42%; IMMA 50%) gives 23% against 41%, keeps 1% at
the attack's end against 20%, and 94% are seen against 38%. So half of IMMA's figure is what erasing twice does as well,
and that half does not last. Erased hardest, a model gets to 29%, 7% at the end and 74% seen, and other objects lose 8
points, where IMMA takes 6.
"""

from dataclasses import replace

from scale import DTYPE, ERASE_AN_OBJECT, IMMA, LORA, SAMPLER

from immunity import Esd, Study, WorldBench

ESD = Esd(lr=1e-4, steps=60, batch=4, sampler_steps=8, states_per_run=4)

study = Study(
    title="Immunized, or erased once more",
    bench=WorldBench(neighbours=3, spread=5, other_pictures=2),
    concepts=("church", "dog face", "pizza"),
    eraser=ERASE_AN_OBJECT,
    attack=LORA,
    defences={"imma": IMMA},
    baselines={
        "cross-attention": ESD,
        "whole": replace(ESD, variant="full"),
        "whole-strong": replace(ESD, variant="full", lr=3e-4),
    },
    labels={
        "cross-attention": "erased again: ESD, cross-attention",
        "whole": "erased again: ESD, the whole denoiser",
        "whole-strong": "erased again: ESD, the whole denoiser at three times the rate",
    },
    sampler=SAMPLER,
    dtype=DTYPE,
)
