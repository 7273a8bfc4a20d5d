"""The published studies can be carried out: every file defines studies of concepts that the world has."""

from pathlib import Path

import pytest

from immunity.cli.study import _studies_of

pytestmark = pytest.mark.world

FILES = sorted(path for path in (Path(__file__).parents[2] / "studies").glob("*.py") if "Study(" in path.read_text())


@pytest.mark.parametrize("file", FILES, ids=lambda path: path.stem)
def test_its_concepts_are_the_worlds_and_its_docstring_tells_how(world, file):
    text = file.read_text(encoding="utf-8")
    assert f"immunity run studies/{file.name}" in text
    for study in _studies_of(file).values():
        assert len(study.seeds) >= 3
        for name in (*study.concepts, *study.benign):
            assert world.examples(name)
