"""Writes docs/reference.md: every method and every field of it, from the code. `python docs/make_reference.py`."""

import ast
import dataclasses
import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

from immunity import FolderBench, Sampler, Study, Subject, WorldBench
from immunity.adaptations import AnyAdaptation, Mixture
from immunity.erasers import AnyEraser
from immunity.immunizers import AnyImmunizer
from immunity.poisons import AnyPoison, Poisoned

PAGE = Path(__file__).with_name("reference.md")
HEAD = """# Reference

Made by `python docs/make_reference.py` from the code. Every method is a frozen dataclass; its fields are its
hyper-parameters and, on the command line, its flags (`outer_lr` is `--outer-lr`). What comes from which paper:
`docs/papers.md`.
"""
ROOMS: dict[str, tuple[type, ...]] = {
    "Erasers": get_args(AnyEraser),
    "Adaptations": (*get_args(AnyAdaptation), Mixture),
    "Immunizers": get_args(AnyImmunizer),
    "Poisons": (*get_args(AnyPoison), Poisoned),
    "Studies": (Study, Sampler, WorldBench, FolderBench, Subject),
}


def explained(kind: type) -> dict[str, str]:
    """The string below each field, by the field's name: of the class itself or, where it says nothing, of a base."""
    found: dict[str, str] = {}
    for one in reversed(kind.__mro__):
        if one is object or not dataclasses.is_dataclass(one):
            continue
        (body,) = ast.parse(inspect.cleandoc(inspect.getsource(one))).body
        assert isinstance(body, ast.ClassDef)
        for field, below in zip(body.body, body.body[1:], strict=False):
            if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and isinstance(below, ast.Expr):
                text = below.value
                if isinstance(text, ast.Constant) and isinstance(text.value, str):
                    found[field.target.id] = " ".join(text.value.split())
    return found


def default(field: dataclasses.Field) -> str:
    if field.default is not dataclasses.MISSING:
        value = field.default
    elif field.default_factory is not dataclasses.MISSING:
        value = field.default_factory()
    else:
        return "needed"
    text = type(value).__name__ + "()" if dataclasses.is_dataclass(value) else repr(value)
    return f"`{text if len(text) <= 60 else text[:57] + '…'}`"


def fields(kind: type) -> Iterator[str]:
    texts = explained(kind)
    yield "| field | default | |"
    yield "|---|---|---|"
    for field in dataclasses.fields(kind):
        text = texts.get(field.name, "").replace("|", "\\|")
        yield f"| `{field.name}` | {default(field).replace('|', chr(92) + '|')} | {text} |"


def page() -> str:
    lines = [HEAD]
    for room, kinds in ROOMS.items():
        lines.append(f"## {room}\n")
        for kind in kinds:
            lines += [f"### {kind.__name__}\n", f"{inspect.getdoc(kind)}\n", *fields(kind), ""]
    return "\n".join(lines)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
