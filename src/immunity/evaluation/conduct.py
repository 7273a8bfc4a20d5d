"""Carrying out a study, cell by cell."""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, get_args

from torch import Tensor

from immunity.adaptations import Attached, AttackResult, adapt
from immunity.adaptations.base import described
from immunity.concepts import Examples
from immunity.deltas import now, package_versions
from immunity.erasers import AnyEraser
from immunity.errors import ImmunityError
from immunity.evaluation.bench import Purpose
from immunity.evaluation.changes import change
from immunity.evaluation.laboratory import Laboratory, alone
from immunity.evaluation.machine import PeakMemory, machine
from immunity.evaluation.store import Recipe, Store, drawn, keep_drawn
from immunity.immunizers import RandomPerturbation
from immunity.loading import load
from immunity.poisons import Poisoned
from immunity.records import Cell, CellKey, Plan, Point, RecordFolder, Records, Run
from immunity.stepping import DivergedError

if TYPE_CHECKING:
    from immunity.evaluation.study import Study

_SECONDS_BETWEEN_LOOKS = 2.0


def conduct(study: "Study", store: Store, *, device: str, every: int, progress: bool) -> Records:
    """What `Study.run` does."""
    from tqdm import tqdm

    model = load(study.bench.source, device=device, dtype=study.dtype)
    panel = study.bench.open(device=device, size=model.resolution)
    for name in (*study.concepts, *study.benign):
        panel.concept(name)  # an unknown one is refused before hours of work and not after them
    plan = study.plan(model, panel)
    records = RecordFolder.create(store.folder, plan)
    laboratory = Laboratory(study=study, model=model, panel=panel, store=store, every=every, progress=progress)
    conductor = Conductor(laboratory, plan, records)
    cells = list(plan.cells())
    diverged: dict[CellKey, str] = {}

    def missing() -> list[CellKey]:
        return [key for key in cells if key not in diverged and not records.has(key)]

    with tqdm(total=len(cells), desc=study.title, unit="cell", disable=not progress) as bar:
        while left := missing():
            bar.update(len(cells) - len(left) - bar.n)
            with _claim_one(laboratory.store, left) as mine:
                if not mine:  # other processes are at all that is left
                    time.sleep(_SECONDS_BETWEEN_LOOKS)
                for key in mine:
                    if records.has(key):  # another process measured it while this one chose
                        continue
                    bar.set_postfix_str(_cell_name(key))
                    try:
                        conductor.carry_out(key)
                    except DivergedError as error:  # the other cells may be well
                        diverged[key] = f"{_cell_name(key)} ({error.got})"
                        records.write_diverged(key, error.got)
                        laboratory.store.finished(_under_way(key))
                    bar.update()
        bar.update(len(cells) - bar.n)
    if diverged:
        raise ImmunityError(
            expected="attacks and defences that stay finite",
            got=f"{len(diverged)} that did not: {'; '.join(diverged.values())}",
            remedy="lower learning rates, in a new folder; all other cells are finished and can be reported",
        )
    return records.read()


@contextmanager
def _claim_one(store: Store, left: Sequence[CellKey]) -> Iterator[list[CellKey]]:
    """The cells of the first concept and seed at which no other process is at work; none if there is no such.

    Cells of one concept and seed share pictures and deltas, so one process makes them all.
    """
    groups: dict[tuple[str, int], list[CellKey]] = {}
    for key in left:
        groups.setdefault((key.concept, key.seed), []).append(key)
    for (concept, seed), group in groups.items():
        with store.claim(f"{concept} {seed}") as mine:
            if mine:
                yield group
                return
    yield []


@dataclass(frozen=True, eq=False)
class _Questions:
    """What every model of one concept, subject and seed is asked: the same prompts and the same noise for all arms."""

    prompts: tuple[str, ...]
    seeds: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class _Before:
    """What a model does before any attack."""

    images: Tensor
    others: Mapping[str, tuple[float, ...]]


