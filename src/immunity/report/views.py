"""What the report shows of one concept: pictures, curves and tables, laid out but not yet drawn."""

import base64
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from immunity.records import Arm, Cell, MetricSpec, Records
from immunity.report import flags, statistics
from immunity.report.charts import Chart, Level, Series, line_chart
from immunity.report.comparison import Comparison, compare, other_concepts
from immunity.report.statistics import Estimate, Interval
from immunity.report.verdict import Flag, Verdict, judge

COLOURS = 5
"""Of arms in the style sheet; `_style` goes round."""
LARGEST_PICTURE = 2**20
"""Bytes of a picture that a page takes in; those that `RecordFolder` writes have a tenth of it."""


@dataclass(frozen=True)
class Numbered:
    """A flag with the number and the anchor by which figures refer to it."""

    number: int
    anchor: str
    flag: Flag


@dataclass(frozen=True)
class Picture:
    data: str | None
    """A data URI; None where the file is missing or is not a picture."""
    alt: str
    caption: str


@dataclass(frozen=True)
class GridRow:
    arm: Arm
    style: str
    pictures: tuple[Picture, ...]


@dataclass(frozen=True)
class Grid:
    """The same picture – one seed, and one prompt unless the attacker has words of their own – from every model."""

    prompt: str
    """What the models are asked that are attacked, before the attack too."""
    asked_before: str
    """What the base and the erased model are asked."""
    seed: int
    first: tuple[tuple[str, Picture], ...]
    """The base and the erased model's, with their titles."""
    steps: tuple[int, ...]
    rows: tuple[GridRow, ...]


@dataclass(frozen=True, kw_only=True)
class ArmView:
    """One arm of one concept against the control."""

    comparison: Comparison
    style: str
    flags: tuple[Numbered, ...]
    verdict: Verdict | None
    """For defences; baselines get none."""

    def marks(self, metric: str, *about: str, subject: str | None = None) -> list[Numbered]:
        return [each for each in self.flags if each.flag.about in about and each.flag.concerns(metric, subject)]


@dataclass(frozen=True, kw_only=True)
class BenignView:
    subject: str
    chart: Chart
    gaps: tuple[tuple[MetricSpec, Estimate, Estimate | None], ...]
    """For each metric the SGR of this subject, and the relative SGR of the concept, if both had the same attack."""


@dataclass(frozen=True, kw_only=True)
class ConceptView:
    name: str
    anchor: str
    arms: tuple[ArmView, ...]
    grids: tuple[Grid, ...]
    charts: tuple[Chart, ...]
    loss_chart: Chart | None
    legend: tuple[tuple[str, str], ...]
    other_columns: tuple[str, ...]
    others: tuple[tuple[str, tuple[float, ...]], ...]
    """Accuracy on each other concept, one value a column; the mean first, then the most harmed."""
    benign: tuple[BenignView, ...]

    @property
    def main(self) -> ArmView:
        return self.arms[0]


def concept_view(records: Records, concept: str, *, draws: int) -> ConceptView | None:
    """None while the defence that the page is about has no finished seed for this concept."""
    plan = records.plan
    compared = [
        found
        for arm in plan.with_role("defended") + plan.with_role("baseline")
        if (found := compare(records, concept, arm.name, draws=draws))
    ]
    if not compared or compared[0].arm != _leading(records):
        return None
    anchor = f"c{plan.concepts.index(concept) + 1}"
    arms, count = [], 0
    for i, comparison in enumerate(compared):
        raised = flags.check(comparison)
        numbered = tuple(Numbered(count + n, f"{anchor}-f{count + n}", flag) for n, flag in enumerate(raised, start=1))
        count += len(raised)
        verdict = judge(comparison, raised) if comparison.arm.role == "defended" else None
        arms.append(ArmView(comparison=comparison, style=_style(i), flags=numbered, verdict=verdict))
    main = arms[0].comparison
    control = plan.with_role("control")[0]
    shown = [(control, "s0", main.control)] + [(a.comparison.arm, a.style, a.comparison.defended) for a in arms]
    columns, others = _others(main, {arm.title: cells for arm, _, cells in shown[1:]})
    return ConceptView(
        name=concept,
        anchor=anchor,
        arms=tuple(arms),
        grids=_grids(records, main, shown),
        charts=tuple(_chart(m, arms, control) for m in plan.metrics if m.name in main.summaries),
        loss_chart=_loss_chart(shown),
        legend=tuple((arm.title, style) for arm, style, _ in shown),
        other_columns=columns,
        others=others,
        benign=tuple(_benign(main, each, control) for each in main.benign),
    )


def _leading(records: Records) -> Arm | None:
    """The first defence of which there is anything to compare. What the page says of all concepts it says of this one:
    the next must not stand in for it where it is unfinished."""
    there = {(cell.concept, cell.seed, cell.arm) for cell in records.finished if cell.subject == cell.concept}
    control = records.plan.with_role("control")[0].name
    measured = {arm for concept, seed, arm in there if (concept, seed, control) in there}
    return next((arm for arm in records.plan.with_role("defended") if arm.name in measured), None)


def _chart(metric: MetricSpec, arms: Sequence[ArmView], control: Arm) -> Chart:
    summaries = [arm.comparison.summaries[metric.name] for arm in arms]
    main, steps = summaries[0], arms[0].comparison.steps
    series = [_series(control.title, "s0", steps, main.control)]
    for arm, summary in zip(arms, summaries, strict=True):
        series.append(_series(arm.comparison.arm.title, arm.style, arm.comparison.steps, summary.defended))
    levels = []
    if main.base is not None:
        levels = [
            Level(name="base", style="level", y=main.base.value),
            Level(name=f"{statistics.RECOVERED:.0%}", style="back", y=main.goal),
        ]
    return line_chart(metric.title, series, levels=levels)


