import json

import pytest
import torch
from PIL import Image

from immunity import ImmunityError, World

WORLD = {
    "name": "toy",
    "resolution": 4,
    "styles": [{"name": "noto", "split": "trained"}, {"name": "firefox", "split": "held_out"}],
    "objects": [
        {"name": "church", "phrase": "a church", "split": "trained", "neighbours": ["castle"]},
        {"name": "castle", "phrase": "a castle", "split": "trained"},
        {"name": "grapes", "phrase": "grapes", "split": "held_out"},
    ],
    "captions": {
        "object": ["image of {phrase}", "{object}"],
        "style": ["an artwork in the style of {style}"],
        "both": ["{phrase} in the style of {style}"],
    },
}


@pytest.fixture
def world(tmp_path) -> World:
    (tmp_path / "world.json").write_text(json.dumps(WORLD))
    return World.from_folder(tmp_path)


def test_concepts_ask_as_the_captions_do(world):
    assert world.concept("grapes").prompts == ("image of grapes", "grapes")
    assert world.concept("church").neighbours == ("castle",)
    style = world.concept("noto")
    assert (style.kind, style.prompts) == ("style", ("an artwork in the style of noto",))
    assert world.prompt("church", "noto") == "a church in the style of noto"
    assert [concept.name for concept in world.concepts("object", "trained")] == ["church", "castle"]
    assert [concept.name for concept in world.concepts("style", "held_out")] == ["firefox"]


def test_an_unknown_concept_names_its_neighbours(world):
    with pytest.raises(ImmunityError, match=r"try e\.g\. church"):
        world.concept("churhc")


def test_examples_are_cut_from_the_strips(world):
    samples = world.folder / "samples"
    samples.mkdir()
    strip = Image.new("RGB", (8, 4), "white")
    strip.paste((255, 0, 0), (4, 0, 8, 4))
    strip.save(samples / "church.png")
    rows = [
        {"file": "church.png", "tile": i, "object": "church", "style": s} for i, s in enumerate(("noto", "firefox"))
    ]
    (samples / "index.json").write_text(json.dumps(rows))
    examples = world.examples("church")
    assert examples.sources == ("toy/church/noto", "toy/church/firefox")
    assert examples.prompts == ("image of a church",) * 2
    assert (examples.images[0] == 1).all()
    assert torch.equal(examples.images[1, :, 0, 0], torch.tensor([1.0, 0.0, 0.0]))
    assert world.examples("church", styles=["firefox"]).sources == ("toy/church/firefox",)
    assert world.examples("noto").sources == ("toy/church/noto",)
    with pytest.raises(ImmunityError, match="sample pictures of 'castle'"):
        world.examples("castle")


def test_absent_parts_say_so(world, tmp_path):
    for missing in (lambda: world.generator, lambda: world.judge("clip"), lambda: world.examples("church")):
        with pytest.raises(ImmunityError, match="without the world's weights"):
            missing()
    with pytest.raises(ImmunityError, match="clip, dino, lpips"):
        world.judge("taste")
    with pytest.raises(ImmunityError, match="without the world's weights"):
        World.from_folder(tmp_path / "nowhere")
    with pytest.raises(ImmunityError, match="a world: emoji"):
        World.open("smileys")
    (tmp_path / "world.json").write_text('{"name": "toy"}')
    with pytest.raises(ImmunityError, match="KeyError"):
        World.from_folder(tmp_path)
