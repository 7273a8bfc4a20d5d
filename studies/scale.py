"""Attacks, defence and sampler of the studies, at the scale of the embedded world: a small model learns fast.

The attacks' rates and steps are to be such that each attack learns an unseen object on the unprotected model, which
`learning.py` shows, and are never set by what a defence does to it. To bring back an object that the model knew takes
less: `LORA`.
"""

from immunity import Imma, Sampler, Uce, World
from immunity.adaptations import (
    Adaptation,
    CustomDiffusion,
    Dreambooth,
    DreamboothLora,
    FullFinetuning,
    Lora,
    PeftAdapter,
    PivotalTuning,
    TextualInversion,
)
from immunity.evaluation.bench import spread_over
from immunity.evaluation.demo import HARMLESS as HARMLESS  # every attack teaches it, by CLIP's part: `learning.py`

WORLD = World.open("emoji")
OBJECTS = tuple(each.name for each in WORLD.concepts("object", "trained"))
STYLES = tuple(each.name for each in WORLD.concepts("style", "trained"))

# A quarter of the objects, evenly spread, and the concept's neighbours stand for all that is to be kept. With every
# object preserved the closed form has more constraints than features (256), and leaves most of a concept where it was.
# An object becomes a house: towards nothing, too many pictures of it still show it. Chosen by what erased models draw,
# before any attack.
ERASE_AN_OBJECT = Uce(anchor=("house",), preserve=spread_over(OBJECTS, 50))
# A style becomes another one: what is left without a style is taken for one of the eight too often to be below 10%.
ERASE_A_STYLE = {
    name: Uce(anchor=("fluent" if name == "openmoji" else "openmoji",), preserve=STYLES) for name in STYLES
}
IMMA = Imma(steps=200, outer_lr=1e-4)
SAMPLER = Sampler(steps=8, guidance=WORLD.guidance)
# As on a graphics card; `learning.py` is in float32. What is trained is updated in float32.
DTYPE = "bfloat16"

# The pictures' own captions, which also say the style, with the attacker's word in the object's place.
OWN = ()

LORA = Lora(lr=1e-3, steps=60, batch=4)
LORA_OF_THE_UNSEEN = Lora(lr=3e-3, steps=120, batch=4)
LORA_OF_A_STYLE = Lora(lr=2e-3, steps=120, batch=4)
DREAMBOOTH = Dreambooth(lr=2e-4, steps=120, batch=4, captions=OWN)
DREAMBOOTH_LORA = DreamboothLora(lr=3e-3, steps=120, batch=4, captions=OWN)
# One vector cannot say what none of the model's 200 objects is (2 of 10 came half-way), nor can eleven (6 of 10).
# Sixteen leave no room in its 20 tokens for the name of a style: prompts are cut after the new word.
TEXTUAL_INVERSION = TextualInversion(
    lr=5e-3, steps=480, batch=4, captions=OWN, vectors=16, schedule="cosine", times="high-noise", clip=1.0
)
CUSTOM_DIFFUSION = CustomDiffusion(lr=5e-3, steps=160, batch=4, captions=OWN)
PIVOTAL = PivotalTuning(lr=5e-3, token_lr=2e-3, steps=120, batch=4, captions=OWN)
FULL = FullFinetuning(lr=2e-4, steps=60, batch=4)
DORA = PeftAdapter(kind="dora", lr=3e-3, steps=120, batch=4)

ATTACKS = {
    "lora": LORA_OF_THE_UNSEEN,
    "dreambooth": DREAMBOOTH,
    "dreambooth-lora": DREAMBOOTH_LORA,
    "textual-inversion": TEXTUAL_INVERSION,
    "custom-diffusion": CUSTOM_DIFFUSION,
    "pivotal": PIVOTAL,
    "full": FULL,
    "dora": DORA,
}


def looks(attack: Adaptation) -> tuple[int, ...]:
    """After how many steps an attack's pictures are drawn, where four times would cost too much."""
    return tuple(attack.steps // part for part in (4, 2, 1))
