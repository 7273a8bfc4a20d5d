"""New words for a model: tokens whose vectors were learned, while they are part of its text encoders."""

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from immunity.errors import ImmunityError

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


@contextmanager
def extended(model: "DiffusionModel", token: str, rows: Mapping[str, nn.Parameter]) -> Iterator[None]:
    """The token is a word of the model in this block; `rows` has its vectors [n, width] by text encoder."""
    with ExitStack() as stack:
        for vocabulary in model.vocabularies():
            own = rows[vocabulary.component]
            first = stack.enter_context(_more_words(vocabulary.tokenizer, names_of(token, len(own))))
            stack.enter_context(_longer_table(model.components[vocabulary.component], first, own))
        yield


@contextmanager
def _more_words(tokenizer: Any, names: Sequence[str]) -> Iterator[int]:
    """Yields the number of the first of the names, which follow one another."""
    taught = copy.deepcopy(tokenizer)
    if any(len(tokenizer.tokenize(name)) < 2 for name in names) or taught.add_tokens(list(names)) < len(names):
        raise ImmunityError(
            expected="a token that is no word of the model yet",
            got=repr(names[0]),
            remedy=f"<{names[0].strip('<>')}-1>",
        )
    numbers = taught.convert_tokens_to_ids(list(names))
    assert numbers == list(range(numbers[0], numbers[0] + len(names)))
    # Tokenizers cannot forget. All who hold this one, pipelines among them, shall find it taught and then as it was, so
    # its state is exchanged for that of its taught copy.
    before = dict(vars(tokenizer))
    vars(tokenizer).update(vars(taught))
    try:
        yield numbers[0]
    finally:
        vars(tokenizer).clear()
        vars(tokenizer).update(before)


@contextmanager
def _longer_table(encoder: Any, first: int, rows: nn.Parameter) -> Iterator[None]:
    table = encoder.get_input_embeddings()
    places = [
        (module, name)
        for module in encoder.modules()
        for name, child in vars(module)["_modules"].items()
        if child is table
    ]
    longer = ExtendedTable(table, first, rows).train(table.training)
    for module, name in places:
        setattr(module, name, longer)
    try:
        yield
    finally:
        for module, name in places:
            setattr(module, name, table)


@dataclass(frozen=True, eq=False)
class LearnedToken:
    """A word that a model has been taught, apart from the model: what Textual Inversion leaves behind."""

    token: str
    rows: Mapping[str, Tensor]
    """Its vectors [n, width], by text encoder."""

    @contextmanager
    def known_to(self, model: "DiffusionModel") -> Iterator[None]:
        """The token is a word of the model in this block."""
        with extended(model, self.token, _rows_for(model, self)):
            yield

    def files(self, model: "DiffusionModel") -> dict[str, dict[str, Tensor]]:
        """The files in which such tokens circulate, by name: for diffusers, and for programs that go by the name."""
        rows = {entry.layout: self.rows[entry.component] for entry in model.vocabularies()}
        named = f"{self.token.strip('<>*') or 'token'}.safetensors"
        if len(rows) > 1:
            return {named: rows}
        (own,) = rows.values()
        return {"learned_embeds.safetensors": {self.token: own}, named: {_ONE_ENCODER: own}}

    @classmethod
    def load(cls, path: str | Path, model: "DiffusionModel", *, token: str | None = None) -> "LearnedToken":
        """Reads such a file, made for this family of models. `token`: what the word shall be; the file's own without.

        A file that does not say is taken by its name: church.safetensors for <church>.
        """
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        path = Path(path)
        try:
            tensors: dict[str, Tensor] = load_file(path)
        except (SafetensorError, OSError) as error:
            raise ImmunityError(
                expected="a safetensors file of a learned token",
                got=f"{path} ({error})",
                remedy="learned_embeds.safetensors; pickles (.bin, .pt) are never read",
            ) from error
        vocabularies = model.vocabularies()
        word = token or f"<{path.stem}>"
        if len(vocabularies) == 1 and len(tensors) == 1:
            ((name, rows),) = tensors.items()
            if name != _ONE_ENCODER and token is None:
                word = name
            return cls(word, {vocabularies[0].component: rows.reshape(-1, rows.shape[-1])})
        if {entry.layout for entry in vocabularies} != set(tensors):
            raise ImmunityError(
                expected=f"vectors for {', '.join(entry.layout for entry in vocabularies)}",
                got=f"{', '.join(sorted(tensors)[:4])} in {path}",
                remedy="the file of a token that was learned on this family of models",
            )
        return cls(word, {entry.component: tensors[entry.layout] for entry in vocabularies})


def _rows_for(model: "DiffusionModel", learned: LearnedToken) -> dict[str, nn.Parameter]:
    rows = {}
    for vocabulary in model.vocabularies():
        table = model.components[vocabulary.component].get_input_embeddings().weight  # type: ignore[operator]
        value = learned.rows.get(vocabulary.component)
        if value is None or value.ndim != 2 or value.shape[1] != table.shape[1]:
            raise ImmunityError(
                expected=f"vectors [n, {table.shape[1]}] of {learned.token} for {vocabulary.component}",
                got="none" if value is None else str(list(value.shape)),
                remedy="a token that was learned on this family of models",
            )
        rows[vocabulary.component] = nn.Parameter(value.to(table.device), requires_grad=False)
    return rows
