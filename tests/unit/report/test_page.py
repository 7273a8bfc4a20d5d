import dataclasses
import math
import re
from html.parser import HTMLParser

import pytest

from immunity import ImmunityError
from immunity.report import charts
from immunity.report.charts import Series
from immunity.report.comparison import compare
from immunity.report.flags import check
from immunity.report.page import render, write_report
from immunity.report.verdict import grade, judge
from immunity.report.views import concept_view
from immunity.report.wording import budget, duration, percent, spread

from tests import synthetic

VOID = {"area", "base", "br", "col", "hr", "img", "input", "link", "meta", "source"}
HOSTILE = "<script>alert(1)</script>\"'&"


class Page(HTMLParser):
    """Collects a page's elements, and fails where they are not nested."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.words, self.open = [], [], []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] != "style":
            self.words.append(data)

    def all(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]

    @property
    def text(self):
        return " ".join(" ".join(self.words).split())


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    plan = synthetic.plan(seeds=(0, 1))
    return synthetic.write_study(tmp_path_factory.mktemp("study"), plan).read()


@pytest.fixture(scope="module")
def html(records):
    return render(records, draws=100)


@pytest.fixture(scope="module")
def page(html):
    return Page(html)


def test_the_page_asks_nobody_for_anything(html, page):
    links = [a[name] for _, a in page.elements for name in ("src", "href", "action", "srcset", "data") if a.get(name)]
    assert links
    assert all(link.startswith(("data:image/png;base64,", "#")) for link in links)
    assert not re.search(r"https?:|@import|url\(|//", re.sub(r"data:image/png;base64,[\w+/=]+", "", html))
    assert not page.all("script")
    assert "default-src 'none'" in html


def test_every_picture_has_words_and_every_table_has_headers(page):
    pictures = page.all("img")
    # 4 pictures of the base, the erased and 4 attacked models at 5 steps.
    assert len(pictures) == 4 * (2 + 4 * 5)
    assert all(each["alt"] for each in pictures)
    assert all(each.get("aria-label") for each in page.all("svg") if each.get("role") == "img")
    assert all(each.get("scope") for each in page.all("th"))
    assert all(each.get("aria-label") for each in page.all("div") if each.get("role") == "region")


def test_anchors_lead_somewhere_and_ids_are_unique(page):
    ids = [each["id"] for _, each in page.elements if "id" in each]
    assert len(ids) == len(set(ids))
    assert {each["href"][1:] for each in page.all("a")} <= set(ids)


def test_the_page_says_what_was_found(records, page):
    summary = compare(records, "church", "imma", draws=100).summaries["clip"]
    for expected in (
        "Bringing “church” back takes",
        percent(summary.sgr_mean.value),
        spread(summary.sgr_mean.interval()),
        budget(summary)[0],
        "few-seeds",
        "teapot",
        "castle",
        "Esd",
        "made-up model",
        "ab" * 32,
    ):
        assert expected in page.text, expected


def test_the_same_records_give_the_same_bytes(records, html):
    assert render(records, draws=100) == html


def test_nothing_in_a_record_becomes_markup(tmp_path):
    plan = synthetic.plan(
        title=HOSTILE,
        concepts=(HOSTILE,),
        benign=("benign" + HOSTILE,),
        seeds=(0,),
        arms=tuple(dataclasses.replace(arm, label=HOSTILE, config={HOSTILE: HOSTILE}) for arm in synthetic.ARMS),
        metrics=tuple(dataclasses.replace(metric, label=HOSTILE) for metric in synthetic.METRICS),
        settings={HOSTILE: HOSTILE},
    )
    records = synthetic.study(tmp_path, plan)
    hostile = dict.fromkeys(("base", "base_hash", "machine", "created"), HOSTILE)
    cells = tuple(
        dataclasses.replace(
            cell,
            prompts=(HOSTILE,) * len(cell.prompts),
            run=dataclasses.replace(cell.run, versions={HOSTILE: HOSTILE}, deltas={HOSTILE: HOSTILE}, **hostile),
            points=tuple(
                dataclasses.replace(p, others={HOSTILE: (1.0, 0.0)} if p.step == 0 else {}) for p in cell.points
            ),
        )
        for cell in records.finished
    )
    page = Page(render(dataclasses.replace(records, finished=cells), draws=50))
    assert not page.all("script")
    assert HOSTILE in page.text


def test_a_missing_or_foreign_picture_leaves_a_gap_and_no_error(tmp_path):
    folder = synthetic.write_study(tmp_path, synthetic.plan(seeds=(0,), benign=()))
    first, second, *_ = sorted((tmp_path / "cells" / "church" / "0" / "control").iterdir())
    first.unlink()
    second.write_bytes(b"GIF89a, or a secret")
    html = render(folder.read(), draws=50)
    assert html.count("picture not kept") == 2
    assert "secret" not in html


def test_a_study_in_progress_can_be_shown(records, tmp_path):
    part = dataclasses.replace(records, finished=tuple(c for c in records.finished if c.arm != "noise"))
    text = Page(render(part, draws=50)).text
    assert "Unfinished: 2 of 16 cells are still missing" in text


def test_a_study_without_a_finished_defence_cannot(records):
    part = dataclasses.replace(records, finished=tuple(c for c in records.finished if c.arm != "imma"))
    with pytest.raises(ImmunityError, match="control and defence are finished"):
        render(part)


def test_several_concepts_have_an_overview(tmp_path):
    records = synthetic.study(tmp_path, synthetic.plan(concepts=("church", "castle"), seeds=(0, 1, 2)))
    text = Page(render(records, draws=50)).text
    assert "After the same attack there is clearly less of 2 of 2 concepts" in text
    assert "Mean (MSGR)" in text


def rescored(records, change):
    """`change` gets a cell, the number of its point, a metric's name and the scores."""
    cells = tuple(
        dataclasses.replace(
            cell,
            points=tuple(
                dataclasses.replace(
                    p, scores={name: change(cell, i, name, values) for name, values in p.scores.items()}
                )
                for i, p in enumerate(cell.points)
            ),
        )
        for cell in records.finished
    )
    return dataclasses.replace(records, finished=cells)