@dataclass(frozen=True, eq=False)
class Conductor:
    """Measures cells and writes them down."""

    laboratory: Laboratory
    plan: Plan
    records: RecordFolder
    _before: dict[tuple[object, ...], _Before] = field(default_factory=dict, init=False)

    def carry_out(self, key: CellKey) -> None:
        """Measures one cell and writes it. The model is the base model before and after."""
        started, peak = time.monotonic(), PeakMemory(self.laboratory.model.device)
        role = self.plan.arm(key.arm).role
        method = self.laboratory.study.method(key.arm) if role in ("defended", "baseline") else None
        learned: dict[Purpose, Examples] = {"reference": self.laboratory.pictures(key, "reference")}
        if role not in ("base", "erased"):
            learned["attack"] = self.laboratory.pictures(key, "attack")
        defence: Examples | None = None
        if method is not None and not isinstance(method, Poisoned):
            defence = self.laboratory.pictures(key, "defence")
            # All such methods are given them; what is random, or erases words, learns nothing from them.
            if not isinstance(method, (RandomPerturbation, *get_args(AnyEraser))):
                learned["defence"] = defence
        questions = self._questions(key)
        poisoned: Examples | None = None
        losses: tuple[float, ...] = ()
        with ExitStack() as changes:
            deltas = change(self.laboratory, key, role, defence, changes)
            before = self._look_before(key, questions)
            images = {0: before.images}
            if role not in ("base", "erased"):
                if isinstance(method, Poisoned) and key.subject == key.concept:
                    poisoned = self.laboratory.poisoned(key, method, learned["attack"])
                lessons = learned["attack"] if poisoned is None else poisoned
                result, after = self._attack(key, questions, lessons)
                deltas["attack"], losses = result.hash, result.losses
                images |= after
        references = learned["reference"].images
        points = tuple(
            Point(
                step=step,
                scores=self.laboratory.panel.scores(key.subject, pictures, references),
                others=before.others if step == 0 else {},
            )
            for step, pictures in images.items()
        )
        run = self._run(key, deltas, learned, poisoned, seconds=time.monotonic() - started, peak=peak.bytes())
        cell = Cell(
            concept=key.concept,
            seed=key.seed,
            arm=key.arm,
            subject=key.subject,
            prompts=questions.prompts,
            picture_seeds=questions.seeds,
            points=points,
            losses=losses,
            run=run,
        )
        self.records.write(cell, images)
        self.laboratory.store.finished(_under_way(key))

    def _questions(self, key: CellKey) -> _Questions:
        attacked = self.plan.arm(key.arm).role not in ("base", "erased")
        study = self.laboratory.study
        prompts = self.laboratory.panel.questions(key.subject, study.pictures, attacked=attacked)
        if attacked:
            prompts = tuple(study.attack_on(key).asking(prompt, name=key.subject) for prompt in prompts)
        return _Questions(prompts, self.laboratory.picture_seeds(key, "ask", len(prompts)))

    def _look_before(self, key: CellKey, questions: _Questions) -> _Before:
        """The erased model of one seed is looked at in its own cell and as the control: it is asked once."""
        memo = (key.concept, key.seed, key.subject, questions.prompts, self.laboratory.model.parents)
        if memo not in self._before:
            for other in [other for other in self._before if other[:2] != memo[:2]]:
                del self._before[other]
            images = self.laboratory.draw(questions.prompts, questions.seeds, _cell_name(key))
            others = self._ask_for_others(key) if key.subject == key.concept else {}
            self._before[memo] = _Before(images, others)
        return self._before[memo]

    def _ask_for_others(self, key: CellKey) -> dict[str, tuple[float, ...]]:
        asked = self.laboratory.panel.others(key.concept)
        prompts = [prompt for each in asked.values() for prompt in each]
        if not prompts:
            return {}
        seeds = self.laboratory.picture_seeds(key, "others", len(prompts))
        images = self.laboratory.draw(prompts, seeds, f"{_cell_name(key)}, other concepts")
        parts = images.split([len(each) for each in asked.values()])
        recognised = self.laboratory.panel.recognised
        return {other: recognised(other, part) for other, part in zip(asked, parts, strict=True)}

    def _attack(
        self, key: CellKey, questions: _Questions, examples: Examples
    ) -> tuple[AttackResult, dict[int, Tensor]]:
        laboratory, study = self.laboratory, self.laboratory.study
        work = laboratory.store.work(_under_way(key))

        def look(step: int, _: Attached) -> None:
            # Kept before the attack's checkpoint passes this step: a run that is resumed does not come by here again.
            keep_drawn(
                work, step, laboratory.draw(questions.prompts, questions.seeds, f"{_cell_name(key)}, step {step}")
            )

        result = adapt(
            laboratory.model,
            examples,
            study.attack_on(key),
            seed=laboratory.seed(key, "attack", key.subject),
            at=study.looks(key),
            callback=look,
            journal=laboratory.journal(work, f"{_cell_name(key)}: attack"),
        )
        laboratory.store.keep_adapter(_cell_name(key), _under_way(key), result)
        return result, {step: drawn(work, step) for step in study.looks(key)}

    def _origin(self, key: CellKey, purpose: Purpose) -> str:
        name = key.concept if purpose == "defence" else key.subject
        return self.laboratory.panel.origin(name, purpose, alone=alone(key, purpose))

    def _run(
        self,
        key: CellKey,
        deltas: Mapping[str, str],
        learned: Mapping[Purpose, Examples],
        poisoned: Examples | None,
        *,
        seconds: float,
        peak: int,
    ) -> Run:
        model, arm = self.laboratory.model, self.plan.arm(key.arm)
        config = dict(arm.config)
        method = str(config.pop("method", ""))
        return Run(
            base=model.name,
            base_hash=model.base_hash,
            method=method,
            config=config,
            attack=described(self.laboratory.study.attack_on(key)) if "attack" in deltas else {},
            deltas=deltas,
            examples={purpose: examples.image_digests() for purpose, examples in learned.items()}
            | ({} if poisoned is None else {"poisoned": poisoned.image_digests()}),
            sources={purpose: self._origin(key, purpose) for purpose in learned},
            versions=package_versions(),
            machine=machine(model.device),
            wall_seconds=seconds,
            peak_bytes=peak,
            created=now(),
        )


def _under_way(key: CellKey) -> Recipe:
    """Of what is under way for a cell; the folder belongs to one plan, which determines the rest."""
    return {"cell": list(key)}


def _cell_name(key: CellKey) -> str:
    return f"{key.subject} {key.seed} {key.arm}"
