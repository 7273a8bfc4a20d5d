import json

import pytest
import torch
from PIL import Image

from immunity import Concept, Examples, ImmunityError


@pytest.mark.parametrize(
    ("kind", "name", "prompt"),
    [
        ("object", "church", "image of a church"),
        ("object", "airplane", "image of an airplane"),
        ("style", "noto", "an artwork in the style of noto"),
        ("person", "Ada", "a photo of Ada"),
        ("unsafe", "violence", "violence"),
    ],
)
def test_prompts_are_made_from_name_and_kind(kind, name, prompt):
    assert Concept(name=name, kind=kind).prompts[0] == prompt


def test_given_prompts_stay():
    assert Concept(name="church", prompts=("a nave",)).prompts == ("a nave",)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"name": " "}, "empty name"),
        ({"name": "church", "kind": "sound"}, "kind of concept"),
        ({"name": "church", "prompts": ("image", "")}, "empty prompt"),
        ({"name": "church", "neighbours": ("church",)}, "neighbours other than"),
    ],
)
def test_bad_concepts(fields, message):
    with pytest.raises(ImmunityError, match=message):
        Concept(**fields)


@pytest.mark.parametrize(
    ("images", "prompts", "message"),
    [
        (torch.zeros(2, 3, 4, 4, dtype=torch.float64), ("a", "b"), "float32"),
        (torch.zeros(3, 4, 4), ("a",), "float32"),
        (torch.zeros(2, 1, 4, 4), ("a", "b"), "float32"),
        (torch.zeros(2, 3, 4, 4), ("a",), "one prompt"),
        (torch.full((1, 3, 4, 4), 255.0), ("a",), r"in \[0, 1\]"),
        (torch.full((1, 3, 4, 4), torch.nan), ("a",), r"in \[0, 1\]"),
    ],
)
def test_bad_examples(images, prompts, message):
    with pytest.raises(ImmunityError, match=message):
        Examples(images, prompts, ("x",) * len(prompts))


@pytest.fixture
def folder(tmp_path):
    Image.new("RGB", (20, 10), (255, 0, 0)).save(tmp_path / "b.png")
    (tmp_path / "deeper").mkdir()
    Image.new("RGBA", (8, 8), (0, 0, 0, 0)).save(tmp_path / "deeper" / "a.png")
    Image.new("L", (8, 8), 0).save(tmp_path / "a.jpg")
    (tmp_path / "notes.txt").write_text("not a picture")
    return tmp_path


def test_a_folder_with_one_prompt_for_all(folder):
    examples = Examples.from_folder(folder, prompt="image of a church", size=8)
    assert examples.sources == ("a.jpg", "b.png", "deeper/a.png")
    assert examples.prompts == ("image of a church",) * 3
    assert examples.images.shape == (3, 3, 8, 8)
    assert (examples.images[2] == 1).all(), "transparent is white"
    assert examples.images[1, :, 0, 0].tolist() == [1, 0, 0]


def test_the_grid_beside_drawn_pictures_is_none_of_them(folder):
    (folder / "b.png").rename(folder / "grid.png")
    assert "grid.png" in Examples.from_folder(folder, prompt="", size=8).sources, "anybody's picture may be called so"
    (folder / "sample.json").write_text("{}")
    assert Examples.from_folder(folder, prompt="", size=8).sources == ("a.jpg", "deeper/a.png")


def test_a_folder_with_csv(folder):
    (folder / "metadata.csv").write_text('file_name,text\na.jpg,"one, two"\nb.png,three\ndeeper/a.png,four\n')
    assert Examples.from_folder(folder, size=8).prompts == ("one, two", "three", "four")
    assert Examples.from_folder(folder, prompt="all", size=8).prompts == ("all",) * 3


def test_a_folder_with_jsonl(folder):
    rows = [{"file_name": name, "text": name.upper()} for name in ("b.png", "a.jpg", "deeper/a.png")]
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    assert Examples.from_folder(folder, size=8).prompts == ("A.JPG", "B.PNG", "DEEPER/A.PNG")


