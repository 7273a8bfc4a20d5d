"""The installed program: what it says of itself, and how fast."""

import dataclasses
import inspect
import json
import subprocess
import sys
from typing import get_args

import pytest

from immunity.adaptations import AnyAdaptation
from immunity.cli.choices import joined, name_of
from immunity.cli.program import COMMANDS, function_of
from immunity.erasers import AnyEraser
from immunity.immunizers import AnyImmunizer

from tests.cli.conftest import environment, immunity, installed


def classes(union) -> tuple[type, ...]:
    return get_args(union) or (union,)


def test_help_and_misspelt_verbs_load_no_pytorch():
    code = """
import json, sys
from immunity.cli import main
given = [], ["--help"], ["--version"], ["smaple"], ["sample", "--help"], ["sample"]
codes = [main(list(arguments)) for arguments in given]
print(json.dumps([codes, [name for name in ("torch", "diffusers", "transformers") if name in sys.modules]]))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment(), check=False)
    assert json.loads(done.stdout.splitlines()[-1]) == [[0, 0, 0, 2, 0, 2], []], done.stderr
    assert "immunity: expected a command" in done.stderr
    assert "try immunity sample" in done.stderr


def test_the_program_is_installed():
    shown = installed("--help")
    assert shown.code == 0
    assert all(verb in shown.out for verb in COMMANDS)
    assert installed("sample", "--no-such-flag").code == 2


def test_who_stops_reading_is_not_told_of_it():
    command = [sys.executable, "-m", "immunity", "sample", "--help"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment()
    ) as running:
        running.stdout.close()
        assert running.stderr.read() == ""
        assert running.wait() == 141


def test_each_verb_is_summed_up_by_the_first_line_of_its_docstring():
    for verb, command in COMMANDS.items():
        assert inspect.getdoc(function_of(verb)).splitlines()[0] == command.summary


@pytest.mark.parametrize(
    ("before", "union"),
    [
        (("erase",), AnyEraser),
        (("adapt",), AnyAdaptation),
        (("immunize",), AnyImmunizer),
        (("immunize", "imma", "--against"), AnyAdaptation),
    ],
    ids=["erase", "adapt", "immunize", "against"],
)
def test_every_method_is_a_subcommand_with_its_fields_explained(before, union):
    for method in classes(union):
        shown = immunity(*before, name_of(method), "--help")
        assert shown.code == 0, shown
        words = " ".join(shown.out.replace("│", " ").split())
        assert inspect.getdoc(method).splitlines()[0].split(":")[0] in words
        for field in dataclasses.fields(method):
            assert f"--{field.name.replace('_', '-')}" in words
        assert "(default:" in words


def test_a_verb_lists_its_methods():
    assert "--against lora" in immunity("immunize", "--help").out
    assert "--only STR" in immunity("run", "--help").out  # and not what tyro makes of a text that may be left out
    assert "random-perturbation" in immunity("immunize", "--help").out


def test_against_takes_its_method_as_a_flag_takes_its_value():
    assert joined(["imma", "--against", "lora", "--rank", "4"]) == ["imma", "--against lora", "--rank", "4"]
    assert joined(["--against=lora"]) == ["--against lora"]
    assert joined(["--against"]) == ["--against"]


@pytest.mark.parametrize(
    "arguments",
    [
        ("erase", "--model", "m"),
        ("erase", "--model", "m", "--concept", "c", "--out", "o.safetensors"),
        ("erase", "--model", "m", "--concept", "c", "--out", "o.safetensors", "esd", "--stps", "3"),
        ("erase", "--model", "m", "--concept", "c", "--out", "o.safetensors", "esd", "--steps", "many"),
        ("erase", "--model", "m", "--concept", "c", "--out", "o.safetensors", "essd"),
        ("immunize", "--model", "m", "--images", "i", "--out", "o.safetensors", "imma"),
        ("immunize", "--model", "m", "--images", "i", "--out", "o.safetensors", "imma", "--against", "magic"),
        ("immunize", "--model", "m", "--images", "i", "--out", "o.safetensors", "imma", "--against"),
    ],
    ids=lambda arguments: arguments[-1],
)
def test_flags_that_cannot_be_read_are_code_2(arguments):
    done = immunity(*arguments)
    assert (done.code, done.out) == (2, "")
    assert "Traceback" not in done.err
    assert done.err.strip()
