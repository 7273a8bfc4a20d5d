import importlib.util
from pathlib import Path

DOCS = Path(__file__).parents[2] / "docs"


def test_the_reference_is_what_the_code_says():
    """Otherwise: `python docs/make_reference.py`."""
    spec = importlib.util.spec_from_file_location("make_reference", DOCS / "make_reference.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    assert (DOCS / "reference.md").read_text(encoding="utf-8") == script.page()
    rows = [line for line in script.page().splitlines() if line.startswith("| `")]
    assert [row for row in rows if row.endswith("|  |")] == [], "a field without a word on it"
