import pytest

from tests import tiny_world


@pytest.fixture(scope="session")
def toy(tmp_path_factory):
    """The folder of a tiny world. Read only."""
    return tiny_world.build(tmp_path_factory.mktemp("toy"))
