"""What means harm gets one line and exit code 2: nothing of it runs, and it takes no memory to speak of."""

import resource
from pathlib import Path

import pytest
import torch
from PIL import Image

from tests import hostile
from tests.cli.conftest import immunity

_MOST = 96 * 2**10  # KiB that refusing a file may take


@pytest.fixture
def bounded():
    """The test takes little more memory than the process had at its height before."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < _MOST


@pytest.fixture
def place(tmp_path):
    """A folder whose name needs care."""
    folder = tmp_path / 'it\'s a "place" with spaces'
    folder.mkdir()
    return folder


@pytest.fixture
def model(tmp_path):
    """What is wrong with the other files is found before a model is looked for, so none is needed."""
    return tmp_path / "model"


@pytest.mark.parametrize(
    ("make", "suffix"),
    [*((make, ".pt") for make in hostile.PICKLED), *((make, ".safetensors") for make in hostile.LYING)],
    ids=lambda value: value if isinstance(value, str) else value.__name__,
)
def test_files(make, suffix, model, place, bounded):
    path = place / f"a b{suffix}"
    message = make(path)
    before = path.read_bytes() if path.stat().st_size < 2**24 else None
    out = place / "out"
    for command in (
        ("info", path),
        ("export", "--model", model, "--deltas", path, "--out", out),
        ("export", "--model", path, "--config", model, "--out", out),
    ):
        assert message in immunity(*command).complaint
    assert [entry.name for entry in place.iterdir()] == [path.name], "no trace, and nothing written"
    assert before is None or path.read_bytes() == before


def test_a_picture_of_billions_of_pixels_and_a_truncated_one(model, place, bounded):
    for make in (hostile.picture_of_billions, hostile.truncated_picture):
        message = make(place / "0.png")
        done = immunity(
            *(
                "adapt",
                "--model",
                model,
                "--images",
                place,
                "--prompt",
                "x",
                "--out",
                place / "out",
                "lora",
                "--steps",
                1,
            )
        )
        assert message in done.complaint
        assert "0.png" in done.complaint
        assert [entry.name for entry in place.iterdir()] == ["0.png"]


def large_table(path: Path) -> str:
    with path.open("wb") as file:
        file.truncate(100 * 2**20)
    return "100 MiB in"


def table_in_another_encoding(path: Path) -> str:
    path.write_bytes("file_name,text\n0.png,une église\n".encode("latin-1"))
    return "(UTF-8)"


def endless_cell(path: Path) -> str:
    path.write_text(f"file_name,text\n0.png,{'x' * 10**6}\n")
    return "field larger than field limit"


@pytest.mark.parametrize("make", [large_table, table_in_another_encoding, endless_cell])
def test_captions(make, model, place, bounded):
    Image.new("RGB", (8, 8)).save(place / "0.png")
    message = make(place / "metadata.csv")
    done = immunity("adapt", "--model", model, "--images", place, "--out", place / "out", "lora", "--steps", 1)
    assert message in done.complaint
    assert not (place / "out").exists()


def test_links_out_of_folders(model, place, tmp_path):
    secret = tmp_path / "secret.png"
    Image.new("RGB", (8, 8)).save(secret)
    (place / "0.png").symlink_to(secret)
    done = immunity("adapt", "--model", model, "--images", place, "--prompt", "x", "--out", tmp_path / "out", "lora")
    assert "a link to" in done.complaint
    torch.save({"x": torch.zeros(1)}, tmp_path / "secret.bin")
    (place / "adapter_model.bin").symlink_to(tmp_path / "secret.bin")
    (place / "adapter_config.json").write_text("{}")
    for command in (("info", place), ("export", "--model", model, "--deltas", place, "--out", tmp_path / "out")):
        assert "a link to" in immunity(*command).complaint
