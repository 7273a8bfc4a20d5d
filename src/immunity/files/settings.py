"""What PEFT's settings say of an adapter's scales: adapter_config.json, or what diffusers writes into the header."""

import math
import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property
from typing import Any

from immunity.errors import ImmunityError
from immunity.files.factors import Factors

_FROM_THE_WEIGHTS = ("pissa", "olora", "corda", "loftq", "lora_ga")
"""Initialisations that subtract the adapter from the base weights: such an adapter does not fit the original model.
EVA's is none of these, although it looks at the model's activations."""
_LONGEST_PATTERN = 200
_LONGEST_NAME = 128  # characters; those of the models that are known have 80
_MOST_CHOICES = 4

Patterns = list[tuple[re.Pattern[str], Any]]


class Settings:
    """Of an adapter, or of its part for one component. Raises `ImmunityError` on what no merging can heed."""

    def __init__(self, values: Mapping[str, Any], component: str = "") -> None:
        """The names of layers begin with `component`, of which the patterns do not know."""
        beginning = str(values.get("init_lora_weights", ""))
        if beginning.lower().startswith(_FROM_THE_WEIGHTS):
            raise ImmunityError(
                expected="an adapter of the model's weights as they are",
                got=f"one whose training began by taking a part out of them (init_lora_weights {beginning!r})",
                remedy="merging it with peft, or its path_initial_model_for_weight_conversion where it was trained",
            )
        if values.get("fan_in_fan_out"):
            raise ImmunityError(
                expected="layers with outputs first",
                got="fan_in_fan_out in its settings",
                remedy="an adapter of a denoiser",
            )
        self._values, self._component = values, component

    @cached_property
    def _alphas(self) -> Patterns:
        return _compiled(self._values.get("alpha_pattern"))

    @cached_property
    def _ranks(self) -> Patterns:
        return _compiled(self._values.get("rank_pattern"))

    def scaled(self, factors: Factors, layer: str) -> Factors:
        """With the scale that the settings give them, where they have no alpha of their own."""
        if factors.alpha is not None:
            return factors
        name = layer.removeprefix(self._component)
        alpha = _first(self._alphas, name, self._values.get("lora_alpha", self._values.get("alpha")))
        # The ranks are those of the tensors, but for a LoKr of whole factors, which peft scales all the same.
        rank = factors.rank or _first(self._ranks, name, None) or self._values.get("r")
        if alpha is None or not rank:
            return factors
        scale = float(alpha) / (math.sqrt(rank) if self._values.get("use_rslora") else rank)
        return replace(factors, alpha=float(alpha), scale=scale)


def by_component(values: Mapping[str, Any]) -> defaultdict[str, Settings]:
    """By the first word of a layer's name: diffusers keeps the settings of all components in one, as "unet.r"."""
    everything = Settings(values)
    own: dict[str, dict[str, Any]] = defaultdict(dict)
    for key, value in values.items():
        component, dot, name = key.partition(".")
        if dot:
            own[component][name] = value
    parts = {component: Settings(found, f"{component}.") for component, found in own.items()}
    return defaultdict(lambda: everything, parts)


def _compiled(patterns: Mapping[str, Any] | None) -> Patterns:
    return [(_pattern(key), value) for key, value in (patterns or {}).items()]


def _pattern(key: str) -> re.Pattern[str]:
    """As peft matches it: a whole name, or its end after a dot.

    Python's matcher tries one choice inside the other, and a pattern can be made to keep it for ever. Where choices are
    few and none is in a group that repeats or looks ahead, it tries at most a power of the name's length.
    """
    choices = len(re.findall(r"[*+?{|]", key))
    if len(key) > _LONGEST_PATTERN or choices > _MOST_CHOICES or re.search(r"\(\?|\)[*+?{]", key):
        raise ImmunityError(
            expected=f"names of layers, or patterns with at most {_MOST_CHOICES} of * + ? {{ | and no group repeated",
            got=f"{key[:60]!r} in the settings",
            remedy="merging the adapter with peft",
        )
    return re.compile(rf"(.*\.)?({key})$")


def _first(patterns: Patterns, name: str, otherwise: Any) -> Any:
    if patterns and len(name) > _LONGEST_NAME:
        raise ValueError(f"a layer whose name has {len(name)} characters")
    return next((value for pattern, value in patterns if pattern.match(name)), otherwise)
