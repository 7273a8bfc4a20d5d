"""The model card of the embedded world, written from the measured numbers; nothing in it is typed by hand but the
prose."""

from __future__ import annotations

from typing import Any

import vocabulary as v
from judges import NAMES

HEAD = """---
license: cc-by-sa-4.0
tags: [text-to-image, diffusers, unlearning, immunization]
---

# The emoji world

A small text-to-image model of Stable Diffusion's architecture (64×64 pixels), with the judges that score its pictures
and real sample pictures. It exists so that erasing, relearning and immunizing can be tried, tested and studied in
minutes on a laptop. It is not a product for making emoji.

Trained from nothing on real pictures: {objects} objects drawn by eight vendors. A vendor is a *style*. Never shown to
the generator: {held_out} objects (the judges know them: unseen subjects for personalization), {fold} more objects
that nobody knows (they score the judges), and the whole set `{firefox}`.

## Use

```python
import immunity

model = immunity.load("emoji")
```

or, without this package, `diffusers.StableDiffusionPipeline.from_pretrained("…/emoji/generator")`.
"""

RECIPE = """
## Recipe

```
make world        # = python studies/emoji_world/build.py --budget full --ship
```

Stages: data, autoencoder, judges, generator, evaluation, packing. Seeds are fixed in each stage; a killed stage
resumes from its checkpoint. The splits are in `studies/emoji_world/vocabulary.py` and `world.json`.

The weights that ship are of these runs, but not of one command: the generator's third run was added later, and then
its fourth and the style judge as it is now. Each run began from what had shipped before it, in float16, and all kept
the autoencoder and the other judges of an earlier version of this world (`--reuse autoencoder judges`).
"""

LIMITS = """
## Limits

* It knows the listed objects and styles and little else; a prompt outside them gives a mixture of what it knows.
* With so few training pictures, much of what it draws is close to a training picture: see `docs/world/nearest.png`
and the figures above before calling anything it does "generalisation".
* `noto`/`blob`, `emojione`/`emojione v1` and `fluent`/`fluent flat` are relatives; both of each pair are on the same
side of every split of styles, and where a study splits an object's pictures between attack and defence.
* The judges' shapes were chosen by their scores on the fold and on `firefox`, which flatters these a little. The "real"
figures beside the generator's are of pictures that the judges were trained on, before the autoencoder.

## Sources and licences

The pictures are the work of these vendors, rendered from their SVG files; the weights are trained on them. The whole
is shared under [CC BY-SA 4.0](https://creativecommons.org/licenses/by-sa/4.0/legalcode), the strictest of the licences
below; the notice that MIT's wants to be kept is in `NOTICE`.

| style | set | author | licence |
|---|---|---|---|
"""


def _table(title: str, rows: dict[str, Any]) -> str:
    """Numbers and words, and flat mappings of them; longer things (curves, class lists) stay in the JSON."""
    lines = [f"\n## {title}\n", "| measure | value |", "|---|---|"]
    for name, value in rows.items():
        if isinstance(value, dict) and len(value) <= 20 and not any(isinstance(x, dict | list) for x in value.values()):
            value = ", ".join(f"{k} {_number(x)}" for k, x in value.items())
        if not isinstance(value, dict | list):
            lines.append(f"| {name} | {_number(value)} |")
    return "\n".join(lines) + "\n"


def _number(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def write(quality: dict[str, Any], judges: dict[str, Any]) -> str:
    """Markdown of the card from ``quality.json`` and ``judges.json``."""
    head = HEAD.format(
        objects=len(v.TRAINED), held_out=len(v.HELD_OUT), fold=len(v.FOLD), firefox=v.HELD_OUT_STYLE.name
    )
    tables = [_table(f"Measured: {name}", rows) for name, rows in quality.items()]
    tables += [_table(f"Measured: judge {name}", judges[name]) for name in NAMES]
    sources = [
        f"| {s.name} | `@iconify-json/{s.package}` {s.version}, {s.source} | {s.author} | {s.licence} |"
        for s in (*v.STYLES, v.HELD_OUT_STYLE)
    ]
    return (
        head
        + "".join(tables)
        + RECIPE
        + LIMITS
        + "\n".join(sources)
        + "\n\nNames and groups: `emojibase-data` (MIT).\n"
    )
