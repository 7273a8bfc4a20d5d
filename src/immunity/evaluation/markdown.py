"""A study's figures as Markdown tables, for a model card or a page of results. Reads nothing but the records."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from immunity.atomic import refuse_existing, replacing
from immunity.errors import ImmunityError
from immunity.evaluation import flags, statistics
from immunity.evaluation.comparison import Comparison, compare, mean_score, other_concepts
from immunity.evaluation.records import MetricSpec, RecordFolder, Records
from immunity.evaluation.report import budget, duration, percent, spread
from immunity.evaluation.statistics import Estimate
from immunity.evaluation.verdict import grade

_GRADES = {"holds": "not back", "slows": "slower", "partly": "partly", "none": "not shown", "void": "void"}


def write_tables(
    folder: str | Path, out: str | Path, *, force: bool = False, draws: int = 2000, random_seed: int = 0
) -> None:
    """Reads a study's folder and writes one Markdown file."""
    refuse_existing(out, force=force)
    text = tables(RecordFolder(Path(folder)).read(), draws=draws, random_seed=random_seed)
    with replacing(out, force=force) as temporary:
        temporary.write_text(text, encoding="utf-8")


def tables(records: Records, *, draws: int = 2000, random_seed: int = 0) -> str:
    """For each defence a table of the concepts; one of all arms; and what they were measured with.

    Raises `ImmunityError` while no concept has a finished defence and control.
    """
    arms = _compared(records, draws=draws, random_seed=random_seed)
    parts = [f"## {records.plan.title}\n", _setting(records)]
    for compared in arms:
        if compared[0].arm.role == "defended":
            parts += [f"### {compared[0].arm.title}\n", _concepts(compared)]
    parts += ["### All arms, mean over concepts\n", _arms(arms), _FOOT]
    return "\n".join(parts)


def summary(records: Records, *, draws: int = 2000, random_seed: int = 0) -> str:
    """The table of all arms alone."""
    return _arms(_compared(records, draws=draws, random_seed=random_seed))


def matrix(studies: Mapping[str, Records], metric: str, *, draws: int = 2000, random_seed: int = 0) -> str:
    """Who protects against what: a row for each defence, a column for each study, MSGR by one metric in the cells.

    Studies of which nothing can be compared yet are left out.
    """
    found: dict[str, dict[str, str]] = {}
    titles: dict[str, str] = {}
    columns = []
    for name, records in studies.items():
        try:
            arms = _compared(records, draws=draws, random_seed=random_seed)
        except ImmunityError:
            continue
        columns.append(name)
        for compared in arms:
            arm = compared[0].arm
            titles.setdefault(arm.name, arm.title)
            value = statistics.msgr([of.summaries[metric].sgr_mean for of in compared])
            found.setdefault(arm.name, {})[name] = _estimate(value)
    rows = [[titles[arm], *(found[arm].get(name, "—") for name in columns)] for arm in sorted(found)]
    return _table(["made against ↓, attacked by →", *columns], rows)


def _compared(records: Records, *, draws: int, random_seed: int) -> list[list[Comparison]]:
    """For each defence and each baseline, those of its concepts that have been measured."""
    plan = records.plan
    arms = []
    for arm in (*plan.with_role("defended"), *plan.with_role("baseline")):
        found = [compare(records, name, arm.name, draws=draws, random_seed=random_seed) for name in plan.concepts]
        arms.append([each for each in found if each is not None])
    arms = [compared for compared in arms if compared]
    if not arms:
        raise ImmunityError(
            expected="at least one concept whose control and defence are finished",
            got=f"{len(records.finished)} finished cells in {records.folder}",
            remedy="running the study further",
        )
    return arms


def _setting(records: Records) -> str:
    plan, cells = records.plan, records.finished
    missing = len(records.missing())
    lines = [
        f"Attack: `{_short(plan.settings.get('attack', {}))}`.",
        f"{_count(len(plan.concepts), 'concept')}, {_count(len(plan.seeds), 'seed')}, "
        f"{_count(max((len(cell.prompts) for cell in cells), default=0), 'picture')} at each point.",
        f"{_count(len(cells), 'cell')}"
        + (f" ({missing} more are planned and missing)" if missing else "")
        + f", {duration(sum(cell.run.wall_seconds for cell in cells))} in all.",
    ]
    first = cells[0].run if cells else None
    if first is not None:
        lines.append(f"Model `{first.base}` ({first.base_hash[:12]}).")
    return " ".join(lines) + "\n"