def test_captions_of_several_lines(folder):
    """U+2028 ends a line for Python, and neither for CSV nor for JSON."""
    captions = ("one\ntwo", "three\u2028four", "five")
    rows = list(zip(("a.jpg", "b.png", "deeper/a.png"), captions, strict=True))
    written = "".join(f'{name},"{caption}"\n' for name, caption in [("file_name", "text"), *rows])
    (folder / "metadata.csv").write_text(written, encoding="utf-8")
    assert Examples.from_folder(folder, size=8).prompts == captions
    (folder / "metadata.csv").unlink()
    lines = [json.dumps({"file_name": name, "text": caption}, ensure_ascii=False) for name, caption in rows]
    (folder / "metadata.jsonl").write_bytes("\r\n".join([*lines, ""]).encode())
    assert Examples.from_folder(folder, size=8).prompts == captions


@pytest.mark.parametrize(
    ("table", "content", "message"),
    [
        (None, "", "neither a prompt nor"),
        ("metadata.csv", "file_name,caption\na.jpg,x\n", "file_name and text"),
        ("metadata.csv", "file_name,text\na.jpg,x\n", "none for b.png"),
        ("metadata.csv", "file_name,text\na.jpg,x\na.jpg,y\n", "two for a.jpg"),
        ("metadata.csv", "file_name,text\na.jpg,x\nb.png,x\ndeeper/a.png,x\ngone.png,x\n", "no file gone.png"),
        ("metadata.jsonl", "{broken", "a readable"),
        ("metadata.jsonl", "[1]\n", "file_name and text"),
        ("metadata.jsonl", "[" * 100_000, "a readable"),
        ("metadata.jsonl", "9" * 5000, "a readable"),
    ],
)
def test_bad_metadata(folder, table, content, message):
    if table:
        (folder / table).write_text(content)
    with pytest.raises(ImmunityError, match=message):
        Examples.from_folder(folder, size=8)


def test_bad_folders(folder):
    with pytest.raises(ImmunityError, match="does not exist"):
        Examples.from_folder(folder / "missing", prompt="x", size=8)
    with pytest.raises(ImmunityError, match="a file"):
        Examples.from_folder(folder / "a.jpg", prompt="x", size=8)
    with pytest.raises(ImmunityError, match="at least one pixel"):
        Examples.from_folder(folder, prompt="x", size=0)
    (folder / "empty").mkdir()
    with pytest.raises(ImmunityError, match="none in"):
        Examples.from_folder(folder / "empty", prompt="x", size=8)


@pytest.mark.parametrize("damage", [lambda data: b"not a picture", lambda data: data[: len(data) // 2]])
def test_a_broken_picture_is_named(folder, damage):
    (folder / "b.png").write_bytes(damage((folder / "b.png").read_bytes()))
    with pytest.raises(ImmunityError, match=r"b\.png"):
        Examples.from_folder(folder, prompt="x", size=8)


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\n%%EOF\n"


def test_pictures_of_other_kinds_are_refused_whatever_they_are_called(folder, monkeypatch):
    """Pillow would hand an EPS to Ghostscript."""
    from PIL import EpsImagePlugin

    ran = []
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *_arguments, **_settings: ran.append(1))
    (folder / "b.png").write_bytes(EPS)
    with pytest.raises(ImmunityError, match=r"b\.png"):
        Examples.from_folder(folder, prompt="x", size=8)
    assert not ran
    Image.new("RGB", (8, 8)).save(folder / "b.png", format="PPM")
    with pytest.raises(ImmunityError, match=r"b\.png"):
        Examples.from_folder(folder, prompt="x", size=8)


@pytest.mark.parametrize("suffix", ["png", "jpg", "jpeg", "webp", "bmp", "gif", "tif", "tiff"])
def test_pictures_of_every_kind_that_is_promised(tmp_path, suffix):
    Image.new("RGB", (8, 8), "red").save(tmp_path / f"a.{suffix}")
    assert Examples.from_folder(tmp_path, prompt="x", size=8).images[0, 0].mean() > 0.9
