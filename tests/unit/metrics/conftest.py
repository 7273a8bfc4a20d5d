import pytest
import torch
from torch import Tensor


@pytest.fixture
def images() -> Tensor:
    """Five random pictures, [5, 3, 20, 20]."""
    return torch.rand(5, 3, 20, 20, generator=torch.Generator().manual_seed(7))


@pytest.fixture
def references() -> Tensor:
    return torch.rand(3, 3, 20, 20, generator=torch.Generator().manual_seed(8))
