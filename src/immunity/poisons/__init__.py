"""Data poisoning: pictures that are changed a little before they are published, so that a model learns less from them.

It protects pictures, each one of them, where an immunizer protects a model: what the two are compared in is a study.
"""

from immunity.poisons.advdm import Advdm
from immunity.poisons.aspl import Aspl
from immunity.poisons.base import Poison
from immunity.poisons.encoder import EncoderAttack
from immunity.poisons.noise import RandomNoise
from immunity.poisons.poisoned import AnyPoison, Poisoned

__all__ = ["Advdm", "AnyPoison", "Aspl", "EncoderAttack", "Poison", "Poisoned", "RandomNoise"]
