"""One self-contained page from a study's records. Reads nothing but the records; no model, no network."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from immunity.atomic import refuse_existing, replacing
from immunity.records import MetricSpec, RecordFolder, Records
from immunity.report import statistics
from immunity.report.comparison import RANDOM_SEED, Comparison, nothing_compared
from immunity.report.statistics import Estimate
from immunity.report.verdict import GRADES, budget_metric, budget_metrics, judge_all
from immunity.report.views import ConceptView, concept_view
from immunity.report.wording import UNDEFINED, budget, duration, joined, percent, points, spread


def write_report(folder: str | Path, out: str | Path, *, force: bool = False, draws: int = 2000) -> None:
    """Reads a study's folder and writes one HTML file that needs nothing else.

    `draws` are of the bootstrap: the same records give the same bytes.
    """
    refuse_existing(out, force=force)
    page = render(RecordFolder(Path(folder)).read(), draws=draws)
    with replacing(out, force=force) as temporary:
        temporary.write_text(page, encoding="utf-8")


def render(records: Records, *, draws: int = 2000) -> str:
    """The page. Raises `ImmunityError` while no concept has a finished defence and control."""
    import jinja2

    concepts = [view for name in records.plan.concepts if (view := concept_view(records, name, draws=draws))]
    if not concepts:
        raise nothing_compared(records)
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("immunity.report"),
        autoescape=True,  # every name and number in a record may come from a stranger
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"percent": percent, "spread": spread, "pretty": _pretty, "duration": duration}
    judged = [(each.main.comparison, each.main.verdict) for each in concepts if each.main.verdict]
    metrics = [metric for metric in records.plan.metrics if metric.shows_concept]
    means = {m.name: statistics.msgr([c.main.comparison.summaries[m.name].sgr_mean for c in concepts]) for m in metrics}
    void = sum(verdict.grade == "void" for _, verdict in judged)
    lead = concepts[0].main.comparison.judged_by[0]
    timed, timed_by_all = budget_metrics([view.main.comparison for view in concepts])
    first = concepts[0].main.comparison.control[0].run
    cells = records.finished
    return environment.get_template("report.html.jinja").render(
        plan=records.plan,
        concepts=concepts,
        verdict=judge_all(judged, means[lead.name], lead.title),
        tiles=_tiles(concepts, lead, void),
        metrics=metrics,
        means=means,
        grades=GRADES,
        void=void,
        budget=budget,
        timed=timed,
        timed_by_all=timed_by_all,
        missing=records.missing(),
        diverged=records.diverged,
        total=sum(1 for _ in records.plan.cells()),
        run=first,
        versions=_merged([cell.run.versions for cell in cells]),
        machines=sorted({cell.run.machine for cell in cells if cell.run.machine}),
        seconds=sum(cell.run.wall_seconds for cell in cells),
        peak=max(cell.run.peak_bytes for cell in cells) / 1e9,
        cells=cells,
        recovered=statistics.RECOVERED,
        draws=draws,
        random_seed=RANDOM_SEED,
    )


def _tiles(concepts: Sequence[ConceptView], lead: MetricSpec, void: int) -> list[tuple[str, str, str]]:
    """The four figures of the page's head: what, how much, and how sure. The gaps are by the metric `lead`."""
    mains = [view.main.comparison for view in concepts]
    gap = Estimate.mean([of.summaries[lead.name].sgr_mean for of in mains]).interval()
    name = "Similarity gap" if lead.kind == "similarity" else "Gap"
    counted = f"{void} of {len(concepts)} void" if void else ""
    tiles = [(name, percent(gap.value), joined(spread(gap), f"{lead.title}, mean over the attack", counted))]
    if len(concepts) > 1:
        held = sum(view.main.verdict is not None and view.main.verdict.grade == "holds" for view in concepts)
        tiles.append(("Not brought back", f"{held} of {len(mains)}", "concepts, by any measure, in this attack"))
    else:
        tiles.append(_budget_tile(mains[0]))
    lost = [of.lost_by_defence for of in mains if of.lost_by_defence is not None]
    if lost:
        mean = Estimate.mean(lost).interval()
        ends = f"{points(-mean.high, sign=True)} to {points(-mean.low, sign=True)}"
        note = joined(ends, "mean accuracy, against the undefended model")
        tiles.append(("Other concepts", f"{points(-mean.value, sign=True)} pts", note))
    gaps = [benign.summaries[lead.name].sgr_mean for of in mains for benign in of.benign]
    if gaps:
        benign = Estimate.mean(gaps).interval()
        tiles.append(("Harmless subjects", percent(benign.value), joined(spread(benign), "their gap; should be 0")))
    return tiles


def _budget_tile(of: Comparison) -> tuple[str, str, str]:
    metric = budget_metric(of)
    if metric is None:
        return "Attack budget", UNDEFINED, "no measure tells when the concept is back"
    shown, ends = budget(of.summaries[metric.name])
    return "Attack budget", shown, joined(ends, f"steps to bring it back ÷ without defence, by {metric.title}")


def _pretty(value: object) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False, default=dict)


def _merged(all_versions: Sequence[Mapping[str, str]]) -> dict[str, str]:
    """Every version that was used of each package."""
    found: dict[str, set[str]] = {}
    for versions in all_versions:
        for name, version in versions.items():
            found.setdefault(name, set()).add(version)
    return {name: ", ".join(sorted(versions)) for name, versions in sorted(found.items())}
