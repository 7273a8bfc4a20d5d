import pytest
from PIL import Image

from tests import tiny_judges, tiny_world


@pytest.fixture(scope="session")
def toy(tmp_path_factory):
    """The folder of a tiny world. Read only."""
    return tiny_world.build(tmp_path_factory.mktemp("toy"))


@pytest.fixture(scope="session")
def pictures(tmp_path_factory):
    """A folder of five pictures without prompts. Read only."""
    folder = tmp_path_factory.mktemp("pictures")
    for i in range(5):
        Image.new("RGB", (24, 20), (20 * i, 255 - 20 * i, 90)).save(folder / f"{i}.png")
    return folder


@pytest.fixture(scope="session")
def judges(tmp_path_factory):
    """Folders of a tiny CLIP and a tiny DINO, as FolderBench takes them."""
    root = tmp_path_factory.mktemp("judges")
    for name in ("clip", "dino"):
        (root / name).mkdir()
    return {
        "clip": str(tiny_judges.clip(root / "clip")),
        "dino": str(tiny_judges.dino_transformer(root / "dino")),
        "lpips": False,
    }
