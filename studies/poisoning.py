"""Protecting pictures against protecting the model: data poisoning beside IMMA, under the same attack.

    immunity run studies/poisoning.py --out runs/poisoning
    immunity report runs/poisoning --out poisoning.html

The three objects of `attacker.py`, erased with UCE, and its LoRA. Whoever publishes the attacker's pictures knows the
erased model, and changes them within 8 levels of 255: with AdvDM all of them, half of them, or all and the attacker
saves them as JPEG of quality 75; with ASPL, whose surrogate is the attacker's own LoRA. IMMA is made on other pictures,
and the attacker has their own as they are. The controls: noise of the same size, and clean pictures saved as JPEG. 90
cells, about an hour of one core.

What it showed (by CLIP's part; how often the classifier sees the objects at the end: 96% undefended): the two do
opposite things. IMMA is ahead before the attack (50%), is at 20% at its end, 38% seen, and the attack adds as much as
without it (121%). Poison changes no model and does nothing before; the attack learns little (9% of what it would by
AdvDM, 7% by ASPL), and at its end the gap is 39%, 6 and 3% seen. But whoever poisons must reach the pictures: of half
of them poisoned it learns 61%, and 62% are seen. JPEG at quality 75 helps the attacker a little (21%, 21% seen). Noise
of the same size does nothing. Poison costs other objects nothing, as it protects none but these pictures; IMMA's price
is 6 points here. Look at the pictures, though: the attacker of poisoned ones draws the objects, under stains. Judges
that learned from clean pictures make more of that than an eye does.
"""

from scale import DTYPE, ERASE_AN_OBJECT, IMMA, LORA, SAMPLER

from immunity import Advdm, Aspl, Poisoned, RandomNoise, Study, WorldBench

ADVDM = Advdm(steps=60, batch=10)

study = Study(
    title="Poisoned pictures or an immunized model",
    bench=WorldBench(neighbours=3, spread=5, other_pictures=2),
    concepts=("church", "dog face", "pizza"),
    eraser=ERASE_AN_OBJECT,
    attack=LORA,
    defences={
        "imma": IMMA,
        "advdm": Poisoned(by=ADVDM),
        "advdm-half": Poisoned(by=ADVDM, share=0.5),
        "advdm-jpeg": Poisoned(by=ADVDM, jpeg=75),
        "aspl": Poisoned(by=Aspl(surrogate=LORA, rounds=10, batch=10)),
    },
    baselines={
        "noise": Poisoned(by=RandomNoise()),
        "jpeg": Poisoned(by=ADVDM, share=0, jpeg=75),
    },
    labels={
        "advdm": "AdvDM",
        "advdm-half": "AdvDM, half of them",
        "advdm-jpeg": "AdvDM, saved as JPEG",
        "aspl": "ASPL",
        "noise": "random noise",
        "jpeg": "clean, saved as JPEG",
    },
    sampler=SAMPLER,
    dtype=DTYPE,
)
