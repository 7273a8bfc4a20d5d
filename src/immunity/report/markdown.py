"""A study's figures as Markdown tables, for a model card or a page of results. Reads nothing but the records."""

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from immunity.atomic import refuse_existing, replacing
from immunity.errors import ImmunityError
from immunity.records import RECOGNISING, MetricSpec, RecordFolder, Records
from immunity.report import flags, statistics
from immunity.report.comparison import Comparison, compare, mean_score, nothing_compared
from immunity.report.statistics import Estimate
from immunity.report.verdict import GRADES, budget_metrics, grade
from immunity.report.wording import UNDEFINED, budget, duration, percent, points, spread


def write_tables(folder: str | Path, out: str | Path, *, force: bool = False, draws: int = 2000) -> None:
    """Reads a study's folder and writes one Markdown file."""
    refuse_existing(out, force=force)
    text = tables(RecordFolder(Path(folder)).read(), draws=draws)
    with replacing(out, force=force) as temporary:
        temporary.write_text(text, encoding="utf-8")


def tables(records: Records, *, source: str = "", legend: bool = True, draws: int = 2000) -> str:
    """For each defence a table of the concepts; one of all arms; and what they were measured with.

    `source`: where the study is defined, in words. `legend`: whether to say what the columns mean. Raises
    `ImmunityError` while no concept has a finished defence and control.
    """
    arms = _compared(records, draws=draws)
    parts = [f"## {records.plan.title}\n", setting(records, source)]
    for compared in arms:
        if compared[0].arm.role == "defended":
            parts += [f"### {compared[0].arm.title}\n", _concepts(compared)]
    parts += ["### All arms, mean over concepts\n", _arms(arms), *([LEGEND] if legend else [])]
    return "\n".join(parts)


def summary(records: Records, *, draws: int = 2000) -> str:
    """The table of all arms alone."""
    return _arms(_compared(records, draws=draws))


def matrices(
    studies: Mapping[str, Records], *, at_the_end: bool = False, draws: int = 2000
) -> Mapping[MetricSpec, str]:
    """Who protects against what, by each similarity: a row for each defence, a column for each study, MSGR inside; or
    the same of the attacks' last steps alone.

    Studies of which nothing can be compared yet are left out.
    """
    columns: dict[str, dict[str, list[Comparison]]] = {}
    for name, records in studies.items():
        with suppress(ImmunityError):
            arms = _compared(records, draws=draws)
            columns[name] = {compared[0].arm.name: compared for compared in arms}
    titles = {arm: compared[0].arm.title for arms in columns.values() for arm, compared in arms.items()}
    head = ["made against ↓, attacked by →", *columns]

    def cell(compared: list[Comparison] | None, metric: str) -> str:
        if compared is None:
            return UNDEFINED
        found = [of.summaries[metric] for of in compared]
        mean = statistics.msgr([each.sgr_final if at_the_end else each.sgr_mean for each in found])
        return _estimate(mean) + ("†" if any(map(_void, compared)) else "")

    metrics = next((next(iter(arms.values()))[0].judged_by for arms in columns.values()), ())
    return {
        metric: _table(
            head,
            [[titles[arm], *(cell(arms.get(arm), metric.name) for arms in columns.values())] for arm in sorted(titles)],
        )
        for metric in metrics
    }


def _compared(records: Records, *, draws: int) -> list[list[Comparison]]:
    """For each defence and each baseline, those of its concepts that have been measured."""
    plan = records.plan
    arms = []
    for arm in (*plan.with_role("defended"), *plan.with_role("baseline")):
        found = [compare(records, name, arm.name, draws=draws) for name in plan.concepts]
        arms.append([each for each in found if each is not None])
    arms = [compared for compared in arms if compared]
    if not arms:
        raise nothing_compared(records)
    return arms


