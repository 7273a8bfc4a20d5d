"""One self-contained page from a study's records. Reads nothing but the records; no model, no network."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from immunity.atomic import refuse_existing, replacing
from immunity.evaluation import statistics
from immunity.evaluation.comparison import loss_of_others, nothing_compared
from immunity.evaluation.records import RecordFolder, Records
from immunity.evaluation.statistics import Estimate, Interval, Summary
from immunity.evaluation.verdict import headline_metric, judge_all
from immunity.evaluation.views import ConceptView, concept_view


def write_report(
    folder: str | Path, out: str | Path, *, force: bool = False, draws: int = 2000, random_seed: int = 0
) -> None:
    """Reads a study's folder and writes one HTML file that needs nothing else.

    `draws` and `random_seed` are of the bootstrap: the same records give the same bytes.
    """
    refuse_existing(out, force=force)
    page = render(RecordFolder(Path(folder)).read(), draws=draws, random_seed=random_seed)
    with replacing(out, force=force) as temporary:
        temporary.write_text(page, encoding="utf-8")


def render(records: Records, *, draws: int = 2000, random_seed: int = 0) -> str:
    """The page. Raises `ImmunityError` while no concept has a finished defence and control."""
    import jinja2

    concepts = [
        view
        for name in records.plan.concepts
        if (view := concept_view(records, name, draws=draws, random_seed=random_seed))
    ]
    if not concepts:
        raise nothing_compared(records)
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("immunity.evaluation"),
        autoescape=True,  # every name and number in a record may come from a stranger
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"percent": percent, "spread": spread, "pretty": _pretty, "duration": duration}
    judged = [(each.main.comparison, each.main.verdict) for each in concepts if each.main.verdict]
    metrics = [metric for metric in records.plan.metrics if metric.shows_concept]
    means = {m.name: statistics.msgr([c.main.comparison.summaries[m.name].sgr_mean for c in concepts]) for m in metrics}
    lead = headline_metric(concepts[0].main.comparison) or metrics[0].name
    lead_title = next(metric.title for metric in metrics if metric.name == lead)
    first = concepts[0].main.comparison.control[0].run
    cells = records.finished
    return environment.get_template("report.html.jinja").render(
        plan=records.plan,
        concepts=concepts,
        verdict=judge_all(judged, means[lead], lead_title),
        tiles=_tiles(concepts, lead, lead_title),
        metrics=metrics,
        means=means,
        budget=budget,
        missing=records.missing(),
        total=sum(1 for _ in records.plan.cells()),
        run=first,
        versions=_merged([cell.run.versions for cell in cells]),
        machines=sorted({cell.run.machine for cell in cells if cell.run.machine}),
        seconds=sum(cell.run.wall_seconds for cell in cells),
        peak=max(cell.run.peak_bytes for cell in cells) / 1e9,
        cells=cells,
        recovered=statistics.RECOVERED,
        draws=draws,
        random_seed=random_seed,
    )


def _tiles(concepts: Sequence[ConceptView], lead: str, title: str) -> list[tuple[str, str, str]]:
    """The four figures of the page's head: what, how much, and how sure."""
    several = len(concepts) > 1
    mains = [view.main.comparison for view in concepts]
    gap = Estimate.mean([of.summaries[lead].sgr_mean for of in mains]).interval()
    tiles = [("Similarity gap", percent(gap.value), f"{spread(gap)} · {title}, mean over the attack")]
    if several:
        held = sum(not math.isfinite(of.summaries[lead].defended_steps) for of in mains)
        tiles.append(("Not brought back", f"{held} of {len(mains)}", f"concepts, by {title}, in this attack"))
    else:
        shown, interval = budget(mains[0].summaries[lead])
        tiles.append(("Attack budget", shown, f"{interval} · steps to bring it back ÷ without defence".lstrip(" ·")))
    losses = [loss_of_others(of.control, of.defended) for of in mains]
    known = [loss for loss in losses if not math.isnan(loss)]
    if known:
        change = -100 * sum(known) / len(known)
        tiles.append(
            ("Other concepts", f"{change:+.1f} pts".replace("-", "−"), "mean accuracy, against the undefended model")
        )
    gaps = [benign.summaries[lead].sgr_mean for of in mains for benign in of.benign]
    if gaps:
        benign = Estimate.mean(gaps).interval()
        tiles.append(("Harmless subjects", percent(benign.value), f"{spread(benign)} · their gap; should be 0"))
    return tiles


def budget(found: Summary) -> tuple[str, str]:
    """The multiplier and its interval, as text; '>' where the attack ended first, a dash where it is undefined."""
    if found.multiplier is None or math.isnan(found.multiplier.value):
        return "—", ""

    def times(value: float) -> str:
        return f">{found.at_least:.1f}×" if math.isinf(value) else f"{value:.1f}×"

    value, low, high = found.multiplier.interval()
    return times(value), f"{times(low)} to {times(high)}" if math.isfinite(low) else ""


def percent(value: float, digits: int = 1) -> str:
    return f"{_hundredfold(value, digits)}%" if math.isfinite(value) else "—"


def spread(interval: Interval) -> str:
    """The ends of an interval of shares, in per cent."""
    if math.isnan(interval.low):
        return ""
    return f"{_hundredfold(interval.low, 1)} to {_hundredfold(interval.high, 1)}%"


def _hundredfold(share: float, digits: int) -> str:
    # Adding zero turns the −0.0 that rounding leaves into 0.0.
    return f"{round(100 * share, digits) + 0.0:.{digits}f}".replace("-", "−")


def duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"


def _pretty(value: object) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False, default=dict)


def _merged(all_versions: Sequence[Mapping[str, str]]) -> dict[str, str]:
    """Every version that was used of each package."""
    found: dict[str, set[str]] = {}
    for versions in all_versions:
        for name, version in versions.items():
            found.setdefault(name, set()).add(version)
    return {name: ", ".join(sorted(versions)) for name, versions in sorted(found.items())}
