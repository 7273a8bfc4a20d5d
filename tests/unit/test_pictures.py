import torch
from PIL import Image

from immunity import Examples
from immunity.pictures import grid, to_bytes, write_imagefolder, write_png


def test_bytes_round_to_the_nearest():
    assert to_bytes(torch.tensor([0.0, 0.4 / 255, 0.6 / 255, 1.0])).tolist() == [0, 0, 1, 255]


def test_png_is_lossless(tmp_path):
    image = torch.randint(0, 256, (3, 4, 5), generator=torch.Generator().manual_seed(0)) / 255
    write_png(image, tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as picture:
        assert picture.size == (5, 4)
        assert list(picture.getpixel((2, 1))) == (image[:, 1, 2] * 255).round().int().tolist()


def test_a_folder_is_read_in_the_order_in_which_it_was_written(tmp_path):
    images = torch.arange(1001).float()[:, None, None, None].expand(1001, 3, 1, 1) / 1000
    names = write_imagefolder(tmp_path, images, [f"number {i}" for i in range(1001)], ["here"] * 1001)
    assert (names[0], names[-1]) == ("0000.png", "1000.png")
    read = Examples.from_folder(tmp_path, size=1)
    assert read.sources == names
    assert read.prompts[999:] == ("number 999", "number 1000")


def test_grid_lays_out_row_by_row_and_fills_with_white():
    images = torch.arange(3).float()[:, None, None, None].expand(3, 3, 2, 2) / 10
    whole = grid(images, 2, gap=1)
    assert whole.shape == (3, 5, 5)
    assert torch.equal(whole[0, 0], torch.tensor([0.0, 0.0, 1.0, 0.1, 0.1]))
    assert torch.equal(whole[0, 3], torch.tensor([0.2, 0.2, 1.0, 1.0, 1.0]))
