"""Pictures and charts of studies, for docs/results.md: what each model drew, and figures as curves. For `publish.py`.

The first picture of the first seed is shown of each concept: nobody chose it.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean

from immunity.records import Arm, CellKey, Records
from immunity.report.comparison import Comparison, compare
from immunity.report.verdict import budget_metric

GAP, SCALE = 4, 1.25
COLOURS = (
    "#4269d0", "#efb118", "#3ca951", "#ff725c", "#a463f2", "#9c6b4e",
    "#6cc5b0", "#ff8ab7", "#97bbf5", "#9498a0", "#c2185b", "#7a8b00",
)  # fmt: skip
CONTROL = "#333333"

Row = tuple[str, Sequence[Path | None]]
"""A label, and a picture for each column."""


def mosaic(rows: Sequence[Row], columns: Sequence[str], target: Path) -> bool:
    """Writes a PNG; False where a picture is missing, as all are beside the records that are kept."""
    from PIL import Image, ImageDraw, ImageFont

    if not rows or not all(file is not None and file.exists() for _, files in rows for file in files):
        return False
    font = ImageFont.load_default(size=13)
    left = max(round(font.getlength(label)) for label, _ in rows) + 3 * GAP
    with Image.open(_known(rows[0][1][0])) as first:
        side = round(first.width * SCALE)
    wide = max(side, *(round(font.getlength(name)) + 2 * GAP for name in columns))
    sheet = Image.new("RGB", (left + len(columns) * (wide + GAP), len(rows) * (side + GAP) + 20), "white")
    draw = ImageDraw.Draw(sheet)
    for column, name in enumerate(columns):
        draw.text((left + column * (wide + GAP) + wide / 2, 10), name, fill="black", font=font, anchor="mm")
    for row, (label, files) in enumerate(rows):
        top = 20 + row * (side + GAP)
        draw.text((0, top + side / 2), label, fill="black", font=font, anchor="lm")
        for column, file in enumerate(files):
            with Image.open(_known(file)) as picture:
                enlarged = picture.convert("RGB").resize((side, side), Image.Resampling.LANCZOS)
            sheet.paste(enlarged, (left + column * (wide + GAP) + (wide - side) // 2, top))
    target.parent.mkdir(parents=True, exist_ok=True)
    # A quarter of the size, and nobody sees the difference.
    sheet.quantize(256, dither=Image.Dither.NONE).save(target, optimize=True)
    return True


def strip(records: Records, target: Path, *, arms: Sequence[Arm] | None = None) -> bool:
    """The concepts side by side: the base model, the erased one, the attack on it, and on each of the arms."""
    plan = records.plan
    attacked = plan.with_role("defended", "baseline") if arms is None else arms
    rows: list[Row] = [
        *(("base model", _column(records, arm, 0)) for arm in plan.with_role("base")),
        *(("erased", _column(records, arm, 0)) for arm in plan.with_role("erased")),
        *(("attacked", _column(records, arm, -1)) for arm in plan.with_role("control")),
        *((f"{arm.title}, attacked", _column(records, arm, -1)) for arm in attacked),
    ]
    return mosaic(rows, plan.concepts, target)


def along(records: Records, target: Path, *, concepts: int = 3) -> bool:
    """The first concepts, a row for each model that is attacked: what it draws before, during and after the attack."""
    plan = records.plan
    control, *others = plan.with_role("control", "defended", "baseline")
    titles = {control.name: "undefended"} | {arm.name: arm.title for arm in others}
    steps: Sequence[int] = ()
    rows: list[Row] = []
    for concept in plan.concepts[:concepts]:
        for arm, title in titles.items():
            if (cell := records.cells.get(CellKey(concept, plan.seeds[0], arm, concept))) is None:
                return False
            steps = cell.steps
            rows.append((f"{concept}, {title}", [_picture(records, concept, arm, i) for i in range(len(steps))]))
    return mosaic(rows, [f"{step} steps" for step in steps], target)


def across(studies: Mapping[str, Records], target: Path) -> bool:
    """Attacks side by side, of their first concept: without a defence, and with each of them."""
    titles = {arm.name: arm.title for each in studies.values() for arm in each.plan.with_role("defended")}
    plans = {name: each.plan for name, each in studies.items()}

    def row(arm: str) -> list[Path | None]:
        return [_picture(each, plans[name].concepts[0], arm, -1) for name, each in studies.items()]

    control = next(iter(plans.values())).with_role("control")[0]
    rows: list[Row] = [("undefended", row(control.name)), *((titles[arm], row(arm)) for arm in sorted(titles))]
    return mosaic(rows, list(studies), target)


def _column(records: Records, arm: Arm, point: int) -> list[Path | None]:
    return [_picture(records, concept, arm.name, point) for concept in records.plan.concepts]


def _picture(records: Records, concept: str, arm: str, point: int) -> Path | None:
    cell = records.cells.get(CellKey(concept, records.plan.seeds[0], arm, concept))
    if cell is None or not cell.points[point].pictures:
        return None
    return records.picture(cell, cell.points[point].pictures[0])


def _known(file: Path | None) -> Path:
    assert file is not None
    return file


def curves(studies: Mapping[str, Records], target: Path) -> None:
    """What the attacked models draw along the attack, mean over concepts: a row a study, a column a measure.

    The band is that of the seeds, from the lowest to the highest.
    """
    from matplotlib.figure import Figure

    metrics = [each for each in next(iter(studies.values())).plan.metrics if each.shows_concept]
    size = (3.1 * len(metrics), 2.4 * len(studies) + 0.5)
    figure = Figure(figsize=size, layout="constrained")
    panels = figure.subplots(len(studies), len(metrics), squeeze=False, sharex="row")
    for row, (name, records) in zip(panels, studies.items(), strict=True):
        plan = records.plan
        arms = [*plan.with_role("control"), *plan.with_role("defended", "baseline")[: len(COLOURS)]]
        for panel, metric in zip(row, metrics, strict=True):
            for arm, colour in zip(arms, (CONTROL, *COLOURS), strict=False):
                steps, seeds = _by_seed(records, arm, metric.name)
                if not seeds:
                    continue
                mean = [fmean(column) for column in zip(*seeds, strict=True)]
                dashed = {"label": "undefended", "linestyle": "--", "zorder": 3} if colour == CONTROL else {}
                panel.plot(steps, mean, **({"label": arm.title, "color": colour, "marker": "."} | dashed))
                ends = [(min(column), max(column)) for column in zip(*seeds, strict=True)]
                panel.fill_between(steps, *zip(*ends, strict=True), color=colour, alpha=0.15, linewidth=0)
            panel.set_title(metric.title if len(studies) == 1 else f"{name}: {metric.title}", fontsize=9)
            _tidy(panel)
        row[0].set_xlabel("steps of the attack", fontsize=8)
    handles, labels = panels[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, fontsize=8, frameon=False)
    _save(figure, target)


def _by_seed(records: Records, arm: Arm, metric: str) -> tuple[Sequence[int], list[list[float]]]:
    """The steps, and for each seed that all concepts have the mean score of the arm over concepts and pictures."""
    plan, found = records.plan, []
    steps: Sequence[int] = ()
    for seed in plan.seeds:
        cells = [records.cells.get(CellKey(name, seed, arm.name, name)) for name in plan.concepts]
        points = [cell.points for cell in cells if cell is not None]
        if len(points) == len(plan.concepts):
            steps = [point.step for point in points[0]]
            found.append([fmean(fmean(each.scores[metric]) for each in at) for at in zip(*points, strict=True)])
    return steps, found


def choices(axes: Mapping[str, Sequence[str]], studies: Mapping[str, Records], target: Path) -> None:
    """The attacker's choices, an axis a column: MSGR by each similarity above, and what the defence costs below."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(sum(len(each) for each in axes.values()) * 0.62 + 1.5, 5.6), layout="constrained")
    widths = [len(names) for names in axes.values()]
    panels = figure.subplots(2, len(axes), sharey="row", width_ratios=widths, squeeze=False)
    for column, (axis, names) in enumerate(axes.items()):
        upper, lower = panels[0][column], panels[1][column]
        compared = [_first_defence(studies[name]) if name in studies else [] for name in names]
        for place, found in enumerate(compared):
            _gaps(upper, place, found, labelled=column == 0 and place == 0)
            _budgets(lower, place, found, labelled=column == 0 and place == 0)
        upper.set_title(axis, fontsize=9)
        upper.axhline(0, color="#999999", linewidth=0.8)
        lower.axhline(1, color="#999999", linewidth=0.8)
        lower.set_yscale("log", base=2)
        for panel in (upper, lower):
            panel.set_xticks(range(len(names)), names, rotation=60, ha="right")
            panel.set_xlim(-0.6, len(names) - 0.4)
            _tidy(panel)
        upper.tick_params(labelbottom=False)
    panels[0][0].set_ylabel("MSGR, %", fontsize=8)
    panels[1][0].set_ylabel("steps ×, each concept", fontsize=8)
    panels[1][0].yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    handles, labels = [], []
    for panel in panels[:, 0]:
        more = panel.get_legend_handles_labels()
        handles, labels = [*handles, *more[0]], [*labels, *more[1]]
    figure.legend(handles, labels, loc="outside lower center", ncols=4, fontsize=8, frameon=False)
    _save(figure, target)