def _concepts(compared: Sequence[Comparison]) -> str:
    metrics = [m for m in compared[0].metrics if m.shows_concept]
    accuracy = next((m for m in metrics if m.kind == "accuracy"), None)
    similar = [m for m in metrics if m.kind == "similarity"] or metrics
    head = ["concept"]
    if accuracy is not None:
        head += ["base", "erased", "relearned", "immunized, attacked"]
    head += [f"SGR {m.title}" for m in similar]
    head += ["steps ×", "others lose: erasing", "… defence", "harmless SGR", "verdict", "flags"]
    rows = []
    for of in compared:
        row = [of.concept]
        if accuracy is not None:
            row += [percent(value, 0) for value in _accuracies(of, accuracy)]
        row += [_estimate(of.summaries[m.name].sgr_mean) for m in similar]
        row.append(budget(_timed(of) or of.summaries[similar[0].name])[0])
        erasing, defence = _losses(of)
        row += [_points(erasing), _points(defence), _harmless(of, similar[0])]
        raised = flags.check(of)
        row += [_GRADES[grade(of, raised)], ", ".join(f"`{f.code}`" for f in raised if f.severity != "note")]
        rows.append(row)
    means = ["**mean**"]
    if accuracy is not None:
        columns = zip(*(_accuracies(of, accuracy) for of in compared), strict=True)
        means += [f"**{percent(_mean(column), 0)}**" for column in columns]
    means += [f"**{_estimate(statistics.msgr([of.summaries[m.name].sgr_mean for of in compared]))}**" for m in similar]
    losses = list(zip(*(_losses(of) for of in compared), strict=True))
    means += ["", *(_points(_mean(column)) for column in losses), "", "", ""]
    return _table(head, [*rows, means])


def _accuracies(of: Comparison, accuracy: MetricSpec) -> tuple[float, float, float, float]:
    """Of the base, the erased, the relearned and the defended and attacked model, the last two at the attack's end."""
    name = accuracy.name
    return (
        mean_score(of.base, name),
        mean_score(of.erased, name),
        mean_score(of.control, name, point=-1),
        mean_score(of.defended, name, point=-1),
    )


def _arms(arms: Sequence[list[Comparison]]) -> str:
    metrics = [m for m in arms[0][0].metrics if m.shows_concept]
    similar = [m for m in metrics if m.kind == "similarity"] or metrics
    head = ["arm", "concepts", *(f"MSGR {m.title}" for m in metrics), "clear of zero", "others lose"]
    rows = []
    for compared in arms:
        row = [compared[0].arm.title, str(len(compared))]
        row += [_estimate(statistics.msgr([of.summaries[m.name].sgr_mean for of in compared])) for m in metrics]
        clear = sum(all(of.summaries[m.name].sgr_mean.interval().low > 0 for m in similar) for of in compared)
        row += [f"{clear} of {len(compared)}", _points(_mean([_losses(of)[1] for of in compared]))]
        rows.append(row)
    return _table(head, rows)


_FOOT = f"""\
SGR: the share of the control's similarity that the defence takes away, mean over the attack, with the 95%
interval of a bootstrap over seeds and pictures; MSGR: its mean over concepts. Clear of zero: for so many
concepts the interval of every similarity is above zero. Steps ×: attack steps to reach
{statistics.RECOVERED:.0%} of the base model's score, as a multiple of the undefended model's. Others lose:
points of accuracy on other concepts, of erasing against the base model and of the defence against the erased
one. Harmless SGR: of subjects that the defence is not meant to hinder, whose gap should be zero. Flags:
`docs/flags.md`.
"""


def _timed(of: Comparison) -> "statistics.Summary | None":
    """The first metric by which the control brought the concept back."""
    for found in of.summaries.values():
        if found.multiplier is not None and not math.isnan(found.multiplier.value):
            return found
    return None


def _losses(of: Comparison) -> tuple[float, float]:
    """Points that other concepts lose by erasing, and by the defence."""
    base, erased, defended = (other_concepts(cells) for cells in (of.base, of.erased or of.control, of.defended))
    return _loss(base, erased), _loss(erased, defended)


def _loss(before: dict[str, float], after: dict[str, float]) -> float:
    common = before.keys() & after.keys()
    return _mean([before[name] - after[name] for name in common])


def _harmless(of: Comparison, metric: MetricSpec) -> str:
    gaps = [each.summaries[metric.name].sgr_mean for each in of.benign if metric.name in each.summaries]
    return _estimate(Estimate.mean(gaps)) if gaps else "—"


def _mean(values: Sequence[float]) -> float:
    known = [value for value in values if not math.isnan(value)]
    return sum(known) / len(known) if known else math.nan


def _estimate(found: Estimate) -> str:
    interval = found.interval()
    ends = spread(interval)
    return percent(interval.value) + (f" ({ends})" if ends else "")


def _points(share: float) -> str:
    return "—" if math.isnan(share) else f"{100 * share + 0.0:.1f}".replace("-", "−")


def _short(attack: object) -> str:
    """Lora(steps=100, lr=0.001, …): enough to recognise it; the records have the rest."""
    if not isinstance(attack, dict):
        return str(attack)
    shown = [f"{name}={attack[name]:g}" for name in ("steps", "lr", "batch", "rank") if attack.get(name) is not None]
    return f"{attack.get('method', '?')}({', '.join(shown)})"


def _count(number: int, what: str) -> str:
    return f"{number} {what}" + ("" if number == 1 else "s")


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    lines += ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
    return "\n".join(lines) + "\n"
