"""New words for a model: tokens whose vectors were learned, while they are part of its text encoders."""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from immunity.errors import ImmunityError
from immunity.filenames import DELTA_FILE, LORA_FILE, TOKEN_FILE

if TYPE_CHECKING:
    from immunity.models.base import DiffusionModel

_ONE_ENCODER = "emb_params"
"""The key under which most programs keep the vectors of a token in a file for one text encoder."""


class Vocabulary(NamedTuple):
    """The words of one text encoder: what a new token is added to."""

    component: str
    """Of the model: the text encoder."""
    tokenizer: Any
    layout: str
    """The name of this encoder in files of learned tokens for several: "clip_l", "clip_g", "t5"."""


class ExtendedTable(nn.Module):
    """A table of tokens with rows after its last. The table is as it was, and the rows are not in its copy."""

    def __init__(self, table: nn.Embedding, first: int, rows: nn.Parameter) -> None:
        super().__init__()
        self.table, self.first = table, first
        # In a tuple, and so not among the module's parameters: libraries take a module's dtype from those.
        self._rows = (rows,)

    @property
    def weight(self) -> Tensor:
        return self.table.weight

    def forward(self, ids: Tensor) -> Tensor:
        new = ids >= self.first
        known = self.table(ids.masked_fill(new, 0))
        own = F.embedding((ids - self.first).clamp(min=0), self._rows[0]).to(known.dtype)
        return torch.where(new.unsqueeze(-1), own, known)


def names_of(token: str, vectors: int) -> tuple[str, ...]:
    """What tokenizers know a token of several vectors by, as diffusers has it: `<t>`, `<t>_1`, `<t>_2`, …"""
    return (token, *(f"{token}_{number}" for number in range(1, vectors)))


def in_full(prompts: Sequence[str], tokenizer: Any) -> list[str]:
    """The prompts with each token of several vectors written out, as diffusers' pipelines do before they encode."""
    known: Mapping[str, int] = tokenizer.added_tokens_encoder
    written = {}
    for token in known:
        names = [token]
        while (following := f"{token}_{len(names)}") in known:
            names.append(following)
        if len(names) > 1:
            written[token] = " ".join(names)
    full = list(prompts)
    for token, names_in_full in written.items():
        full = [prompt.replace(token, names_in_full) for prompt in full]
    return full


class NewWord:
    """A token with vectors [n, width] for text encoders: a word of the model inside `with`, time and again.

    Text encoders without such vectors read it as ordinary text.
    """

    def __init__(self, model: "DiffusionModel", token: str, rows: Mapping[str, nn.Parameter]) -> None:
        if (read := model.as_read(token)) != token:
            raise ImmunityError(
                expected=f"a token that {model.family} reads as it is written",
                got=f"{token!r}, which becomes {read!r}",
                remedy=repr(read),
            )
        self._taught: list[_Taught] = []
        self._places: list[_Place] = []
        for vocabulary in model.vocabularies():
            if (own := rows.get(vocabulary.component)) is None:
                continue
            encoder = model.components[vocabulary.component]
            taught = _teach(vocabulary.tokenizer, names_of(token, len(own)))
            table: Any = encoder.get_input_embeddings()  # type: ignore[operator]
            longer = ExtendedTable(table, taught.first, own).train(table.training)
            self._taught.append(taught)
            self._places += [
                _Place(module, name, table, longer)
                for module in encoder.modules()
                for name, child in module.named_children()
                if child is table
            ]

    def __enter__(self) -> None:
        for taught in self._taught:
            vars(taught.tokenizer).update(taught.after)
        for place in self._places:
            setattr(place.module, place.name, place.longer)

    def __exit__(self, *_: object) -> None:
        for place in self._places:
            setattr(place.module, place.name, place.table)
        for taught in self._taught:
            vars(taught.tokenizer).clear()
            vars(taught.tokenizer).update(taught.before)


class _Place(NamedTuple):
    """Where a module has a table."""

    module: nn.Module
    name: str
    table: nn.Module
    longer: ExtendedTable


class _Taught(NamedTuple):
    """A tokenizer's state without and with new words.

    Tokenizers cannot forget. All who hold this one, pipelines among them, shall find it taught and then as it was, so
    its state is exchanged for that of a copy that was taught.
    """

    tokenizer: Any
    before: Mapping[str, Any]
    after: Mapping[str, Any]
    first: int
    """The number of the first of the words, which follow one another."""


def _teach(tokenizer: Any, names: Sequence[str]) -> _Taught:
    copied = copy.deepcopy(tokenizer)
    if any(len(tokenizer.tokenize(name)) < 2 for name in names) or copied.add_tokens(list(names)) < len(names):
        raise ImmunityError(
            expected="a token that is no word of the model yet",
            got=repr(names[0]),
            remedy=f"<{names[0].strip('<>')}-1>",
        )
    numbers = copied.convert_tokens_to_ids(list(names))
    assert numbers == list(range(numbers[0], numbers[0] + len(names)))
    return _Taught(tokenizer, dict(vars(tokenizer)), dict(vars(copied)), numbers[0])


@dataclass(frozen=True, eq=False)
class LearnedToken:
    """A word that a model has been taught, apart from the model: what Textual Inversion leaves behind."""

    token: str
    rows: Mapping[str, Tensor]
    """Its vectors [n, width], by text encoder; of some of them, where the others read the word as ordinary text."""

    def known_to(self, model: "DiffusionModel") -> NewWord:
        """The token is a word of the model in a block: `with token.known_to(model):`."""
        return NewWord(model, self.token, _rows_for(model, self))

    def files(self, model: "DiffusionModel") -> dict[str, dict[str, Tensor]]:
        """The files in which such tokens circulate, by name: for diffusers, and for programs that go by the name."""
        encoders = model.vocabularies()
        rows = {entry.layout: self.rows[entry.component] for entry in encoders if entry.component in self.rows}
        named = f"{self.token.strip('<>*') or 'token'}.safetensors"
        if named in (DELTA_FILE, LORA_FILE, TOKEN_FILE):  # which may lie in the same folder
            named = f"token-{named}"
        if len(encoders) > 1:
            return {named: rows}
        (own,) = rows.values()
        return {TOKEN_FILE: {self.token: own}, named: {_ONE_ENCODER: own}}


def _rows_for(model: "DiffusionModel", learned: LearnedToken) -> dict[str, nn.Parameter]:
    rows = {}
    for vocabulary in model.vocabularies():
        table = model.components[vocabulary.component].get_input_embeddings().weight  # type: ignore[operator]
        if (value := learned.rows.get(vocabulary.component)) is None:
            continue
        if value.ndim != 2 or value.shape[1] != table.shape[1]:
            raise ImmunityError(
                expected=f"vectors [n, {table.shape[1]}] of {learned.token} for {vocabulary.component}",
                got=str(list(value.shape)),
                remedy="a token that was learned on this family of models",
            )
        rows[vocabulary.component] = nn.Parameter(value.to(table.device), requires_grad=False)
    if not rows:
        raise ImmunityError(
            expected=f"vectors of {learned.token} for a text encoder of {model.name}",
            got=", ".join(learned.rows) or "none",
            remedy="a token that was learned on this family of models",
        )
    return rows
