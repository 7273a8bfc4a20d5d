"""φ as a new word of the model: vectors of its own in the text encoders' tables of tokens, and nothing else of them."""

from abc import ABC
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from immunity.adaptations.attached import AdapterFiles, Attached
from immunity.adaptations.words import Named
from immunity.checks import at_least
from immunity.errors import ImmunityError
from immunity.models import DiffusionModel
from immunity.models.vocabulary import LearnedToken, NewWord, Vocabulary
from immunity.optimize import derived_seed


@dataclass(frozen=True, kw_only=True)
class NewToken(Named, ABC):
    """An adaptation whose φ, or a part of it, is a word that the model did not have."""

    token: str = "<new>"
    """The word for what is learned; the model must not have it yet."""
    vectors: int = 1
    """How many vectors the word has. More can say more."""
    initialiser: str | None = None
    """A word of the model, of one token, whose vector they begin with; without it they begin at random, as words lie
    in the table."""

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self, 1, "vectors")

    def trains_text(self, model: DiffusionModel) -> bool:  # noqa: ARG002
        return True

    def named(self, prompts: tuple[str, ...]) -> tuple[str, ...]:
        named = super().named(prompts)
        if without := [prompt for prompt in named if self.token not in prompt]:
            raise ImmunityError(
                expected=f"prompts that have the new token {self.token} in them",
                got=repr(without[0]),
                remedy="captions=('a photo of {}',) (--captions), in which {} is the token",
            )
        return named


class TokenRows(Attached):
    """Vectors after the last row of each text encoder's table. The tables themselves are not trained, nor copied."""

    def __init__(self, model: DiffusionModel, token: str, *, vectors: int, initialiser: str | None) -> None:
        self._model, self._token, self._initialiser = model, token, initialiser
        self._phi = {}
        for vocabulary in model.vocabularies():
            table = self._table(vocabulary)
            dtype = torch.float32 if table.dtype.itemsize < 4 else table.dtype
            rows = torch.empty(vectors, table.shape[1], dtype=dtype, device=table.device)
            self._phi[vocabulary.component] = nn.Parameter(rows, requires_grad=False)
        self.word = NewWord(model, token, self._phi)

    @contextmanager
    def disabled(self) -> Iterator[None]:
        self.word.__exit__()
        try:
            yield
        finally:
            self.word.__enter__()

    def named_parameters(self) -> Mapping[str, nn.Parameter]:
        return self._phi

    @torch.no_grad()
    def reset(self, seed: int) -> None:
        for vocabulary in self._model.vocabularies():
            table, rows = self._table(vocabulary), self._phi[vocabulary.component]
            if self._initialiser is not None:
                rows.copy_(table[self._first_row(vocabulary, self._initialiser)])
                continue
            generator = torch.Generator().manual_seed(derived_seed(seed, vocabulary.component))
            noise = torch.randn(rows.shape, generator=generator).to(rows)
            whole = table.detach().to(rows.dtype)
            rows.copy_(whole.mean(dim=0) + whole.std(dim=0) * noise)

    def merged(self) -> dict[str, Tensor]:
        return {}

    def tokens(self) -> tuple[LearnedToken, ...]:
        rows = {component: value.detach().cpu().clone() for component, value in self._phi.items()}
        return (LearnedToken(self._token, rows),)

    def files(self) -> AdapterFiles:
        return {name: file for token in self.tokens() for name, file in token.files(self._model).items()}

    def _table(self, vocabulary: Vocabulary) -> Tensor:
        weight: Tensor = self._model.components[vocabulary.component].get_input_embeddings().weight  # type: ignore[operator]
        return weight

    @staticmethod
    def _first_row(vocabulary: Vocabulary, word: str) -> int:
        numbers: list[int] = vocabulary.tokenizer(word, add_special_tokens=False).input_ids
        if len(numbers) != 1:
            raise ImmunityError(
                expected="an initialiser of one token",
                got=f"{word!r}, of {len(numbers)} for the model's {vocabulary.component}",
                remedy="a shorter or more usual word, such as one for its kind",
            )
        return numbers[0]


@contextmanager
def new_rows(model: DiffusionModel, adaptation: NewToken, *, seed: int) -> Iterator[TokenRows]:
    """The adaptation's token, newly initialised, as a word of the model for the length of a block."""
    phi = TokenRows(model, adaptation.token, vectors=adaptation.vectors, initialiser=adaptation.initialiser)
    phi.reset(seed)
    with phi.word:
        yield phi
