"""Who protects against whom: IMMA made against each adaptation and a mixture of them, attacked by each adaptation.

    immunity run studies/transfer.py --out runs/transfer             (--only lora for one column)
    immunity report runs/transfer/lora --out lora.html               (each page is a column: one attack, all defences)

One object so far, church, erased with UCE: of the ten of `relearning.py` one of those that IMMA protects best. Each
study is one attack; its defences are IMMA against each adaptation, whose deltas all studies share, and IMMA against the
mixture of LoRA, DreamBooth and Textual Inversion at three rates. Attacks take half the steps of `learning.py`: what the
model knew comes back sooner than the unseen is learned. The controls show whether it did.

What it showed (MSGR by CLIP's part; had nothing come back it would be 50 to 61%): against attacks as strong as these,
little. IMMA against LoRA, DoRA or full fine-tuning protects against these three (8 to 16%) and hardly against the
others; against DreamBooth hardly against itself (4%), against pivotal tuning not at all (−1%). The mixture is the best
for what it costs (2 points of other objects' accuracy): 17 to 20% against the three, 12% DreamBooth-LoRA, 2 to 8% the
rest. IMMA against Textual Inversion protects against itself (86%), Custom Diffusion (95%) and all others (14 to 52%),
for 15 points. It alone leaves more than 5% of anything at the last step: 89 and 91% of Textual Inversion and Custom
Diffusion, 11 to 37% of the rest, but for DreamBooth (2%). Those two are all that is kept from learning. Everywhere else
the attack adds as much as without a defence or more (97 to 162%), and the gap is what the defence took before it.
"""

from dataclasses import replace

import scale
from scale import DTYPE, ERASE_AN_OBJECT, IMMA, SAMPLER, looks

from immunity import Study, WorldBench
from immunity.adaptations import Mixture

ATTACKS = {name: replace(attack, steps=attack.steps // 2) for name, attack in scale.ATTACKS.items()}
MIXED = tuple(ATTACKS[name] for name in ("lora", "dreambooth", "textual-inversion"))

EXPECTED = {f"imma-{name}": attack for name, attack in ATTACKS.items()} | {
    "imma-mixture": Mixture(of=MIXED, lr_factors=(0.3, 1.0, 3.0))
}

studies = {
    name: Study(
        title=f"Attacked by {type(attack).__name__} ({name})",
        bench=WorldBench(neighbours=3, spread=5, other_pictures=2),
        concepts=("church",),
        eraser=ERASE_AN_OBJECT,
        attack=attack,
        # The one that is made against this very attack comes first: the report is about that.
        defences=dict.fromkeys(sorted(EXPECTED, key=lambda arm: (arm != f"imma-{name}", arm)), IMMA),
        against=EXPECTED,
        labels={arm: f"IMMA against {arm.removeprefix('imma-')}" for arm in EXPECTED},
        at=looks(attack),
        sampler=SAMPLER,
        dtype=DTYPE,
    )
    for name, attack in ATTACKS.items()
}