def nothing(*metrics, concepts=("church", "castle")):
    """A control that scores nothing by these metrics after the first look."""

    def change(cell, i, name, values):
        zero = cell.arm == "control" and i == 1 and name in metrics and cell.concept in concepts
        return (0.0,) * len(values) if zero else values

    return change


@pytest.mark.parametrize("concepts", [("church",), ("church", "castle")])
@pytest.mark.parametrize("metrics", [("accuracy",), ("clip", "dino", "lpips", "accuracy")])
def test_a_control_that_scores_nothing_leaves_a_dash(tmp_path, concepts, metrics):
    records = rescored(synthetic.study(tmp_path, synthetic.plan(concepts=concepts)), nothing(*metrics))
    page = Page(render(records, draws=50))
    told = page.text + " ".join(str(value) for _, attributes in page.elements for value in attributes.values())
    assert not re.search(r"\b(nan|inf)\b", told)
    assert "—" in page.text
    if "clip" in metrics:
        assert "Similarity gap — CLIP similarity, mean over the attack" in page.text
        several = len(concepts) > 1
        assert ("(MSGR, CLIP similarity): —." if several else "CLIP similarity has no gap") in page.text


def saturated(*metrics, concept="church"):
    """The erased model of one concept is where the base model is before the attack."""

    def change(cell, i, name, values):
        return (1.0,) * len(values) if i == 0 and name in metrics and cell.concept == concept else values

    return change


def test_the_gap_is_a_similaritys_also_where_only_another_metric_tells_the_budget(tmp_path):
    similarities = ("clip", "dino", "lpips")
    records = rescored(synthetic.study(tmp_path), saturated(*similarities))
    text = Page(render(records, draws=50)).text
    of = compare(records, "church", "imma", draws=50)
    assert f"Similarity gap {percent(of.summaries['clip'].sgr_mean.value)}" in text
    assert f"Attack budget {budget(of.summaries['accuracy'])[0]}" in text
    assert "÷ without defence, by Classifier accuracy" in text
    assert "By Classifier accuracy, the concept reaches" in text
    assert "Averaged over the attack, CLIP similarity is" in text
    none = Page(render(rescored(records, saturated(*similarities, "accuracy")), draws=50)).text
    assert "Attack budget — no measure tells" in none
    assert "no other tells whether the attack works" in none


