"""Unified Concept Editing: erasing in closed form."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from immunity.checks import positive
from immunity.concepts import Concept, naming
from immunity.deltas import Delta, Provenance
from immunity.errors import ImmunityError
from immunity.models import DiffusionModel
from immunity.optimize import Journal

_READ_AT_ONCE = 256  # prompts; large text encoders keep every layer's features of each


@dataclass(frozen=True, kw_only=True)
class Uce:
    """UCE (Gandikota et al., WACV 2024, arXiv 2308.14761): cross-attention's keys and values, edited in closed form.

    Each projection W is replaced by the W' that sends the text features of a concept where W sends those of its
    anchor, keeps those of the preserved prompts, and stays close to W. No training; under a second. Exact, and hence
    supported, where keys and values are linear in the text features themselves: Stable Diffusion 1.x, 2.x and XL.
    """

    anchor: tuple[str, ...] = ("",)
    """What each concept becomes: one text for all concepts, or one each. A word takes the concept's place in its
    prompts; the empty text takes the place of a whole prompt, words before the name included."""
    preserve: tuple[str, ...] = ()
    """Names to keep, besides the concepts' neighbours; each takes the concept's place in its prompts. A sample of what
    is to be kept erases best: tokens that outnumber the text features' width hold the concept in place too."""
    lam: float = 0.1
    """λ, the pull towards the old weights. Small erases and preserves exactly; large changes little."""

    def __post_init__(self) -> None:
        positive(self, "lam")
        if not self.anchor:
            raise ImmunityError(expected="an anchor for all concepts or one each", got="none", remedy='anchor=("",)')

    @torch.no_grad()
    def __call__(
        self,
        model: DiffusionModel,
        concepts: Sequence[Concept],
        *,
        seed: int,
        journal: Journal | None = None,  # noqa: ARG002 (one signature for all erasers)
    ) -> Delta:
        """The new keys and values; `model` is left as it is.

        Nothing here is random or long: `seed` goes into the provenance only, and there is nothing for `journal`.
        """
        provenance = Provenance.of(
            self, model, seed=seed, inputs={"concepts": [dataclasses.asdict(concept) for concept in concepts]}
        )
        pairs = self._edits(concepts)
        edited = _features(model, [prompt for prompt, _ in pairs])
        anchors = _features(model, [prompt for _, prompt in pairs])
        kept = _features(model, self._preserved(concepts))
        change = edit(edited, anchors, kept, self.lam)
        tensors = {
            name: (old + old @ change).to(weight.dtype)
            for name, weight in model.parameters("text_kv").items()
            for old in [weight.to("cpu", torch.float64)]
        }
        return Delta.capture(tensors, provenance)

    def _edits(self, concepts: Sequence[Concept]) -> list[tuple[str, str]]:
        """(prompt of a concept, the prompt that it shall mean), without repetition."""
        if not concepts or len(self.anchor) not in (1, len(concepts)):
            raise ImmunityError(
                expected="at least one concept, and one anchor for all or one each",
                got=f"{len(concepts)} concepts and {len(self.anchor)} anchors",
                remedy="as many anchors as concepts",
            )
        anchors = self.anchor * len(concepts) if len(self.anchor) == 1 else self.anchor
        return list(
            dict.fromkeys(
                (prompt, _instead(prompt, concept.name, anchor))
                for concept, anchor in zip(concepts, anchors, strict=True)
                for prompt in concept.prompts
            )
        )

    def _preserved(self, concepts: Sequence[Concept]) -> list[str]:
        erased = {concept.name for concept in concepts}
        prompts = dict.fromkeys(
            _instead(prompt, concept.name, name)
            for concept in concepts
            for name in (*concept.neighbours, *self.preserve)
            if name not in erased  # church and castle may be erased together, though each is the other's neighbour
            for prompt in concept.prompts
        )
        return list(prompts)


def _instead(prompt: str, name: str, other: str) -> str:
    """The prompt with the other name, or that alone where the prompt does not have the first. Whole words count."""
    renamed, times = naming(name).subn(lambda found: f"{found['article'] or ''}{other}", prompt)
    return renamed if other and times else other


def _features(model: DiffusionModel, prompts: Sequence[str]) -> Tensor:
    """The text features of every token of every prompt: float64 [prompts · tokens, width].

    All positions count and are matched one to one. The text encoder is causal, so where a word takes a concept's place
    the positions before it are equal in both prompts of a pair and are preserved, and those after it, which carry the
    concept too, are edited. Where the empty text does, every position but the first is edited.
    """
    # Encoded and not `unconditional`, which is zeros for Stable Diffusion XL: an edit towards those would take with it
    # the first position, which is the same in every prompt. By itself, as a batch of another size rounds differently.
    nothing = model.text_features(model.encode_prompts([""])).to("cpu", torch.float64)
    rows = nothing[:0]  # no prompts still have features of some width
    if prompts:
        empty = torch.tensor([not prompt for prompt in prompts])
        parts = [prompts[start : start + _READ_AT_ONCE] for start in range(0, len(prompts), _READ_AT_ONCE)]
        read = [model.text_features(model.encode_prompts(part)).to("cpu", torch.float64) for part in parts]
        rows = torch.where(empty[:, None, None], nothing, torch.cat(read))
    return rows.flatten(0, 1)


def edit(edited: Tensor, anchors: Tensor, kept: Tensor, lam: float) -> Tensor:
    """G [d, d] with W' = W + W G, for features c_i [n, d] (edited), c_i* [n, d] (anchors) and c_j [m, d] (kept).

    The paper's W' = (Σ W c_i* c_iᵀ + Σ W c_j c_jᵀ + λ W) M⁻¹ with M = Σ c_i c_iᵀ + Σ c_j c_jᵀ + λ I, after W is taken
    out: G = Σ (c_i* − c_i) c_iᵀ M⁻¹. One solve then serves all layers, and an edit of nothing is exactly no change.
    """
    identity = torch.eye(edited.shape[1], dtype=edited.dtype, device=edited.device)
    gram = edited.T @ edited + kept.T @ kept + lam * identity
    # M is symmetric, so X M⁻¹ = (M⁻¹ Xᵀ)ᵀ.
    return torch.cholesky_solve(edited.T @ (anchors - edited), torch.linalg.cholesky(gram)).T
