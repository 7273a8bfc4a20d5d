import pytest

from immunity import ImmunityError, World


@pytest.fixture(scope="session")
def world() -> World:
    """The embedded world, with its generator."""
    try:
        opened = World.open("emoji")
        assert opened.generator.is_dir()
    except ImmunityError as error:
        pytest.skip(str(error))
    return opened