def test_budgets_by_different_metrics_are_named_where_they_stand(tmp_path):
    plan = synthetic.plan(concepts=("church", "castle"))
    whole = synthetic.study(tmp_path, plan)
    assert "Attack budget, CLIP similarity" in Page(render(whole, draws=50)).text
    text = Page(render(rescored(whole, saturated("clip")), draws=50)).text
    assert "Attack budget, CLIP similarity" not in text
    church, castle = (compare(rescored(whole, saturated("clip")), name, "imma", draws=50) for name in plan.concepts)
    for of, metric, title in ((church, "dino", "DINO similarity"), (castle, "clip", "CLIP similarity")):
        shown, ends = budget(of.summaries[metric])
        assert re.search(rf"{re.escape(shown)}[ \d]* {re.escape(ends)} by {title}", text)


def test_only_what_holds_is_counted_as_not_brought_back(tmp_path):
    plan = synthetic.plan(concepts=("church", "castle"))
    records = synthetic.study(tmp_path, plan, slowness=synthetic.SLOWNESS | {"imma": 3000.0})
    assert "Not brought back 2 of 2 concepts, by any measure" in Page(render(records, draws=50)).text

    def failing(cell, i, name, values):  # the attack on one of them, with a defence and without
        return tuple(value / 2 for value in values) if cell.concept == "castle" and cell.arm != "base" else values

    text = Page(render(rescored(records, failing), draws=50)).text
    assert "attack-failed" in text
    assert "Not brought back 1 of 2" in text


def test_a_hyphen_in_a_name_is_no_minus(tmp_path):
    plan = synthetic.plan(
        concepts=("t-shirt", "x-ray"),
        metrics=tuple(dataclasses.replace(each, label=f"zero-shot {each.name}") for each in synthetic.METRICS),
    )
    records = synthetic.study(tmp_path, plan, slowness=synthetic.SLOWNESS | {"imma": 30.0})
    text = Page(render(records, draws=50)).text
    assert "Not shown for: t-shirt, x-ray." in text
    assert re.search(r"Averaged over the attack, zero-shot clip is −[\d.]+% lower .* \(95% interval −", text)
    assert not re.search(r"[a-z]−[a-z]", text)


def test_a_picture_grid_says_what_each_model_was_asked(records):
    same = Page(render(records, draws=50)).text
    assert "“image of a church”, seed 0, from every model." in same

    def by_their_word(cell):
        if cell.arm in ("base", "erased"):
            return cell
        return dataclasses.replace(cell, prompts=("image of a sks",) * len(cell.prompts))

    changed = dataclasses.replace(records, finished=tuple(map(by_their_word, records.finished)))
    text = Page(render(changed, draws=50)).text
    first, others = "“image of a church” from the base and erased model", "“image of a sks”, in the attacker’s words"
    assert f"{first}, {others}, from those that are attacked; seed 0." in text
    assert "from every model" not in text


def test_the_peak_says_which_step_its_interval_is_of(records, page):
    found = compare(records, "church", "imma", draws=100).summaries["clip"]
    assert found.peak_step in synthetic.STEPS
    told = f"step {found.peak_step:.0f}: {spread(found.sgr_peak.interval())}"
    assert told in page.text


def test_a_verdict_says_no_more_of_the_steps_than_is_known(tmp_path):
    made = synthetic.study(tmp_path)

    def early(*arms):
        """These are back by the first look."""

        def back(cell, i, name, values):
            return (1.0,) * len(values) if i and cell.arm in arms else values

        return compare(rescored(made, back), "church", "imma", draws=100)

    of = early("control")
    assert grade(of, ()) == "slows"
    found = of.summaries["clip"]
    told = judge(of, ())
    assert budget(found) == (f"≥{found.defended_steps / 15:.1f}×", "")
    assert f"takes at least {found.at_least:.1f} times as many attack steps, but it comes back." in told.headline
    assert "after at most 15 steps of the attack without a defence" in told.text
    assert budget(early("control", "imma").summaries["clip"]) == ("—", "")


