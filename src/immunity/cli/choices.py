"""Unions of methods as subcommands: the union type is the registry, here it becomes flags and help."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Union, get_args

import tyro
from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec, PrimitiveTypeInfo

AGAINST = "--against"


def subcommands(union: Any, *, before: str = "") -> Any:
    """A type that tyro reads as a subcommand for each class of `union`: `ascent-only` for AscentOnly.

    `before` is put before the names. A union of one, which Python makes the class itself, is one subcommand.
    """
    classes = get_args(union) or (union,)
    choices = [
        Annotated[kind, tyro.conf.subcommand(name=before + name_of(kind), prefix_name=False)] for kind in classes
    ]
    # A suppressed member, as Python would make a union of one the class itself again.
    return Union[(*choices, Annotated[None, tyro.conf.Suppress])]


def name_of(method: type) -> str:
    """Of a method's class on the command line."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "-", method.__name__).lower()


def joined(arguments: Sequence[str]) -> list[str]:
    """The arguments with `--against lora`, or `--against=lora`, as one word: the name that the subcommand has."""
    words = iter(arguments)
    found = []
    for word in words:
        if word == AGAINST:
            found.append(" ".join([word, *([following] if (following := next(words, "")) else [])]))
        elif word.startswith(f"{AGAINST}="):
            found.append(word.replace("=", " ", 1))
        else:
            found.append(word)
    return found


def read(what: Any, arguments: Sequence[str], *, prog: str) -> Any:
    """Reads a command line for a function, which is called, or for a type, which is made.

    A text or a path that may be left out is just that, and the word None is a text.
    """
    registry = ConstructorRegistry()
    registry.primitive_rule(_optional)
    return tyro.cli(
        what,
        prog=prog,
        args=arguments,
        # `--model` and not `--model.model`: the groups of options are for the reader of the options' files.
        config=(tyro.conf.OmitArgPrefixes, tyro.conf.FlagCreatePairsOff),
        registry=registry,
    )


def _optional(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[Any] | None:
    kinds: dict[Any, type] = {str | None: str, Path | None: Path}
    kind = kinds.get(info.type)
    if kind is None:
        return None
    return PrimitiveConstructorSpec(
        nargs=1,
        metavar=kind.__name__.upper(),
        instance_from_str=lambda words: kind(words[0]),
        is_instance=lambda value: value is None or isinstance(value, kind),
        str_from_instance=lambda value: [str(value)],
    )
