"""What of IMMA matters: each choice changed alone, on three objects.

    immunity run studies/ablation.py --out runs/ablation
    immunity report runs/ablation --out ablation.html           (or .md: a row for each choice)

Erased with UCE, attacked by LoRA. The retention term, which is ours, keeps what the model predicts for ten other
objects.
"""

from attacks import LORA

from immunity import AscentOnly, Imma, Sampler, Study, Uce, World, WorldBench
from immunity.evaluation.bench import spread_over

WORLD = World.open("emoji")
OBJECTS = WORLD.study_objects[:3]
NAMES = tuple(each.name for each in WORLD.concepts("object", "trained"))
KEPT = spread_over([name for name in NAMES if name not in OBJECTS], 10)
STYLES = [each.name for each in WORLD.concepts("style", "trained")]
RETAINED = tuple(WORLD.prompt(name, STYLES[i % len(STYLES)]) for i, name in enumerate(KEPT))

DEFENCES = {
    "imma": Imma(steps=300, outer_lr=1e-4),
    "inner-3": Imma(steps=300, outer_lr=1e-4, inner=3),
    "outer-3": Imma(steps=300, outer_lr=1e-4, outer=3),
    "fresh-20": Imma(steps=300, outer_lr=1e-4, reinitialise_every=20),
    "cross-attention": Imma(steps=300, outer_lr=1e-4, group="cross_attention"),
    "text-kv": Imma(steps=300, outer_lr=1e-4, group="text_kv"),
    "all": Imma(steps=300, outer_lr=1e-4, group="denoiser"),
    "lr-3e-5": Imma(steps=300, outer_lr=3e-5),
    "lr-3e-4": Imma(steps=300, outer_lr=3e-4),
    "retention": Imma(steps=300, outer_lr=1e-4, retention="prediction", retention_prompts=RETAINED),
    "ascent": AscentOnly(steps=150, lr=1e-4),
}
LABELS = {
    "imma": "IMMA as published: 1:1, attention, 1e-4",
    "inner-3": "three inner steps a cycle",
    "outer-3": "three outer steps a cycle",
    "fresh-20": "φ begins anew every 20 cycles",
    "cross-attention": "S: cross-attention",
    "text-kv": "S: its keys and values",
    "all": "S: the whole denoiser",
    "lr-3e-5": "outer rate 3e-5",
    "lr-3e-4": "outer rate 3e-4",
    "retention": "with retention (ours)",
    "ascent": "ascent only",
}

study = Study(
    title="What of IMMA matters",
    bench=WorldBench(neighbours=3, spread=5, other_pictures=2),
    concepts=OBJECTS,
    eraser=Uce(preserve=NAMES),
    attack=LORA,
    defences=DEFENCES,
    labels=LABELS,
    at=(8, 15, 30, 60),
    sampler=Sampler(steps=12, guidance=4.0),
)
