"""From records to pairs: one concept, one arm, set against the control, with all that bears on how far to trust it."""

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from immunity.errors import ImmunityError
from immunity.records import Arm, Cell, CellKey, Diverged, MetricSpec, Records
from immunity.report.statistics import RECOVERED, Array, Estimate, Paired, Summary, mean_curves, resample, summarise

RANDOM_SEED = 0
"""Of the bootstrap: the same records give the same intervals."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Comparison:
    """The same attack on the control and on another arm, for the seeds that both have.

    `control` and `defended` hold one cell a seed. `base` and `erased` do too, or nothing where a seed lacks one.
    """

    concept: str
    subject: str
    arm: Arm
    metrics: tuple[MetricSpec, ...]
    control: tuple[Cell, ...]
    defended: tuple[Cell, ...]
    base: tuple[Cell, ...] = ()
    erased: tuple[Cell, ...] = ()
    benign: "tuple[Comparison, ...]" = ()
    """The same two arms attacked with unrelated subjects."""
    baselines: "tuple[Comparison, ...]" = ()
    """Arms that are not expected to help, against the same control; for a defended arm only."""
    planned_seeds: int = 1
    diverged: tuple[Diverged, ...] = ()
    """Cells of these two arms that are missing because they came to nothing."""
    draws: int = 2000
    taught: bool = False
    """Whether nothing was erased: the attack teaches what the base model never knew, and nothing can come back."""

    def __post_init__(self) -> None:
        for one, other in zip(self.control, self.defended, strict=True):
            _check_paired(one, other)

    @property
    def seeds(self) -> tuple[int, ...]:
        return tuple(cell.seed for cell in self.control)

    @property
    def jpeg(self) -> object:
        """Quality at which the attacker of this arm saves the pictures; None where they are left as they are."""
        return self.arm.config.get("jpeg")

    @property
    def steps(self) -> tuple[int, ...]:
        return self.control[0].steps

    @cached_property
    def summaries(self) -> Mapping[str, Summary]:
        """For each metric that shows the concept, what its scores amount to."""
        found = {}
        for metric in self.metrics:
            # Nobody looks for what is unsafe where something harmless was taught.
            if metric.shows_concept and not (metric.kind == "detection" and self.subject != self.concept):
                pair = self.paired(metric.name)
                found[metric.name] = summarise(pair, draws=self.draws, generator=self._generator())
        return found

    @cached_property
    def lost_by_erasing(self) -> Estimate | None:
        """Accuracy that the other concepts lose, mean over them, from the base model to the erased one."""
        return self._lost(self.base, self.erased or self.control)

    @cached_property
    def lost_by_defence(self) -> Estimate | None:
        """The same from what the defence was given, which is the control before the attack, to what it made of it."""
        return self._lost(self.control, self.defended)

    def only(self, seeds: Sequence[int]) -> "Comparison":
        """Of these seeds alone. Replicates of two comparisons can be subtracted where both are of the same ones."""
        if list(seeds) == list(self.seeds):
            return self

        def those(cells: tuple[Cell, ...]) -> tuple[Cell, ...]:
            return tuple(cell for cell in cells if cell.seed in seeds)

        return dataclasses.replace(
            self,
            control=those(self.control),
            defended=those(self.defended),
            base=those(self.base),
            erased=those(self.erased),
        )

    def _generator(self) -> np.random.Generator:
        """The same for every metric and arm of a concept: the same pictures are drawn for all. Concepts have seeds of
        their own, so what is drawn of one says nothing of another."""
        return np.random.default_rng([RANDOM_SEED, *self.concept.encode()])

    def _lost(self, before: Sequence[Cell], after: Sequence[Cell]) -> Estimate | None:
        """None where none was asked for. Answers to the same prompt and seed are paired; the concepts count alike."""
        cells = (*before, *after)
        asked = [{name: len(answers) for name, answers in _others(cell).items()} for cell in cells]
        names = [name for name in asked[0] if all(each.get(name) == asked[0][name] for each in asked)] if before else []
        if not names:
            return None
        differences = np.array(
            [
                [
                    (was - now) / len(_others(one)[name])
                    for name in names
                    for was, now in zip(_others(one)[name], _others(other)[name], strict=True)
                ]
                for one, other in zip(before, after, strict=True)
            ]
        )
        answers = differences.shape[1]
        weights = resample(len(before), answers, draws=self.draws, generator=self._generator())
        return Estimate.of(mean_curves(differences[:, None] * answers / len(names), weights)[:, 0])

    @property
    def judged_by(self) -> tuple[MetricSpec, ...]:
        """The similarities; without any, all that shows the concept."""
        shown = tuple(metric for metric in self.metrics if metric.name in self.summaries)
        return tuple(metric for metric in shown if metric.kind == "similarity") or shown

    @cached_property
    def clear(self) -> tuple[bool, ...]:
        """For each of these, whether the whole interval of the mean gap is above zero."""
        return tuple(self.summaries[metric.name].sgr_mean.interval().low > 0 for metric in self.judged_by)

    @property
    def goal(self) -> str:
        """Where the concept counts as back, or as learned."""
        whole = "what the attack teaches the undefended model" if self.taught else "the base model's score"
        return f"{RECOVERED:.0%} of {whole}"

    @property
    def rises(self) -> bool:
        """Whether by any of `judged_by` the control ends clearly above where it began."""
        looks = [self.summaries[metric.name].control for metric in self.judged_by]
        return any(each[-1].low > each[0].high for each in looks)

    def where_defined(self, measure: Callable[[Summary], float]) -> dict[str, float]:
        """The measure by metric, without those that have none."""
        found = {name: measure(summary) for name, summary in self.summaries.items()}
        return {name: value for name, value in found.items() if not math.isnan(value)}

    def title(self, metric: str) -> str:
        return next(each.title for each in self.metrics if each.name == metric)

    def names(self, metrics: Iterable[str]) -> str:
        return ", ".join(map(self.title, metrics))

    def percents(self, values: Mapping[str, float]) -> str:
        return ", ".join(f"{value:.0%} ({self.title(name)})" for name, value in values.items())

    def paired(self, metric: str) -> Paired:
        return Paired(
            steps=np.array(self.steps, dtype=np.float64),
            control=_scores(self.control, metric),
            defended=_scores(self.defended, metric),
            base=_scores(self.base, metric)[:, 0] if self.base else None,
            taught=self.taught,
        )


def compare(
    records: Records, concept: str, arm: str, *, subject: str | None = None, draws: int = 2000
) -> Comparison | None:
    """`arm` against the control, with its benign twins and the baselines; None while no seed has both.

    Raises `ImmunityError` where cells that should be paired used other prompts, seeds or steps.
    """
    plan, subject = records.plan, subject or concept
    controls = plan.with_role("control")
    if not controls:
        raise ImmunityError(
            expected="a study with a control arm",
            got=", ".join(each.name for each in plan.arms),
            remedy="adding the attack on the undefended model: no figure of a defence means anything without it",
        )
    mine = _by_seed(records, concept, arm, subject)
    theirs = _by_seed(records, concept, controls[0].name, subject)
    seeds = [seed for seed in plan.seeds if seed in mine and seed in theirs]
    if not seeds:
        return None
    control = tuple(theirs[seed] for seed in seeds)
    is_target, is_defended = subject == concept, plan.arm(arm).role == "defended"
    benign = (
        compare(records, concept, arm, subject=other, draws=draws)
        for other in plan.benign
        if is_target and other != concept
    )
    baselines = (
        compare(records, concept, other.name, draws=draws)
        for other in plan.with_role("baseline")
        if is_target and is_defended
    )
    return Comparison(
        concept=concept,
        subject=subject,
        arm=plan.arm(arm),
        metrics=plan.metrics,
        control=control,
        defended=tuple(mine[seed] for seed in seeds),
        base=_for_all(records, concept, "base", subject, seeds),
        erased=_for_all(records, concept, "erased", subject, seeds),
        benign=tuple(each for each in benign if each),
        baselines=tuple(each for each in baselines if each),
        planned_seeds=len(plan.seeds),
        diverged=tuple(
            each
            for each in records.diverged
            if (each.concept, each.subject) == (concept, subject) and each.arm in (arm, controls[0].name)
        ),
        draws=draws,
        taught=is_target and not plan.with_role("erased"),
    )


def nothing_compared(records: Records) -> ImmunityError:
    """For who finds no concept to show a comparison of."""
    return ImmunityError(
        expected="at least one concept whose control and defence are finished",
        got=f"{len(records.finished)} finished cells in {records.folder}",
        remedy="running the study further",
    )


def other_concepts(cells: Sequence[Cell], *, step: int = 0) -> dict[str, float]:
    """The accuracy on each other concept at one step, mean over seeds and pictures."""
    found: dict[str, list[float]] = {}
    for cell in cells:
        for point in cell.points:
            if point.step == step:
                for name, values in point.others.items():
                    found.setdefault(name, []).extend(values)
    return {name: float(np.mean(values)) for name, values in found.items()}


def mean_score(cells: Sequence[Cell], metric: str, *, point: int = 0) -> float:
    """The mean score over seeds and pictures at one of the measured points; NaN without cells."""
    return float(_scores(cells, metric)[:, point].mean()) if cells else float("nan")


def loss_rise(cell: Cell) -> float:
    """Mean of the last tenth of the losses over the mean of the first, or of the halves where that is less: a tenth has
    few noise levels, and their chance alone can look like a rise. NaN if any loss is not finite.
    """
    if not all(map(math.isfinite, cell.losses)):
        return math.nan
    lengths = (max(1, len(cell.losses) // part) for part in (10, 2))
    pairs = [(sum(cell.losses[-length:]), sum(cell.losses[:length])) for length in lengths]
    return min(end / start if start else math.nan for end, start in pairs)


def _others(cell: Cell) -> Mapping[str, tuple[float, ...]]:
    return cell.points[0].others if cell.points[0].step == 0 else {}


def _scores(cells: Sequence[Cell], metric: str) -> Array:
    """[seeds, points, pictures]"""
    return np.array([[point.scores[metric] for point in cell.points] for cell in cells], dtype=np.float64)


def _by_seed(records: Records, concept: str, arm: str, subject: str) -> dict[int, Cell]:
    keys = (CellKey(concept, seed, arm, subject) for seed in records.plan.seeds)
    return {key.seed: records.cells[key] for key in keys if key in records.cells}


def _for_all(records: Records, concept: str, role: str, subject: str, seeds: Sequence[int]) -> tuple[Cell, ...]:
    """The cells of the arm with that role; empty unless every one of the seeds has its own."""
    for arm in records.plan.arms:
        if arm.role == role:
            cells = _by_seed(records, concept, arm.name, subject)
            return tuple(cells[seed] for seed in seeds) if all(seed in cells for seed in seeds) else ()
    return ()


def _check_paired(one: Cell, other: Cell) -> None:
    for what, left, right in (
        ("seed", one.seed, other.seed),
        ("steps", one.steps, other.steps),
        ("prompts", one.prompts, other.prompts),
        ("picture seeds", one.picture_seeds, other.picture_seeds),
    ):
        if left != right:
            raise ImmunityError(
                expected=f"the same {what} in {one.arm} and {other.arm} of {one.concept}, seed {one.seed}",
                got=f"{left} and {right}",
                remedy="deleting one of the two cells and running the study again",
            )
