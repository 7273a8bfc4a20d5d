"""The model card of an exported model: what was erased, immunized and measured, from the deltas' own provenance."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from immunity.deltas import FORMAT, Delta, Provenance
from immunity.evaluation.measure import Measurement
from immunity.files.hub import HUB_ID

_FILES = {"Adapter", "Weights"}  # methods that are somebody else's file


def model_card(
    name: str, *, base: str, base_hash: str, deltas: Sequence[Delta], measured: Sequence[Measurement] = ()
) -> str:
    """README.md with front matter. `base` is the model that the deltas were applied to.

    `measured` is what judges said of pictures that this very model drew.
    """
    history = [made for delta in deltas for made in _history(delta.provenance)]
    erased = [made for made in history if _concepts(made)]
    immunized = [made for made in history if _against(made)]
    others = [made for made in history if made not in erased and made not in immunized]
    tags = ["immunity", *(["concept-erasure"] if erased else []), *(["immunization"] if immunized else [])]
    front = {
        "library_name": "diffusers",
        "pipeline_tag": "text-to-image",
        **({"base_model": base} if HUB_ID.fullmatch(base) else {}),
        "tags": tags,
    }
    sections = [
        f"# {_text(name)}",
        f"{_text(base)} (weights {base_hash[:16]}) with {_counted(len(history), 'change')}, as a folder of diffusers.",
        *_section("What was erased", map(_erasure, erased), "Nothing."),
        *_section("What it was immunized against", map(_immunization, immunized), "Nothing."),
        *_section("What else was changed", map(_other, others), None),
        *_section("What was measured", map(_measurement, measured), "Nothing that this card knows of."),
        "## Limits",
        "Erased concepts can be taught again, and immunity fades as an attacker trains for longer or differently. "
        "Neither is a guarantee: `immunity report` shows how far they hold. The licence is that of the base model.",
    ]
    # JSON is YAML, and leaves no doubt about what is a string.
    head = "\n".join(f"{key}: {json.dumps(value, ensure_ascii=False)}" for key, value in front.items())
    return f"---\n{head}\n---\n\n" + "\n\n".join(sections) + "\n"


def _history(made: Provenance) -> Iterator[Provenance]:
    """Itself, or what it was composed of."""
    parts = made.config.get("deltas") if made.composed else None
    # A header says of itself what it likes.
    if not isinstance(parts, list) or not all(isinstance(part, dict) for part in parts):
        yield made
        return
    for part in parts:
        fields = {key: value for key, value in part.items() if key != "hash"}
        yield from _history(Provenance.from_json(json.dumps({"format": FORMAT, **fields})))


def _inputs(made: Provenance) -> Mapping[str, Any]:
    inputs = made.config.get("inputs")
    return inputs if isinstance(inputs, dict) else {}


def _concepts(made: Provenance) -> list[Mapping[str, Any]]:
    concepts = _inputs(made).get("concepts")
    return concepts if isinstance(concepts, list) else []


def _against(made: Provenance) -> Mapping[str, Any]:
    against = _inputs(made).get("against")
    return against if isinstance(against, dict) else {}


def _erasure(made: Provenance) -> str:
    names = ", ".join(f"{_text(one.get('name'))} ({_text(one.get('kind'))})" for one in _concepts(made))
    return f"{names}, by {_method(made)}"


def _immunization(made: Provenance) -> str:
    against = _against(made)
    # A mixture of attacks has a method of its own in each of its parts.
    name = _text(against.get("method", "several attacks"))
    return f"{name} ({_settings(against)}), by {_method(made)}"


def _other(made: Provenance) -> str:
    if made.method in _FILES:
        return (
            f"the file {_text(made.config.get('file'))} (SHA-256 {_text(made.config.get('sha256'))[:16]}) was applied"
        )
    return f"{_method(made)}"


def _method(made: Provenance) -> str:
    return f"`{_text(made.method)}` ({_settings(made.config)}), seed {made.seed}, {_text(made.created)[:10]}"


def _settings(config: Mapping[str, Any]) -> str:
    short = {
        key: value for key, value in config.items() if key != "method" and isinstance(value, str | int | float | bool)
    }
    return ", ".join(f"{_text(key)} {_text(value)}" for key, value in short.items()) or "no settings"


def _measurement(measured: Measurement) -> str:
    means = ", ".join(f"{_text(title)} {value:.3f}" for title, value in measured.means().items())
    return f"{_text(measured.concept)}, mean of {_counted(len(measured.pictures), 'picture')}: {means}"


def _section(title: str, items: Iterator[str], nothing: str | None) -> list[str]:
    lines = [f"- {item}" for item in items]
    if not lines and nothing is None:
        return []
    return [f"## {title}", "\n".join(lines) or str(nothing)]


def _counted(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _text(value: object) -> str:
    """On one line and without marks of Markdown or HTML: names and file names are other people's words."""
    plain = "".join(letter if letter.isprintable() else " " for letter in str(value))
    return re.sub(r"([\\`*_\[\]<>#|])", r"\\\1", " ".join(plain.split()))
