"""``make world``: everything that the embedded world is, from nothing, stage by stage.

Each stage resumes from its last checkpoint, and a finished stage is skipped. ``--budget full`` is the world that
ships (several hours on two cores); ``--budget smoke`` runs the same code on a handful of objects in a few minutes, so
that the recipe cannot rot. Nothing is written into the package unless ``--ship`` is given.

    python studies/emoji_world/build.py --budget full --ship
"""

from __future__ import annotations

import argparse
import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import autoencoder
import card
import data
import evaluate
import generator
import judges
import ship

PACKAGE = Path(__file__).parents[2] / "src" / "immunity" / "worlds" / "emoji"
DOCS = Path(__file__).parents[2] / "docs" / "world"
# Outside the checkout: hours of training outlive a `git clean`, and a fresh clone goes on where the last one stopped.
WORK = Path("~/.cache/immunity/world").expanduser()
STAGES = ("data", "autoencoder", "judges", "generator", "evaluate", "ship")


@dataclass(frozen=True, kw_only=True)
class Budget:
    """How much is trained; steps are optimizer steps at the stages' own batch sizes."""

    objects: int | None
    autoencoder_steps: int
    generator_steps: tuple[int, int, int, int]
    sample_every: int
    judges: judges.Budget
    scale: evaluate.Scale


BUDGETS = {
    "full": Budget(
        objects=None,
        autoencoder_steps=2900,
        generator_steps=(8200, 3600, 9500, 3000),
        sample_every=500,
        judges=judges.Budget(),
        scale=evaluate.Scale(),
    ),
    "smoke": Budget(
        objects=6,
        autoencoder_steps=20,
        generator_steps=(10, 10, 10, 10),
        sample_every=20,
        judges=judges.SMOKE,
        scale=evaluate.Scale(objects=6, steps=2, seeds=1),
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--work", type=Path, help=f"where stages keep checkpoints and results ({WORK}, of other budgets beside it)"
    )
    parser.add_argument("--budget", choices=sorted(BUDGETS), default="full")
    parser.add_argument("--until", choices=STAGES, default="ship", help="stop after this stage")
    parser.add_argument(
        "--reuse",
        nargs="+",
        choices=("autoencoder", "judges"),
        default=(),
        help="take the package's own: latents stay the same, or scores stay comparable",
    )
    parser.add_argument("--ship", action="store_true", help="write the result into the package and docs/world")
    options = parser.parse_args()
    budget = BUDGETS[options.budget]
    work = options.work or (WORK if options.budget == "full" else WORK.with_name(f"{WORK.name}-{options.budget}"))
    _claim(work, options.budget)
    if "autoencoder" in options.reuse and not (work / "autoencoder" / "model").exists():
        shutil.copytree(PACKAGE / "generator" / "vae", work / "autoencoder" / "model")
    if "judges" in options.reuse:
        judges.reuse(PACKAGE / "judges", work)
    stages = {
        "data": lambda: data.build(work, limit=budget.objects),
        "autoencoder": lambda: autoencoder.train(work, steps=budget.autoencoder_steps),
        "judges": lambda: judges.build_all(work, budget.judges),
        "generator": lambda: generator.train(
            work, steps=budget.generator_steps, limit=budget.objects, sample_every=budget.sample_every
        ),
        "evaluate": lambda: evaluate.run(work, DOCS if options.ship else work / "docs", budget.scale),
        "ship": lambda: ship.pack(
            work,
            PACKAGE if options.ship else work / "package",
            card.write(
                json.loads((work / "evaluation" / "quality.json").read_text()),
                json.loads((work / "judges" / "judges.json").read_text()),
            ),
        ),
    }
    for name in STAGES[: STAGES.index(options.until) + 1]:
        print(f"== {name}", flush=True)
        stages[name]()


def _claim(work: Path, budget: str) -> None:
    """A finished stage is skipped, so a folder is of one budget for good."""
    mark = work / "budget"
    if mark.exists() and mark.read_text() != budget:
        raise SystemExit(f"{work} is of the budget {mark.read_text()}: another --work for {budget}")
    work.mkdir(parents=True, exist_ok=True)
    mark.write_text(budget)


if __name__ == "__main__":
    main()
