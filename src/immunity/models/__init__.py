"""What is attacked and protected: the models, one file for each family."""

from immunity.models.base import Conditioning, DiffusionModel, PartialSample, thawed
from immunity.models.flux import FluxModel
from immunity.models.pixart import PixartModel
from immunity.models.sd3 import Sd3Model
from immunity.models.sdxl import SdxlModel
from immunity.models.unet import UNetModel

AnyModel = UNetModel | SdxlModel | Sd3Model | FluxModel | PixartModel

__all__ = [
    "AnyModel",
    "Conditioning",
    "DiffusionModel",
    "FluxModel",
    "PartialSample",
    "PixartModel",
    "Sd3Model",
    "SdxlModel",
    "UNetModel",
    "thawed",
]
