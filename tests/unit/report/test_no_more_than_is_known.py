"""Figures that would say more than the evidence: void concepts, ends beyond the attack, a stranger's picture."""

import dataclasses
import struct
import zlib
from types import SimpleNamespace

import pytest

from immunity.report.comparison import compare
from immunity.report.flags import check
from immunity.report.page import render
from immunity.report.statistics import Interval
from immunity.report.verdict import judge, judge_all
from immunity.report.views import _inline
from immunity.report.wording import budget

from tests import synthetic

STRONG = synthetic.SLOWNESS | {"imma": 2500.0}


def judged(records, concept):
    of = compare(records, concept, "imma", draws=100)
    return of, judge(of, check(of))


def half_void(tmp_path):
    """Of two concepts, one whose control the attack does not bring back."""
    plan = synthetic.plan(concepts=("church", "castle"))
    records = synthetic.study(tmp_path, plan, slowness=STRONG)
    failing = {"slowness": STRONG | {"control": 900.0}}
    cells = [
        synthetic.cell(cell.arm, concept=cell.concept, subject=cell.subject, seed=cell.seed, **failing)
        if cell.concept == "castle"
        else cell
        for cell in records.finished
    ]
    return dataclasses.replace(records, finished=tuple(cells))


def test_void_concepts_are_named_as_such_and_counted_beside_the_mean(tmp_path):
    records = half_void(tmp_path)
    both = [judged(records, name) for name in ("church", "castle")]
    assert [verdict.grade for _, verdict in both] == ["holds", "void"]
    overall = judge_all(both, None, "CLIP")
    assert overall.grade == "partly"
    assert "Void, as a flag says that the figures mean something else: castle." in overall.text
    assert "Not shown for" not in overall.text
    page = render(records, draws=50)
    assert "1 of 2 void" in page
    assert "Mean (MSGR), 1 void" in page


def test_where_all_is_void_the_whole_is(tmp_path):
    records = half_void(tmp_path)
    twice = [judged(records, "castle")] * 2
    assert judge_all(twice, None, "CLIP").grade == "void"


@pytest.mark.parametrize(
    ("times", "said"),
    [
        (Interval(float("inf"), 2.0, float("inf")), (">1.9×", "")),
        (Interval(float("inf"), 1.5, float("inf")), (">1.9×", "1.5× to >1.9×")),
        (Interval(1.6, 1.2, float("inf")), ("1.6×", "1.2× to >1.9×")),
        (Interval(1.6, 1.2, 2.2), ("1.6×", "1.2× to 2.2×")),
    ],
)
def test_no_interval_begins_beyond_what_was_measured(times, said):
    assert budget(SimpleNamespace(times=times, beyond=1.9)) == said


def test_a_picture_that_would_not_fit_into_memory_is_no_picture(tmp_path):
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 40000, 40000, 8, 2, 0, 0, 0))
    bomb = tmp_path / "bomb.png"
    bomb.write_bytes(b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", b"") + chunk(b"IEND", b""))
    assert _inline(bomb) is None
    large = tmp_path / "large.png"
    large.write_bytes(b"\x89PNG" + bytes(2**20))
    assert _inline(large) is None


def test_a_loss_of_a_few_answers_is_no_destruction(tmp_path):
    """One answer fewer in forty, of each of four concepts and of one seed of three, is chance."""
    records = synthetic.study(tmp_path, slowness=STRONG)

    def unlucky(cell):
        answers = (0.0,) * (20 if cell.arm == "imma" and cell.seed == 1 else 0)
        others = dict.fromkeys(synthetic.OTHERS, (*answers, *(1.0,) * (40 - len(answers))))
        return dataclasses.replace(cell, points=(dataclasses.replace(cell.points[0], others=others), *cell.points[1:]))

    of = compare(dataclasses.replace(records, finished=tuple(map(unlucky, records.finished))), "church", "imma")
    assert of.lost_by_defence.interval().value == pytest.approx(1 / 6)
    assert of.lost_by_defence.interval().low == 0
    assert "destruction" not in {flag.code for flag in check(of)}
