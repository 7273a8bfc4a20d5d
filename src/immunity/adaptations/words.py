"""Adaptations that call what they teach by a word of their own."""

from abc import ABC
from dataclasses import dataclass

from immunity.adaptations.base import Adaptation
from immunity.errors import ImmunityError


@dataclass(frozen=True, kw_only=True)
class Named(Adaptation, ABC):
    """An adaptation that gives its subject a name."""

    token: str = "sks"
    """The word for what is learned: a rare one, so that little else is meant by it."""
    noun: str = ""
    """The word for its kind, which follows it in prompts: "church"."""
    captions: tuple[str, ...] = ("a photo of {}",)
    """What all pictures are called, in turn; {} is the word, and the noun after it. Without any, the pictures' own
    prompts, in which {} may stand too."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.token or len(self.token.split()) != 1:
            raise ImmunityError(expected="a token that is one word", got=repr(self.token), remedy="sks")

    @property
    def subject(self) -> str:
        return f"{self.token} {self.noun}".strip()
