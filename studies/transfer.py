"""Who protects against whom: IMMA made against each adaptation and a mixture of them, attacked by each adaptation.

    immunity run studies/transfer.py --out runs/transfer             (--only lora for one column)
    immunity report runs/transfer/lora --out lora.html               (each page is a column: one attack, all defences)

Three objects, erased with UCE. Each study is one attack; its defences are IMMA against each adaptation, whose deltas
all studies share, and IMMA against the mixture of LoRA, DreamBooth and Textual Inversion at three rates.
"""

from scale import ATTACKS, DREAMBOOTH, ERASE_AN_OBJECT, IMMA, LORA_OF_THE_UNSEEN, SAMPLER, TEXTUAL_INVERSION, WORLD

from immunity import Study, WorldBench
from immunity.adaptations import Mixture

MIXTURE = Mixture(of=(LORA_OF_THE_UNSEEN, DREAMBOOTH, TEXTUAL_INVERSION), lr_factors=(0.3, 1.0, 3.0))

EXPECTED = {f"imma-{name}": attack for name, attack in ATTACKS.items()} | {"imma-mixture": MIXTURE}

studies = {
    name: Study(
        title=f"Attacked by {type(attack).__name__} ({name})",
        bench=WorldBench(neighbours=3, spread=5, other_pictures=2),
        concepts=WORLD.study_objects[:3],
        eraser=ERASE_AN_OBJECT,
        attack=attack,
        # The one that is made against this very attack comes first: the report is about that.
        defences=dict.fromkeys(sorted(EXPECTED, key=lambda arm: (arm != f"imma-{name}", arm)), IMMA),
        against=EXPECTED,
        labels={arm: f"IMMA against {arm.removeprefix('imma-')}" for arm in EXPECTED},
        sampler=SAMPLER,
    )
    for name, attack in ATTACKS.items()
}