def _first_defence(records: Records) -> list[Comparison]:
    arm = records.plan.with_role("defended")[0].name
    return [each for name in records.plan.concepts if (each := compare(records, name, arm)) is not None]


def _gaps(panel, place: int, found: Sequence[Comparison], *, labelled: bool) -> None:
    from immunity.report.statistics import msgr

    for shift, (metric, colour) in enumerate(zip(found[0].judged_by if found else (), COLOURS, strict=False)):
        gap = msgr([of.summaries[metric.name].sgr_mean for of in found]).interval()
        below, above = gap.value - gap.low, gap.high - gap.value
        panel.errorbar(
            place + (shift - 1) * 0.18,
            100 * gap.value,
            yerr=[[100 * below], [100 * above]],
            fmt="o",
            markersize=4,
            color=colour,
            linewidth=1.2,
            label=metric.title if labelled else None,
        )
    if found:
        metric = found[0].judged_by[0]
        last = msgr([of.summaries[metric.name].sgr_final for of in found]).value
        name = f"{metric.title}, at the last step" if labelled else None
        panel.plot([place - 0.36], [100 * last], "D", color=COLOURS[0], markersize=4, mfc="white", label=name)


def _budgets(panel, place: int, found: Sequence[Comparison], *, labelled: bool) -> None:
    """A dot for each concept whose multiplier is known, an arrow up where only a bound is; none where nothing is."""
    dots, arrows = [], []
    for of in found:
        metric = budget_metric(of)
        if metric is None:
            continue
        summary = of.summaries[metric.name]
        value = float("nan") if summary.times is None else summary.times.value
        if value == float("inf"):
            arrows.append(summary.beyond)
        elif value == value:
            dots.append(value)
        elif summary.at_least == summary.at_least:
            arrows.append(summary.at_least)
    spread = [place + (i - (len(dots) + len(arrows) - 1) / 2) * 0.16 for i in range(len(dots) + len(arrows))]
    known, bounds = spread[: len(dots)], spread[len(dots) :]
    panel.plot(known, dots, "o", color=CONTROL, markersize=4, label="attack steps ×" if labelled else None)
    panel.plot(bounds, arrows, "^", color=CONTROL, markersize=6, mfc="white", label="at least" if labelled else None)


def _tidy(panel) -> None:
    panel.spines[["top", "right"]].set_visible(False)
    panel.tick_params(labelsize=7)


def _save(figure, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(target, dpi=110, metadata={"Software": None})
