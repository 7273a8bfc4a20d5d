"""Writes docs/reference.md: what `import immunity` has, from the code. `python docs/make_reference.py`."""

import ast
import dataclasses
import functools
import inspect
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import get_args

from immunity import (
    AttackResult,
    Concept,
    Delta,
    DiffusionModel,
    Examples,
    FolderBench,
    Journal,
    Sampler,
    Study,
    Subject,
    World,
    WorldBench,
    adapt,
    load,
    write_report,
)
from immunity.adaptations import AnyAdaptation, Mixture
from immunity.erasers import AnyEraser
from immunity.immunizers import AnyImmunizer
from immunity.poisons import AnyPoison, Poisoned

PAGE = Path(__file__).with_name("reference.md")
HEAD = """# Reference

Made by `python docs/make_reference.py` from the code. Every method is a frozen dataclass; its fields are its
hyper-parameters and, on the command line, its flags (`outer_lr` is `--outer-lr`). What comes from which paper:
`docs/papers.md`. What methods work on, and what they give, is at the end.
"""
ROOMS: dict[str, tuple[type, ...]] = {
    "Erasers": get_args(AnyEraser),
    "Adaptations": (*get_args(AnyAdaptation), Mixture),
    "Immunizers": get_args(AnyImmunizer),
    "Poisons": (*get_args(AnyPoison), Poisoned),
    "Studies": (Study, Sampler, WorldBench, FolderBench, Subject),
}
FUNCTIONS = (load, adapt, write_report)
OBJECTS: tuple[type, ...] = (DiffusionModel, World, Concept, Examples, Delta, AttackResult, Journal)


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


def called(name: str, function: Callable[..., object]) -> str:
    """The call, with defaults and without types."""
    shown, starred = [], False
    for each in inspect.signature(function).parameters.values():
        if each.name in ("self", "cls"):
            continue
        if each.kind is each.KEYWORD_ONLY and not starred:
            shown, starred = [*shown, "*"], True
        shown.append(each.name + ("" if each.default is each.empty else f"={each.default!r}"))
    return f"`{name}({', '.join(shown)})`"


def public(kind: type) -> Iterator[str]:
    """A line on each of its fields, where the class has not said it all, and of its own methods and properties."""
    texts = explained(kind)
    yield from (f"- `{name}`: {text}" for name, text in texts.items())
    for name, member in vars(kind).items():
        computed = isinstance(member, property | functools.cached_property)
        function = {property: "fget", functools.cached_property: "func"}.get(type(member), "__func__")
        made = getattr(member, function, member)
        text = inspect.getdoc(made)
        if name.startswith("_") or name in texts or text is None or not inspect.isroutine(made):
            continue
        yield f"- {f'`{name}`' if computed else called(name, made)}: {' '.join(text.split(chr(10) * 2)[0].split())}"


def page() -> str:
    lines = [HEAD]
    for room, kinds in ROOMS.items():
        lines.append(f"## {room}\n")
        for kind in kinds:
            lines += [f"### {kind.__name__}\n", f"{inspect.getdoc(kind)}\n", *fields(kind), ""]
    lines.append("## Functions\n")
    for function in FUNCTIONS:
        lines += [
            f"### {function.__name__}\n",
            f"{called(function.__name__, function)}\n",
            f"{inspect.getdoc(function)}\n",
        ]
    lines.append("## What methods work on, and what they give\n")
    for kind in OBJECTS:
        name = kind.__name__
        made = [f"{called(name, kind)}\n"] if dataclasses.is_dataclass(kind) else []
        lines += [f"### {name}\n", *made, f"{inspect.getdoc(kind)}\n", *public(kind), ""]
    return "\n".join(lines)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
