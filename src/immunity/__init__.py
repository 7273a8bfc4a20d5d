"""Erase a concept from a text-to-image model, attack the result, immunize it, and report the evidence."""

from immunity.concepts import Concept, Examples
from immunity.deltas import Delta, Provenance
from immunity.errors import ImmunityError

__all__ = ["Concept", "Delta", "Examples", "ImmunityError", "Provenance"]