def setting(records: Records, source: str = "") -> str:
    """What was attacked with what, how often, and on which model: one line."""
    plan, cells = records.plan, records.finished
    missing = len(records.missing())
    lines = [
        *([f"Study: {source}."] if source else []),
        f"Attack: `{_short(plan.settings.get('attack', {}))}`.",
        f"{_count(len(plan.concepts), 'concept')}, {_count(len(plan.seeds), 'seed')}, "
        f"{_count(max((len(cell.prompts) for cell in cells), default=0), 'picture')} at each point.",
        f"{_count(len(cells), 'cell')}"
        + (f" ({missing} more are planned and missing{_came_to_nothing(records)})" if missing else "")
        + f", {duration(sum(cell.run.wall_seconds for cell in cells))} in all.",
    ]
    first = cells[0].run if cells else None
    if first is not None:
        dtype = f", in {plan.settings['dtype']}" if "dtype" in plan.settings else ""
        lines.append(f"Model `{first.base}` ({first.base_hash[:12]}){dtype}.")
    return " ".join(lines) + "\n"


def _came_to_nothing(records: Records) -> str:
    said = ", ".join(f"{each.subject} {each.arm} seed {each.seed}" for each in records.diverged)
    return f", of which {len(records.diverged)} diverged: {said}" if said else ""


def _concepts(compared: Sequence[Comparison]) -> str:
    seen_by = (m for kind in RECOGNISING for m in compared[0].metrics if m.shows_concept and m.kind == kind)
    accuracy = next(seen_by, None)
    similar = compared[0].judged_by
    head, taught = ["concept"], compared[0].taught
    if accuracy is not None:
        head += (
            ["base", "taught", "defended, taught"] if taught else ["base", "erased", "relearned", "defended, attacked"]
        )
    head += [f"SGR {m.title}" for m in similar]
    timed, timed_by_all = budget_metrics(compared)
    head += [f"steps × by {timed_by_all.title}" if timed_by_all else "steps ×"]
    head += ["others lose: erasing", "… defence", "harmless SGR", "verdict", "flags"]
    accuracies = [_accuracies(of, accuracy) for of in compared] if accuracy is not None else [()] * len(compared)
    rows = []
    for of, metric, seen in zip(compared, timed, accuracies, strict=True):
        raised = flags.check(of)
        rows.append(
            [
                of.concept,
                *(percent(value, 0) for value in seen),
                *(_estimate(of.summaries[m.name].sgr_mean) for m in similar),
                _budget(of, metric, named=timed_by_all is None),
                _lost([of.lost_by_erasing]),
                _lost([of.lost_by_defence]),
                _harmless([of], similar[0]),
                GRADES[grade(of, raised)],
                ", ".join(f"`{flag.code}`" for flag in raised if flag.severity != "note"),
            ]
        )
    means = ["**mean**", *(f"**{percent(_mean(column), 0)}**" for column in zip(*accuracies, strict=True))]
    means += [f"**{_msgr(compared, m.name)}**" for m in similar]
    erasing, defending = [of.lost_by_erasing for of in compared], [of.lost_by_defence for of in compared]
    means += ["", _lost(erasing), _lost(defending), "", "", ""]
    return _table(head, [*rows, means])


def _accuracies(of: Comparison, accuracy: MetricSpec) -> tuple[float, ...]:
    """Of the base model, the erased one if there is any, the control and the defence, these two at the attack's end."""
    before = (of.base,) if of.taught else (of.base, of.erased)
    after = (mean_score(cells, accuracy.name, point=-1) for cells in (of.control, of.defended))
    return (*(mean_score(cells, accuracy.name) for cells in before), *after)


def _arms(arms: Sequence[list[Comparison]]) -> str:
    shown = [m for m in arms[0][0].metrics if m.shows_concept]
    # A classifier that sees nothing at one look at the undefended model has no ratio there.
    metrics = [m for m in shown if any(_msgr(compared, m.name) != UNDEFINED for compared in arms)]
    head = ["arm", "concepts", *(f"MSGR {m.title}" for m in metrics), "clear of zero", "others lose"]
    harmless = [_harmless(compared, compared[0].judged_by[0]) for compared in arms]
    first = arms[0][0].judged_by[0].name
    at_start = [_mean_of(compared, lambda of: of.summaries[first].sgr_before) for compared in arms]
    looked = set(at_start) != {UNDEFINED}
    head[-2:-2] = ["before", "at the end", "gained"] if looked else ["at the end"]
    head += ["harmless SGR"] if set(harmless) != {UNDEFINED} else []
    rows = []
    for compared, hindered, before in zip(arms, harmless, at_start, strict=True):
        void = sum(map(_void, compared))
        row = [compared[0].arm.title, f"{len(compared)}, {void} void" if void else str(len(compared))]
        row += [_msgr(compared, m.name) for m in metrics]
        row += [before] if looked else []
        row.append(_mean_of(compared, lambda of: of.summaries[first].sgr_final))
        row += [_mean_of(compared, lambda of: of.summaries[first].gained)] if looked else []
        clear = sum(all(of.clear) for of in compared)
        row += [f"{clear} of {len(compared)}", _lost([of.lost_by_defence for of in compared]), hindered]
        rows.append(row[: len(head)])
    nothing = ["*had the attack brought nothing back*", "", *(_if_nothing(arms[0], m.name) for m in metrics)]
    rows.append([*nothing, *[""] * (len(head) - len(nothing))])
    return _table(head, rows)