def _series(name: str, style: str, steps: Sequence[int], curve: Sequence[Interval]) -> Series:
    return Series(
        name=name,
        style=style,
        x=steps,
        y=[point.value for point in curve],
        low=[point.low for point in curve],
        high=[point.high for point in curve],
    )


def _loss_chart(shown: Sequence[tuple[Arm, str, Sequence[Cell]]]) -> Chart | None:
    """The attack's training loss, mean over seeds and over at most 60 stretches of steps."""
    series = []
    for arm, style, cells in shown:
        length = min(len(cell.losses) for cell in cells)
        width = max(1, math.ceil(length / 60))
        x, y = [], []
        for start in range(0, length, width):
            stretch = [v for c in cells for v in c.losses[start : min(start + width, length)] if math.isfinite(v)]
            if stretch:
                x.append(start + min(width, length - start) / 2)
                y.append(sum(stretch) / len(stretch))
        if x:
            series.append(Series(name=arm.title, style=style, x=x, y=y))
    return line_chart("Training loss of the attack", series, markers=False) if series else None


def _benign(main: Comparison, benign: Comparison, control: Arm) -> BenignView:
    metric = next(m for m in main.metrics if m.name in benign.summaries)
    found = benign.summaries[metric.name]
    # Both of the same seeds: their replicates are subtracted.
    common = [seed for seed in main.seeds if seed in benign.seeds]
    comparable = common and benign.control[0].run.attack == main.control[0].run.attack
    return BenignView(
        subject=benign.subject,
        chart=line_chart(
            f"{benign.subject}: {metric.title}",
            [
                _series(control.title, "s0", benign.steps, found.control),
                _series(main.arm.title, "s1", benign.steps, found.defended),
            ],
        ),
        gaps=tuple(
            (
                m,
                benign.summaries[m.name].sgr_mean,
                statistics.relative_sgr(
                    main.only(common).summaries[m.name].sgr_mean, [benign.only(common).summaries[m.name].sgr_mean]
                )
                if comparable
                else None,
            )
            for m in main.metrics
            if m.name in benign.summaries
        ),
    )


def _style(arm: int) -> str:
    """Classes of the style sheet: a colour, and from the second turn of the colours on another way to draw the line."""
    turn, colour = divmod(arm, COLOURS)
    return f"s{colour + 1}" + (f" t{turn}" if turn else "")


def _others(
    main: Comparison, arms: Mapping[str, Sequence[Cell]]
) -> tuple[tuple[str, ...], tuple[tuple[str, tuple[float, ...]], ...]]:
    columns = [("Base model", other_concepts(main.base)), ("Erased", other_concepts(main.erased))]
    columns += [(title, other_concepts(cells)) for title, cells in arms.items()]
    columns = [(title, values) for title, values in columns if values]
    if not columns:
        return (), ()
    ranked = next((i for i, (title, _) in enumerate(columns) if title == main.arm.title), len(columns) - 1)
    names = [name for name in columns[0][1] if all(name in values for _, values in columns)]
    rows = [(name, tuple(values[name] for _, values in columns)) for name in names]
    rows.sort(key=lambda row: row[1][ranked] - row[1][0])
    means = (
        tuple(sum(column) / len(rows) for column in zip(*(values for _, values in rows), strict=True)) if rows else ()
    )
    return tuple(title for title, _ in columns), (("Mean", means), *rows) if rows else ()


def _grids(records: Records, main: Comparison, shown: Sequence[tuple[Arm, str, Sequence[Cell]]]) -> tuple[Grid, ...]:
    """One grid for each picture that was kept, from the first seed. The first is the first: nobody chose it."""
    metric = main.metrics[0]
    kept = min(len(point.pictures) for point in main.defended[0].points)
    grids = []
    for index in range(kept):
        first = []
        for cells, title in ((main.base, "Base"), (main.erased, "Erased")):
            if cells:
                first.append((title, _picture(records, cells[0], 0, index, metric)))
        rows = tuple(
            GridRow(arm, style, tuple(_picture(records, cells[0], i, index, metric) for i in range(len(main.steps))))
            for arm, style, cells in shown
            if cells[0].seed == main.seeds[0] and cells[0].steps == main.steps
        )
        cell = main.control[0]
        before = (main.base or main.erased or main.control)[0]
        grids.append(
            Grid(
                prompt=cell.prompts[index],
                asked_before=before.prompts[index],
                seed=cell.picture_seeds[index],
                first=tuple(first),
                steps=main.steps,
                rows=rows,
            )
        )
    return tuple(grids)


def _picture(records: Records, cell: Cell, point: int, index: int, metric: MetricSpec) -> Picture:
    at = cell.points[point]
    score = at.scores[metric.name][index]
    arm = records.plan.arm(cell.arm)
    when = (
        "" if arm.role in ("base", "erased") else f" after {at.step} attack steps" if at.step else " before the attack"
    )
    alt = f"“{cell.prompts[index]}” from {arm.title}{when}; {metric.title} {score:.2f}"
    data = _inline(records.picture(cell, at.pictures[index])) if index < len(at.pictures) else None
    return Picture(data, alt, f"{score:.2f}")


def _inline(path: Path) -> str | None:
    """A PNG as a data URI. Only what opens as a PNG is embedded, whatever the record points at."""
    from PIL import Image

    try:
        if path.stat().st_size > LARGEST_PICTURE:
            return None
        content = path.read_bytes()
        with Image.open(io.BytesIO(content), formats=["PNG"]) as image:
            image.verify()
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):  # a broken PNG is a SyntaxError
        return None
    return f"data:image/png;base64,{base64.b64encode(content).decode()}"
