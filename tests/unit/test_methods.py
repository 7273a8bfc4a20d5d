"""What holds of every method because of what a method is: a frozen dataclass whose fields explain themselves."""

import ast
import dataclasses
import inspect
import itertools
import json
import types
from typing import get_args

import pytest

from immunity.adaptations import AnyAdaptation
from immunity.erasers import AnyEraser
from immunity.immunizers import AnyImmunizer


def members(union) -> tuple[type, ...]:
    return get_args(union) if isinstance(union, types.UnionType) else (union,)


METHODS = [*members(AnyEraser), *members(AnyAdaptation), *members(AnyImmunizer)]


def explained(kind: type) -> set[str]:
    """Fields that a docstring follows, in the class or in one that it inherits from."""
    names = set()
    for base in kind.__mro__[:-1]:
        if dataclasses.is_dataclass(base):
            body = ast.parse(inspect.getsource(base)).body[0].body
            for statement, following in itertools.pairwise(body):
                if isinstance(statement, ast.AnnAssign) and isinstance(following, ast.Expr):
                    names.add(statement.target.id)
    return names


@pytest.mark.parametrize("method", METHODS)
def test_every_field_has_help(method):
    assert {field.name for field in dataclasses.fields(method)} <= explained(method)
    assert method.__doc__


@pytest.mark.parametrize("method", METHODS)
def test_it_is_frozen_has_defaults_and_goes_into_json(method):
    made = method()
    assert method(**dataclasses.asdict(made)) == made
    json.dumps(dataclasses.asdict(made))
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(made, dataclasses.fields(made)[0].name, None)
