"""docs/results.md: where each table is from, and what a reader of the repository alone can do with it."""

import importlib
import sys
from pathlib import Path

import pytest

from tests import synthetic

STUDIES = Path(__file__).parents[3] / "studies"


@pytest.fixture
def publish(monkeypatch, tmp_path):
    """The script, at work in a repository of its own that has the studies `one` (alone in its file) and `several`."""
    monkeypatch.syspath_prepend(str(STUDIES))
    module = importlib.import_module("publish")
    (tmp_path / "studies").mkdir()
    (tmp_path / "docs").mkdir()
    for name in ("one", "several"):
        (tmp_path / "studies" / f"{name}.py").touch()
    (tmp_path / "README.md").write_text("<!-- results -->\n<!-- end of results -->\n")
    monkeypatch.setattr(module, "ROOT", tmp_path)
    monkeypatch.setattr(module.learning, "table", lambda _present: "")

    def run(*folders):
        monkeypatch.setattr(sys, "argv", ["publish.py", *map(str, folders)])
        module.main()
        return (tmp_path / "docs" / "results.md").read_text(encoding="utf-8")

    return run


def made(folder, dtype):
    settings = synthetic.plan().settings | {"dtype": dtype}
    synthetic.write_study(folder, synthetic.plan(seeds=(0,), benign=(), settings=settings))


@pytest.mark.world  # the module reads the world's list of objects
def test_studies_of_one_title_are_told_apart_by_file_and_dtype(publish, tmp_path):
    runs = tmp_path / "runs"
    made(runs / "one", "float32")
    made(runs / "several" / "first", "bfloat16")
    text = publish(runs / "one", runs / "several")
    alone, other = text.split(f"## {synthetic.plan().title}\n")[1:]
    assert "Study: `studies/one.py`." in alone
    assert "in float32." in alone
    assert "Study: `studies/several.py`, `first`." in other
    assert "in bfloat16." in other
    assert "runs/" not in text, "it is not in the repository"
    assert "immunity report studies/records/one --out" in text
    assert "studies/publish.py studies/records/one \\\n    studies/records/several\n" in text
    kept = tmp_path / "studies" / "records"
    assert (kept / "several" / "first" / "study.json").exists()
    assert not list(kept.rglob("*.png"))
    assert publish(kept / "one", kept / "several") == text
    for name in ("one", "several"):
        details = (tmp_path / "docs" / "results" / f"{name}.md").read_text()
        assert "| church |" in details
        assert f"(results/{name}.md)" in text
        for drawn in (f"{name}.png", f"{name}-curves.png"):
            assert f"(results/{drawn})" in text
            assert (tmp_path / "docs" / "results" / drawn).exists()


@pytest.mark.world
def test_what_a_study_showed_is_in_its_own_words(publish, tmp_path):
    made(tmp_path / "runs" / "one", "float32")
    (tmp_path / "studies" / "one.py").write_text('"""One.\n\nIt asks.\n\nWhat it showed: that\nit failed.\n"""\n')
    text = publish(tmp_path / "runs" / "one")
    assert "> What it showed: that it failed.\n" in text
    assert "It asks" not in text
