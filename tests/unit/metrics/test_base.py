import json
from typing import Any

import pytest
import torch
from PIL import Image

from immunity import ImmunityError
from immunity.metrics.base import Preprocessing, check_images, in_batches, mean_cosine, one_each, resized


def pictures(height: int, width: int) -> torch.Tensor:
    bytes_ = torch.randint(0, 256, (2, 3, height, width), generator=torch.Generator().manual_seed(0))
    return bytes_ / 255


def processors() -> dict[str, Any]:
    from transformers import BitImageProcessor, CLIPImageProcessor, ConvNextImageProcessor, ViTImageProcessor

    colours = {"image_mean": [0.48, 0.46, 0.41], "image_std": [0.27, 0.26, 0.28]}
    return {
        "clip": CLIPImageProcessor(size={"shortest_edge": 24}, crop_size=24, **colours),
        "resize more, crop": BitImageProcessor(size={"shortest_edge": 32}, crop_size=24, **colours),
        "vit": ViTImageProcessor(size={"height": 24, "width": 24}, **colours),
        "vit, bicubic": ViTImageProcessor(size={"height": 24, "width": 20}, resample=3, **colours),
        "vit, as it is": ViTImageProcessor(size={"height": 24, "width": 24}, do_normalize=False),
        "convnext": ConvNextImageProcessor(size={"shortest_edge": 24}, crop_pct=0.875, **colours),
        "large convnext": ConvNextImageProcessor(size={"shortest_edge": 384}, crop_pct=0.875, **colours),
    }


@pytest.mark.parametrize("shape", [(40, 40), (40, 56), (10, 12)])
@pytest.mark.parametrize("name", processors())
def test_preprocessing_is_that_of_transformers(shape, name, tmp_path):
    theirs = processors()[name]
    theirs.save_pretrained(tmp_path)
    ours = Preprocessing.from_file(tmp_path / "preprocessor_config.json")
    images = pictures(*shape)
    as_pil = [Image.fromarray((x * 255).round().byte().permute(1, 2, 0).numpy()) for x in images]
    wanted = theirs(as_pil, return_tensors="pt")["pixel_values"]
    # PIL rounds to bytes after each of its two passes.
    assert (ours(images) - wanted).abs().max() < 2.1 / 255 / 0.26


@pytest.mark.parametrize(
    ("odd", "said"),
    [
        ({"resample": 0}, "resample=0"),
        ({"rescale_factor": 1 / 127.5}, "rescale_factor=0.0078"),
        ({"do_center_crop": True, "crop_size": 20}, "a crop of 20×20 from less"),
    ],
)
def test_what_would_give_other_pictures_is_refused(tmp_path, odd, said):
    config = {"size": 16, "image_mean": [0] * 3, "image_std": [1] * 3}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(config | odd))
    with pytest.raises(ImmunityError, match=said):
        Preprocessing.from_file(tmp_path / "preprocessor_config.json")


def test_white_stays_white_and_nothing_leaves_the_range():
    torch.testing.assert_close(resized(torch.ones(1, 3, 9, 9), 32, 32), torch.ones(1, 3, 32, 32))
    enlarged = resized(pictures(8, 8), 31, 29)
    assert enlarged.min() >= 0
    assert enlarged.max() <= 1


def test_the_size_that_fits_is_left_alone():
    images = pictures(24, 24)
    plain = Preprocessing(height=24, width=24, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    assert torch.equal(plain(images), images)


@pytest.mark.parametrize("size", [16, {"height": 16, "width": 16}, {"shortest_edge": 16}])
def test_preprocessing_reads_every_spelling(tmp_path, size):
    path = tmp_path / "preprocessor_config.json"
    path.write_text(json.dumps({"size": size, "image_mean": [0, 0, 0], "image_std": [1, 1, 1]}))
    read = Preprocessing.from_file(path)
    assert (read.height, read.width, read.shorter) == (16, 16, None)


@pytest.mark.parametrize("text", ["", "{}", '{"size": 8, "image_mean": [0], "image_std": [1]}'])
def test_a_broken_preprocessing_is_said(tmp_path, text):
    path = tmp_path / "preprocessor_config.json"
    path.write_text(text)
    with pytest.raises(ImmunityError, match=r"expected .*preprocessor_config.json"):
        Preprocessing.from_file(path)


@pytest.mark.parametrize(
    ("images", "got"),
    [
        (torch.zeros(3, 8, 8), r"float32 \[3, 8, 8\]"),
        (torch.zeros(1, 1, 8, 8), r"\[1, 1, 8, 8\]"),
        (torch.zeros(0, 3, 8, 8), r"\[0, 3, 8, 8\]"),
        (torch.zeros(1, 3, 8, 8, dtype=torch.uint8), "uint8"),
        (torch.full((1, 3, 8, 8), -1.0), "from -1 to -1"),
        (torch.full((1, 3, 8, 8), 255.0), "from 255"),
        (torch.full((1, 3, 8, 8), float("nan")), "from nan"),
    ],
)
def test_pictures_that_are_none_are_refused(images, got):
    with pytest.raises(ImmunityError, match=got):
        check_images(images)


def test_texts_are_one_for_all_or_one_each():
    assert one_each(["church"], 3, "label") == ("church",) * 3
    assert one_each(["a", "b"], 2, "label") == ("a", "b")
    with pytest.raises(ImmunityError, match=r"one label for each of 3 images.*got 2"):
        one_each(["a", "b"], 3, "label")
    with pytest.raises(ImmunityError, match=r"got 'church'; try \['church'\]"):
        one_each("church", 6, "label")


def test_mean_cosine_is_the_mean_over_all_pairs():
    a = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
    b = torch.tensor([[3.0, 0.0], [0.0, 5.0], [1.0, 1.0]])
    wanted = torch.tensor([(1 + 0 + 2**-0.5) / 3, (0 + 1 + 2**-0.5) / 3])
    torch.testing.assert_close(mean_cosine(a, b), wanted)


def test_batches_change_nothing():
    x = torch.rand(7, 3, 2, 2)
    assert torch.equal(in_batches(x, lambda part: part.sum((1, 2, 3)), 3), x.sum((1, 2, 3)))