def test_no_other_defence_stands_in_for_the_one_that_the_page_is_about(tmp_path):
    arms = synthetic.plan().arms
    first = next(arm for arm in arms if arm.role == "defended")
    second = dataclasses.replace(first, name="second", label="The second")
    at = arms.index(first) + 1
    plan = synthetic.plan(concepts=("church", "castle"), arms=(*arms[:at], second, *arms[at:]))
    records = synthetic.study(tmp_path, plan, slowness=synthetic.SLOWNESS | {"second": 40.0})

    def without(arm, concept):
        kept = tuple(cell for cell in records.finished if (cell.arm, cell.concept) != (arm, concept))
        return [
            view.main.comparison.arm.name
            for each in plan.concepts
            if (view := concept_view(dataclasses.replace(records, finished=kept), each, draws=20))
        ]

    assert without(first.name, "castle") == [first.name]
    assert without("second", "castle") == [first.name, first.name]


def test_the_file_is_written_whole_and_not_over_another(records, tmp_path):
    out = tmp_path / "report.html"
    write_report(records.folder, out, draws=50)
    assert out.read_text(encoding="utf-8").rstrip().endswith("</html>")
    with pytest.raises(ImmunityError, match="does not exist yet"):
        write_report(records.folder, out)
    write_report(records.folder, out, force=True, draws=50)


@pytest.mark.parametrize(
    ("slowness", "expected"),
    [
        ({}, "slows"),
        ({"imma": 3000.0}, "holds"),
        ({"imma": 30.0}, "none"),
        ({"control": 900.0}, "void"),
    ],
)
def test_the_verdict_is_no_stronger_than_the_evidence(tmp_path, slowness, expected):
    records = synthetic.study(tmp_path, slowness=synthetic.SLOWNESS | slowness)
    found = compare(records, "church", "imma", draws=200)
    assert grade(found, check(found)) == expected


def test_a_verdict_counts_every_similarity(tmp_path):
    records = synthetic.study(tmp_path)
    control = {(*cell.key[:2], cell.subject): cell for cell in records.finished if cell.arm == "control"}

    def without_effect_on_dino(cell):
        if cell.arm != "imma":
            return cell
        twin = control[(*cell.key[:2], cell.subject)]
        points = tuple(
            dataclasses.replace(mine, scores={**mine.scores, "dino": theirs.scores["dino"]})
            for mine, theirs in zip(cell.points, twin.points, strict=True)
        )
        return dataclasses.replace(cell, points=points)

    changed = dataclasses.replace(records, finished=tuple(map(without_effect_on_dino, records.finished)))
    found = compare(changed, "church", "imma", draws=100)
    assert grade(found, check(found)) == "partly"


@pytest.mark.parametrize(
    ("low", "high"), [(0.0, 1.0), (0.31, 0.87), (-0.2, 0.05), (0.5, 0.5), (0.0, 0.0), (0, 2000), (1e-6, 3e-6)]
)
def test_ticks_are_few_and_round_and_span_the_values(low, high):
    found = charts.ticks(low, high)
    assert found[0] <= low
    assert found[-1] >= high
    assert 2 <= len(found) <= 7
    assert found == sorted(set(found))


def test_a_chart_stays_on_its_canvas_and_skips_what_is_not_finite():
    series = Series(name="a", style="s0", x=(0, 10, 20), y=(0.1, math.nan, 0.9), low=(0, 0, 0), high=(1, 1, 1))
    (drawn,) = charts.line_chart("t", [series]).lines
    assert len(drawn.markers) == 2
    for x, y in drawn.markers:
        assert 0 <= x <= charts.WIDTH
        assert 0 <= y <= charts.HEIGHT


@pytest.mark.parametrize(
    ("value", "text"), [(0.2141, "21.4%"), (-0.05, "−5.0%"), (-0.0001, "0.0%"), (math.nan, "—"), (math.inf, "—")]
)
def test_shares_as_text(value, text):
    assert percent(value) == text


@pytest.mark.parametrize(("seconds", "text"), [(4.4, "4 s"), (61.5, "1 min 2 s"), (7260, "2 h 1 min")])
def test_durations_as_text(seconds, text):
    assert duration(seconds) == text
