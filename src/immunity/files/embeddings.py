"""Words that others have taught a text encoder: the files of Textual Inversion (Gal et al., 2023).

| layout | what is in it |
|---|---|
| diffusers | `{token: vectors}` |
| A1111 (.pt), Textual Inversion's own code | `string_to_param: {"*": vectors}` and, in A1111, a `name` |
| A1111 and others (.safetensors) | `emb_params: vectors`; the token is the file's name |
| for several text encoders | `clip_l`, `clip_g`, `t5`: vectors of each, or of some |
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

from immunity.deltas import is_finite
from immunity.errors import ImmunityError
from immunity.files.tensors import TensorFile, is_real
from immunity.models.vocabulary import LearnedToken

if TYPE_CHECKING:
    from immunity.models import DiffusionModel

_ENCODERS = frozenset({"clip_l", "clip_g", "t5"})
_A1111 = "string_to_param."
_MOST_VECTORS = 1000
_WIDTHS = {768: "Stable Diffusion 1.x", 1024: "Stable Diffusion 2.x", 1280: "Stable Diffusion XL's second encoder"}


@dataclass(frozen=True, eq=False)
class Embedding:
    """Vectors that stand for a word."""

    file: str
    token: str
    rows: Mapping[str, Tensor]
    """By text encoder, as files name them; under "" where there is one only and the file does not name it."""
    layout: str
    notes: Mapping[str, str]

    @classmethod
    def from_file(cls, file: TensorFile) -> "Embedding | None":
        """None if it is no such file."""
        # The numbers that tokens once had in somebody's tokenizer may be tensors, too.
        tensors = {name: value for name, value in file.tensors.items() if not name.startswith("string_to_token.")}
        metadata = file.metadata
        notes = {
            key: metadata[key] for key in ("name", "step", "sd_checkpoint", "sd_checkpoint_name") if key in metadata
        }
        word = f"<{file.path.stem}>"
        if tensors and all(name.startswith(_A1111) for name in tensors):
            rows, layout, word = {"": next(iter(tensors.values()))}, "A1111", metadata.get("name") or word
            if len(tensors) > 1:
                raise _refused(file, f"{len(tensors)} tokens")
        elif "emb_params" in tensors and len(tensors) == 1:
            rows, layout = {"": tensors["emb_params"]}, "A1111 (emb_params)"
        elif tensors and set(tensors) <= _ENCODERS:
            rows, layout = dict(tensors), "several text encoders"
        elif len(tensors) == 1:
            ((name, only),) = tensors.items()
            # Weights of layers have dotted names; tokens do not.
            if only.ndim not in (1, 2) or ("." in name and not name.startswith("<")):
                return None
            rows, layout, word = {"": only}, "diffusers", name
        else:
            return None
        rows = {encoder: _vectors(file, value) for encoder, value in rows.items()}
        return cls(file.path.name, word, rows, layout, notes)

    def describe(self) -> dict[str, object]:
        count = len(next(iter(self.rows.values())))
        sizes = ", ".join(f"{encoder or 'one encoder'} {value.shape[1]}" for encoder, value in self.rows.items())
        width = next(iter(self.rows.values())).shape[1] if len(self.rows) == 1 else None
        return {
            "token": f"{self.token}, a learned word in the layout of {self.layout}",
            "changes": "the text encoder's words, and no weight of the model",
            "vectors": f"{count} of width {sizes}",
            "for": _WIDTHS.get(width or 0, "unknown") if len(self.rows) == 1 else "models with these text encoders",
            **self.notes,
        }

    def learned(self, model: "DiffusionModel", *, token: str | None = None) -> LearnedToken:
        """As a word of this kind of model: `token`, or what the file calls it.

        Text encoders that a file for several has nothing for read the word as ordinary text.
        """
        vocabularies = model.vocabularies()
        if "" in self.rows and len(vocabularies) == 1:
            own = {vocabularies[0].component: self.rows[""]}
        else:
            own = {one.component: self.rows[one.layout] for one in vocabularies if one.layout in self.rows}
            if not own:
                raise ImmunityError(
                    expected=f"vectors for {' or '.join(one.layout for one in vocabularies)}",
                    got=f"{', '.join(sorted(self.rows)).strip(', ') or 'one text encoder only'} in {self.file}",
                    remedy="a token that was learned on this family of models",
                )
        return LearnedToken(token or self.token, own)


def _vectors(file: TensorFile, value: Tensor) -> Tensor:
    if value.ndim not in (1, 2) or not is_real(value):
        raise _refused(file, f"a tensor of shape {list(value.shape)}")
    rows = value.reshape(-1, value.shape[-1])
    if len(rows) > _MOST_VECTORS or not is_finite(rows):
        raise _refused(file, f"{len(rows)} vectors, or vectors that are no numbers")
    return rows


def _refused(file: TensorFile, got: str) -> ImmunityError:
    return ImmunityError(
        expected="the vectors of one learned token", got=f"{got} in {file.path}", remedy="a file of Textual Inversion"
    )
