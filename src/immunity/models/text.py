"""A pipeline's text encoders, as its families use them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from immunity.models.folders import quiet_libraries
from immunity.models.vocabulary import Vocabulary, in_full


class ClipFeatures(NamedTuple):
    """What SDXL and SD 3 take from a CLIP text encoder."""

    hidden: Tensor
    """[n, tokens, width], of the layer before the last."""
    pooled: Tensor
    """[n, width], of the whole prompt: projected, where the encoder has a projection."""


@dataclass(frozen=True, eq=False)
class TextEncoder:
    """One of a pipeline's text encoders, with its tokenizer."""

    component: str
    """Its name among the model's."""
    encoder: Any
    tokenizer: Any
    limit: int
    """Tokens to which a prompt is padded or cut."""
    layout: str
    """What files of learned tokens call it."""

    @property
    def vocabulary(self) -> Vocabulary:
        return Vocabulary(self.component, self.tokenizer, self.layout)

    def tokens(self, prompts: Sequence[str]) -> Any:
        whole = in_full(prompts, self.tokenizer)
        return self.tokenizer(whole, padding="max_length", max_length=self.limit, truncation=True, return_tensors="pt")

    def last(self, prompts: Sequence[str], *, masked: bool = False) -> Tensor:
        """The last layer [n, tokens, width]; `masked` keeps the encoder from attending to the padding."""
        tokens = self.tokens(prompts)
        mask = tokens.attention_mask.to(self._device) if masked else None
        last: Tensor = self.encoder(tokens.input_ids.to(self._device), attention_mask=mask)[0]
        return last

    def clip(self, prompts: Sequence[str]) -> ClipFeatures:
        ids = self.tokens(prompts).input_ids.to(self._device)
        output = self.encoder(ids, output_hidden_states=True)
        pooled = self._at_end(output.last_hidden_state, ids)
        projection = getattr(self.encoder, "text_projection", None)  # CLIPTextModelWithProjection has one
        return ClipFeatures(output.hidden_states[-2], pooled if projection is None else projection(pooled))

    def pooled(self, prompts: Sequence[str]) -> Tensor:
        """Of the whole prompt, without a projection [n, width]."""
        ids = self.tokens(prompts).input_ids.to(self._device)
        return self._at_end(self.encoder(ids).last_hidden_state, ids)

    def _at_end(self, hidden: Tensor, ids: Tensor) -> Tensor:
        """[n, width], at the token that ends each prompt.

        The encoders' own pooling finds it by its number's being the largest, where their configuration is as CLIP's
        was published; but the number of a new token is larger.
        """
        ends = (ids == self.tokenizer.eos_token_id).int().argmax(dim=-1)
        return hidden[torch.arange(len(hidden), device=hidden.device), ends]

    def cut(self, prompts: Sequence[str]) -> list[str]:
        """The prompts that are longer than the limit."""
        with quiet_libraries():  # which have a longer and darker warning of their own
            whole = dict(zip(prompts, in_full(prompts, self.tokenizer), strict=True))
            return [text for text, full in whole.items() if len(self.tokenizer(full).input_ids) > self.limit]

    @property
    def _device(self) -> torch.device:
        device: torch.device = self.encoder.device
        return device