def _mean_of(compared: Sequence[Comparison], figure: Callable[[Comparison], Estimate | None]) -> str:
    found = [each for each in map(figure, compared) if each is not None]
    return _estimate(Estimate.mean(found)) if found else UNDEFINED


def _void(of: Comparison) -> bool:
    return grade(of, flags.check(of)) == "void"


def _if_nothing(compared: Sequence[Comparison], metric: str) -> str:
    found = [of.summaries[metric].sgr_if_nothing for of in compared]
    known = [each for each in found if each is not None]
    return _estimate(Estimate.mean(known)) if known and len(known) == len(found) else UNDEFINED


LEGEND = f"""\
SGR: the share of the control's similarity that the defence takes away, mean over the looks at the attack (not weighed
by the steps between them), with the 95% interval of a bootstrap over seeds and pictures, which with three seeds is too
narrow where these differ much (`few-seeds`); MSGR: its mean over concepts. Before, at the end: the same at the attack's
start, which the mean does not count, and at its last step, by the first similarity. Gained: what the attack adds to
that similarity from start to end, as a share of what it adds without the defence; at 100% the defended model learns as
much, from further behind, and a model that is erased once more may do as well (`head-start`). Had the attack brought
nothing back: the MSGR of a model that stays as the control was before the attack. Clear of zero: for so many concepts
the interval of every similarity is above zero. Steps ×: attack steps to reach {statistics.RECOVERED:.0%} of the base
model's score, or of what the undefended model learns where the base model never knew it, as a multiple of the
undefended model's, by the first measure that can tell (>: the attack ended first; ≥: the undefended model was back by
the first look). Others lose: points of accuracy on other concepts, of erasing against the base model and of the defence
against the erased one. Harmless SGR: of subjects that the defence is not meant to hinder, whose gap should be zero;
where they were taught by a stronger attack, it is smaller for that alone (`benign-unlike`). Verdicts: not back, within
this attack, by any measure; slower, the gap is clear of zero by every similarity; partly, by some; not shown, by none;
void (in a matrix †), a flag says that the figures mean something else: an attack that fails without a defence too, a
model that draws nothing any more, a concept that comes back faster. Cautions and worse are listed under flags; what
each means is in `docs/flags.md`.
"""


def _lost(found: Sequence[Estimate | None]) -> str:
    """Points of accuracy, mean over concepts."""
    known = [each for each in found if each is not None]
    if not known:
        return UNDEFINED
    lost = Estimate.mean(known).interval()
    return f"{points(lost.value)} ({points(lost.low)} to {points(lost.high)})"


def _harmless(compared: Sequence[Comparison], metric: MetricSpec) -> str:
    taught = [each for of in compared for each in of.benign]
    gaps = [each.summaries[metric.name].sgr_mean for each in taught if metric.name in each.summaries]
    return _estimate(Estimate.mean(gaps)) if gaps else UNDEFINED


def _mean(values: Sequence[float]) -> float:
    known = [value for value in values if not math.isnan(value)]
    return sum(known) / len(known) if known else math.nan


def _estimate(found: Estimate) -> str:
    interval = found.interval()
    ends = spread(interval)
    return percent(interval.value) + (f" ({ends})" if ends else "")


def _budget(of: Comparison, metric: MetricSpec | None, *, named: bool) -> str:
    if metric is None:
        return UNDEFINED
    shown, ends = budget(of.summaries[metric.name])
    return shown + (f" ({ends})" if ends else "") + (f" by {metric.title}" if named else "")


def _msgr(compared: Sequence[Comparison], metric: str) -> str:
    return _estimate(statistics.msgr([of.summaries[metric].sgr_mean for of in compared]))


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
