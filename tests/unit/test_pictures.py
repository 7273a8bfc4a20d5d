import torch
from PIL import Image

from immunity.pictures import grid, to_bytes, write_png


def test_bytes_round_to_the_nearest():
    assert to_bytes(torch.tensor([0.0, 0.4 / 255, 0.6 / 255, 1.0])).tolist() == [0, 0, 1, 255]


def test_png_is_lossless(tmp_path):
    image = torch.randint(0, 256, (3, 4, 5), generator=torch.Generator().manual_seed(0)) / 255
    write_png(image, tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as picture:
        assert picture.size == (5, 4)
        assert list(picture.getpixel((2, 1))) == (image[:, 1, 2] * 255).round().int().tolist()


def test_grid_lays_out_row_by_row_and_fills_with_white():
    images = torch.arange(3).float()[:, None, None, None].expand(3, 3, 2, 2) / 10
    whole = grid(images, 2, gap=1)
    assert whole.shape == (3, 5, 5)
    assert torch.equal(whole[0, 0], torch.tensor([0.0, 0.0, 1.0, 0.1, 0.1]))
    assert torch.equal(whole[0, 3], torch.tensor([0.2, 0.2, 1.0, 1.0, 1.0]))
