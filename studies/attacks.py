"""The attacks of the studies, at the scale of the embedded world: a small model learns faster than Stable Diffusion.

Rates and steps were set so that each attack learns an unseen object on the unprotected model (`personalization.py` is
where one sees whether it does), and never by what a defence does to it.
"""

from immunity.adaptations import (
    CustomDiffusion,
    Dreambooth,
    DreamboothLora,
    FullFinetuning,
    Lora,
    PeftAdapter,
    PivotalTuning,
    TextualInversion,
)

# The pictures' own captions, which also say the style, with the attacker's word in the object's place.
OWN = ()

LORA = Lora(lr=1e-3, steps=60, batch=4)
DREAMBOOTH = Dreambooth(lr=1e-4, steps=60, batch=4, captions=OWN)
DREAMBOOTH_LORA = DreamboothLora(lr=1e-3, steps=60, batch=4, captions=OWN)
TEXTUAL_INVERSION = TextualInversion(lr=2e-2, steps=120, batch=4, captions=OWN)
CUSTOM_DIFFUSION = CustomDiffusion(lr=1e-3, steps=60, batch=4, captions=OWN)
PIVOTAL = PivotalTuning(lr=1e-3, token_lr=2e-2, steps=60, batch=4, captions=OWN)
FULL = FullFinetuning(lr=1e-4, steps=60, batch=4)
DORA = PeftAdapter(kind="dora", lr=1e-3, steps=60, batch=4)

ALL = {
    "lora": LORA,
    "dreambooth": DREAMBOOTH,
    "dreambooth-lora": DREAMBOOTH_LORA,
    "textual-inversion": TEXTUAL_INVERSION,
    "custom-diffusion": CUSTOM_DIFFUSION,
    "pivotal": PIVOTAL,
    "full": FULL,
    "dora": DORA,
}
