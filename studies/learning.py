"""Does every attack learn? Ten objects that the generator never saw, taught to the unprotected model: no defence here.

    python studies/learning.py                       (--only lora dora for some of the attacks)

An attack that teaches nothing is no evidence for a defence that it fails against. How much was learned of an object is
measured by each judge on a scale from 0, what the model drew when it was asked before, to 1, the artists' real pictures
of it, each against the others. The lessons and their relatives are not among these. An attack counts as able where
CLIP's part sees at least eight of ten objects half-way. One file for each attack in studies/records/learning, of which
`python studies/publish.py` makes a table; what is there already is not done again. Six to twenty minutes an attack on
one core.

What it showed, of all but LoRA on an earlier version of the world: all eight are able. By CLIP's part Custom Diffusion,
full fine-tuning and pivotal tuning are half-way for all ten objects, LoRA and DreamBooth for nine, the others for
eight. Textual Inversion takes sixteen vectors and 480 steps
for that, and by DINO's and LPIPS's part it is half-way for five only: on an earlier scale one vector, as in its
paper, was so for two (120 steps; 240 and an initialiser gained nothing), as the prompts of a model of 200 objects
have no room for another one.
"""

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from scale import ATTACKS, SAMPLER, WORLD
from tqdm import tqdm

from immunity import DiffusionModel, WorldBench, adapt, load
from immunity.adaptations import Adaptation
from immunity.atomic import replacing
from immunity.evaluation.bench import Panel, spread_over
from immunity.optimize import derived_seed

OUT = Path(__file__).parent / "records" / "learning"
CHOSEN = spread_over([each.name for each in WORLD.concepts("object", "held_out")], 10)
PICTURES, SEED = 8, 0
SIMILARITIES = ("clip", "dino", "lpips")
JUDGES = {"clip": "CLIP's part", "dino": "DINO's part", "lpips": "LPIPS's part", "accuracy": "classifier"}

Means = dict[str, float]


def mean(values: tuple[float, ...]) -> float:
    return sum(values) / len(values)


def taught(model: DiffusionModel, panel: Panel, concept: str, attack: Adaptation) -> dict[str, Any]:
    """Each judge's mean score of what the model draws along the attack, and of the real pictures."""
    lessons = panel.pictures(concept, "attack", seed=derived_seed(SEED, concept), alone=False)
    everything = panel.pictures(concept, "reference", seed=SEED, alone=True)
    shown = set(lessons.image_digests())
    real = everything.take([i for i, digest in enumerate(everything.image_digests()) if digest not in shown])
    asked = tuple(attack.asking(prompt, name=concept) for prompt in panel.questions(concept, PICTURES, attacked=True))
    curve: dict[int, Means] = {}

    def look(step: int, prompts: tuple[str, ...]) -> None:
        images = model.sample(prompts, seeds=range(PICTURES), steps=SAMPLER.steps, guidance=SAMPLER.guidance)
        curve[step] = {judge: mean(each) for judge, each in panel.scores(concept, images, real.images).items()}

    look(0, panel.questions(concept, PICTURES))
    at = tuple(sorted({max(1, attack.steps // part) for part in (4, 2, 1)}))
    adapt(model, lessons, attack, seed=SEED, at=at, callback=lambda step, _: look(step, asked))
    others = [[j for j in range(len(real)) if j != i] for i in range(len(real))]
    alone = [panel.scores(concept, real.images[[i]], real.images[rest]) for i, rest in enumerate(others)]
    ceiling = {judge: mean(tuple(each[judge][0] for each in alone)) for judge in JUDGES}
    return {"curve": curve, "real": ceiling, "lessons": len(lessons)}


def shares(objects: dict[str, Any], judge: str) -> dict[str, list[float]]:
    """How far each object came, from never seen (0) to real pictures of it (1), at each look."""
    found = {}
    for name, each in objects.items():
        looks = [scores[judge] for scores in each["curve"].values()]
        found[name] = [(look - looks[0]) / (each["real"][judge] - looks[0]) for look in looks]
    return found


def table(present: str, folder: Path = OUT) -> str:
    """A row for each attack that has been tried; those on another world than `present` have a mark."""
    half = "half-way by " + ", ".join(JUDGES[judge].removesuffix("'s part") for judge in SIMILARITIES)
    rows = [f"| attack | {' | '.join(JUDGES.values())} | {half} |", "|---" * 6 + "|"]
    for file in sorted(folder.glob("*.json")):
        read = json.loads(file.read_text(encoding="utf-8"))
        last = {judge: [way[-1] for way in shares(read["objects"], judge).values()] for judge in JUDGES}
        means = " | ".join(f"{mean(tuple(ways)):.0%}" for ways in last.values()).replace("-", "−")
        half = ", ".join(str(sum(way >= 0.5 for way in last[judge])) for judge in SIMILARITIES)
        what = f"{read['attack']}, {read['config']['steps']} steps at {read['config']['lr']:g}"
        what += "" if read["base_hash"] == present else " †"
        rows.append(f"| {what} | {means} | {half} of {len(last['clip'])} |")
    if any("†" in row for row in rows):
        rows += ["", "† with an earlier version of the world; to be measured again"]
    return "\n".join(rows) if len(rows) > 2 else ""


def known(file: Path, what: dict[str, Any]) -> bool:
    """Whether the file is of this very attack on this very model."""
    if not file.exists():
        return False
    read = json.loads(file.read_text(encoding="utf-8"))
    return {key: read.get(key) for key in what} == json.loads(json.dumps(what))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", choices=sorted(ATTACKS), default=list(ATTACKS))
    options = parser.parse_args()
    bench = WorldBench()
    model = load(bench.source)
    panel = bench.open(device="cpu", size=model.resolution)
    OUT.mkdir(parents=True, exist_ok=True)
    for name in options.only:
        result = {"attack": name, "config": asdict(ATTACKS[name]), "base_hash": model.base_hash}
        if known(OUT / f"{name}.json", result):
            continue
        found = {concept: taught(model, panel, concept, ATTACKS[name]) for concept in tqdm(CHOSEN, desc=name)}
        with replacing(OUT / f"{name}.json", force=True) as file:
            file.write_text(json.dumps(result | {"objects": found}, indent=1), encoding="utf-8")
    print(table(model.base_hash))


if __name__ == "__main__":
    main()
