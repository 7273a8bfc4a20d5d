"""Methods that remove a concept from the weights, one file each."""

from immunity.erasers.esd import Esd
from immunity.erasers.uce import Uce

AnyEraser = Esd | Uce

__all__ = ["AnyEraser", "Esd", "Uce"]
