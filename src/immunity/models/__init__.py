"""What is attacked and protected: the models, one file for each family."""

from immunity.models.base import Conditioning, DiffusionModel, PartialSample
from immunity.models.unet import UNetModel

__all__ = ["Conditioning", "DiffusionModel", "PartialSample", "UNetModel"]
