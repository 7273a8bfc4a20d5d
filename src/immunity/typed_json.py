"""JSON that is exactly what a dataclass says, or a message that names the place where it is not."""

import dataclasses
import json
import math
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from immunity.errors import ImmunityError

T = TypeVar("T")


class _MismatchError(ValueError):
    """Where in the document, and what stands there instead of what."""


def dumps(content: Any, *, format: str, version: int) -> str:
    """A dataclass as JSON in an envelope that names its format. NaN and infinities become null: JSON has no others."""
    envelope = {"format": format, "version": version, "content": _plain(dataclasses.asdict(content))}
    return json.dumps(envelope, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def read(kind: type[T], path: Path, *, format: str, version: int) -> T:
    """Reads a file that `dumps` wrote. Raises `ImmunityError` with the file's name for anything else."""
    try:
        envelope = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:  # Python's own limit for digits is a plain ValueError
        raise ImmunityError(
            expected=f"a complete file of format {format}",
            got=f"{path} ({error})",
            remedy="deleting it and running the study again, which repeats only what is missing",
        ) from error
    found = envelope.get("format") if isinstance(envelope, dict) else None
    if not isinstance(envelope, dict) or found != format:
        raise ImmunityError(
            expected=f"a file of format {format}",
            got=f"{path} ({f'format {found!r}' if found else 'some other JSON'})",
            remedy="a folder that holds nothing but one study's records",
        )
    if envelope.get("version") != version:
        raise ImmunityError(
            expected=f"{format} version {version}",
            got=f"version {envelope.get('version')!r} in {path}",
            remedy="the version of immunity that wrote it",
        )
    try:
        return parse(kind, envelope.get("content"))
    except _MismatchError as error:
        raise ImmunityError(
            expected=f"{format} version {version}, whole",
            got=f"{path}, where {error}",
            remedy="deleting it and running the study again",
        ) from error
    except ImmunityError as error:  # a dataclass refused its own fields
        raise ImmunityError(expected=error.expected, got=f"{error.got} in {path}", remedy=error.remedy) from error


def parse(kind: type[T], content: object) -> T:
    """The dataclass in the envelope. Raises ValueError, or what the dataclass itself raises."""
    return _typed(kind, content, "content")  # type: ignore[no-any-return]


def _plain(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value


def _typed(kind: Any, value: Any, where: str) -> Any:
    """What json.loads gave, as `kind`: a dataclass, tuple[X, ...], Mapping[str, X], X | None, Literal or plain type."""
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        return _typed_dataclass(kind, value, where)
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        (inner,) = (argument for argument in arguments if argument is not types.NoneType)
        return None if value is None else _typed(inner, value, where)
    if origin is tuple:
        _require(isinstance(value, list), where, "a list", value)
        return tuple(_typed(arguments[0], item, f"{where}[{i}]") for i, item in enumerate(value))
    if origin is Mapping:
        _require(isinstance(value, dict), where, "an object", value)
        return {key: _typed(arguments[1], item, f"{where}.{key}") for key, item in value.items()}
    if origin is Literal:
        _require(value in arguments, where, f"one of {', '.join(map(str, arguments))}", value)
        return value
    if kind is object:
        return value
    if kind is float:
        if value is None:
            return math.nan
        _require(isinstance(value, int | float) and not isinstance(value, bool), where, "a number", value)
        try:
            return float(value)
        except OverflowError as error:
            raise _MismatchError(f"{where} is larger than any float") from error
    _require(isinstance(value, kind) and not (kind is int and isinstance(value, bool)), where, kind.__name__, value)
    return value


def _typed_dataclass(kind: type, value: Any, where: str) -> Any:
    _require(isinstance(value, dict), where, "an object", value)
    fields = {field.name: field for field in dataclasses.fields(kind)}
    for name in value.keys() - fields.keys():
        raise _MismatchError(f"{where} has an unknown field {name!r}")
    for name, field in fields.items():
        required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if required and name not in value:
            raise _MismatchError(f"{where} lacks {name!r}")
    hints = get_type_hints(kind)
    return kind(**{name: _typed(hints[name], item, f"{where}.{name}") for name, item in value.items()})


def _require(condition: bool, where: str, expected: str, value: Any) -> None:
    if not condition:
        shown = repr(value)
        raise _MismatchError(f"{where} should be {expected} and is {shown if len(shown) < 60 else shown[:57] + '…'}")
