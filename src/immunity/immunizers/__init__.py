"""Methods that change the weights so that a later adaptation fails, and the baselines that they must beat."""

from immunity.immunizers.imma import Imma
from immunity.immunizers.naive import AscentOnly
from immunity.immunizers.noise import RandomPerturbation

AnyImmunizer = Imma | AscentOnly | RandomPerturbation

__all__ = ["AnyImmunizer", "AscentOnly", "Imma", "RandomPerturbation"]
