import pytest
import torch

from immunity import Examples


@pytest.fixture
def examples(model) -> Examples:
    images = torch.rand(4, 3, model.resolution, model.resolution, generator=torch.Generator().manual_seed(0))
    return Examples(images, ("image of church",) * 3 + ("church",), tuple("abcd"))
