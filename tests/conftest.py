import os
from pathlib import Path

import pytest
from hypothesis import settings

from tests import tiny

# A test that reached for the hub would pass or fail by the weather.
os.environ["HF_HUB_OFFLINE"] = "1"

# The first example pays for PyTorch's warm-up, so a deadline would fail by the load of the machine; and a build that is
# green must stay green.
settings.register_profile("immunity", deadline=None, derandomize=True)
settings.load_profile("immunity")


@pytest.fixture(scope="session")
def tiny_folders(tmp_path_factory) -> tiny.Folders:
    """A diffusers folder for each tiny family, built when it is asked for. Read only."""
    return tiny.Folders(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(params=tiny.FAMILIES)
def family(request) -> str:
    return request.param


@pytest.fixture
def folder(tiny_folders, family) -> Path:
    return tiny_folders[family]


@pytest.fixture
def model(folder):
    """A fresh model of each tiny family in turn."""
    from immunity import load

    return load(folder)
