import dataclasses
import itertools

import pytest

from immunity import ImmunityError
from immunity.records import RecordFolder
from immunity.report.comparison import compare
from immunity.report.markdown import matrices, tables, write_tables
from immunity.report.wording import percent

from tests import synthetic


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    plan = synthetic.plan(seeds=(0, 1))
    return synthetic.write_study(tmp_path_factory.mktemp("study"), plan).read()


def rows(text: str) -> dict[str, list[str]]:
    """The last row of each name, by its first cell."""
    return {
        line.split("|")[1].strip(): [cell.strip() for cell in line.split("|")[2:-1]]
        for line in text.splitlines()
        if line.startswith("| ")
    }


def test_the_figures_are_the_comparisons(records):
    text = tables(records, draws=100)
    concept = records.plan.concepts[0]
    arm = records.plan.with_role("defended")[0]
    found = compare(records, concept, arm.name, draws=100)
    for metric in found.metrics:
        if metric.kind == "similarity":
            assert percent(found.summaries[metric.name].sgr_mean.value) in text
    assert concept in rows(text)
    assert arm.title in rows(text)
    for baseline in records.plan.with_role("baseline"):
        assert baseline.title in rows(text)
    assert "nan" not in text.lower()


def test_budgets_name_their_metric_once_or_in_each_row(tmp_path):
    made = synthetic.study(tmp_path, synthetic.plan(concepts=("church", "castle")))
    column = "steps × by CLIP similarity"
    assert f"| {column} |" in tables(made, draws=50)

    def saturated(cell):
        if cell.concept != "church":
            return cell
        first = dataclasses.replace(cell.points[0], scores=cell.points[0].scores | {"clip": (1.0,) * 8})
        return dataclasses.replace(cell, points=(first, *cell.points[1:]))

    changed = dataclasses.replace(made, finished=tuple(map(saturated, made.finished)))
    text = tables(changed, draws=50)
    assert column not in text
    assert rows(text)["church"][7].endswith("×) by DINO similarity")
    assert rows(text)["castle"][7].endswith("×) by CLIP similarity")


def test_a_study_says_where_it_is_from_and_in_which_numbers_it_was_made(tmp_path):
    settings = synthetic.plan().settings | {"dtype": "bfloat16"}
    text = tables(synthetic.study(tmp_path, synthetic.plan(settings=settings)), source="`studies/some.py`", draws=50)
    assert "\n\nStudy: `studies/some.py`. Attack: `Lora(" in text
    assert "Model `made-up model` (abababababab), in bfloat16." in text


def test_every_row_is_as_long_as_its_head(records):
    lines = [line for line in tables(records, draws=50).splitlines() if line.startswith("|")]
    for before, line in itertools.pairwise(lines):
        if line.startswith("|---") or before.startswith("|---"):
            assert line.count("|") == before.count("|")


def test_it_is_written_once(records, tmp_path):
    out = tmp_path / "results.md"
    write_tables(records.folder, out, draws=50)
    assert out.read_text(encoding="utf-8") == tables(records, draws=50)
    with pytest.raises(ImmunityError, match="--force"):
        write_tables(records.folder, out)


def test_a_matrix_has_a_row_for_each_defence_and_a_column_for_each_study(records, tmp_path):
    unfinished = RecordFolder.create(tmp_path, synthetic.plan(seeds=(0,))).read()
    found = matrices({"one": records, "two": records, "none": unfinished}, draws=50)
    (lines,) = [table.splitlines() for metric, table in found.items() if metric.name == "clip"]
    assert lines[0] == "| made against ↓, attacked by → | one | two |"
    arms = records.plan.with_role("defended", "baseline")
    assert [line.split(" | ")[0].strip("| ") for line in lines[2:]] == [
        a.title for a in sorted(arms, key=lambda a: a.name)
    ]
    assert all(line.split(" | ")[1] == line.split(" | ")[2].removesuffix(" |") for line in lines[2:])


def test_void_figures_are_marked_where_they_are_averaged(records):
    def ruined(cell):
        if cell.arm != "imma" or cell.subject != cell.concept:
            return cell
        others = {name: (0.0,) * len(values) for name, values in cell.points[0].others.items()}
        return dataclasses.replace(cell, points=(dataclasses.replace(cell.points[0], others=others), *cell.points[1:]))

    changed = dataclasses.replace(records, finished=tuple(map(ruined, records.finished)))
    title = changed.plan.arm("imma").title
    assert rows(tables(records, draws=50))[title][0] == "1"
    assert rows(tables(changed, draws=50))[title][0] == "1, 1 void"
    for made, mark in ((records, ""), (changed, "†")):
        table = next(iter(matrices({"lora": made}, draws=50).values()))
        assert rows(table)[title][0].endswith(f"){mark}")


def test_nothing_to_tell_yet(tmp_path):
    folder = RecordFolder.create(tmp_path, synthetic.plan(seeds=(0,)))
    with pytest.raises(ImmunityError, match="control and defence are finished"):
        tables(folder.read())
