"""Finds the verb, lets tyro read its flags, and turns what goes wrong into one line and an exit code."""

import difflib
import importlib
import importlib.metadata
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from typing import NamedTuple

from immunity.errors import ImmunityError
from immunity.processes import started

PROGRAM = "immunity"


_SHARED_BY_PROCESSES = ("erase", "adapt", "immunize")
"""What `accelerate launch` may start several processes for."""


class Command(NamedTuple):
    """A verb: the function of that name in `module`. Its arguments are its flags, their descriptions its help."""

    module: str
    summary: str
    """First line of the function's docstring: here too, so that `immunity --help` imports no verb."""


COMMANDS = {
    "demo": Command(
        "study",
        "Show the whole story on the embedded world: erased, relearned, immunized, relearned less, reported.",
    ),
    "info": Command("models", "Tell what a model, a world or a file is: what it changes, and where it comes from."),
    "erase": Command("methods", "Remove concepts from a model's weights: a delta, one .safetensors file."),
    "adapt": Command(
        "methods",
        "Teach a model something, as an attacker or an honest user would: a folder with a delta and an adapter file.",
    ),
    "immunize": Command(
        "methods", "Change a model's weights so that a later adaptation fails: a delta, one .safetensors file."
    ),
    "poison": Command(
        "methods",
        "Change pictures a little so that this model learns the less from them: a folder of pictures.",
    ),
    "sample": Command(
        "models",
        "Draw pictures: a folder with 000.png, …, metadata.csv, grid.png (a row for each prompt) and sample.json.",
    ),
    "measure": Command("study", "Score pictures of a concept one by one: a table, and the same as one .json file."),
    "run": Command(
        "study",
        'Carry out a study: a Python file that defines `study = Study(…)`, or `studies = {"name": Study(…), …}`.',
    ),
    "report": Command(
        "study",
        "Make one self-contained page of a study's records, finished or not; or its tables alone, as Markdown (.md).",
    ),
    "export": Command("models", "Write a model, with its deltas in it, as a plain diffusers folder with a model card."),
    "convert": Command("files", "Write a LoRA in the layout of another program: diffusers, or kohya's trainer."),
    "push": Command(
        "files", "Upload an exported model, or the folder of an attack, to the hub. Nothing else ever uploads anything."
    ),
}


def function_of(verb: str) -> Callable[..., None]:
    """The function behind a verb of `COMMANDS`; this is what imports PyTorch, where the verb's flags need it."""
    function: Callable[..., None] = getattr(importlib.import_module(f"immunity.cli.{COMMANDS[verb].module}"), verb)
    return function


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the program. Its exit code is 0; 2 for bad input, 130 when interrupted, 141 when nobody reads on."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _warn
            return _run(given)
    except ImmunityError as error:
        return _say(str(error), code=2)
    except KeyboardInterrupt as error:
        return _say(f"interrupted; nothing half-written is left; {error}".rstrip("; "), code=130)
    except BrokenPipeError:
        # Who reads has seen enough, as `head` has. What is still in the buffer goes nowhere, so that the interpreter's
        # own flush at the end does not complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except OSError as error:
        # What the rooms have not foreseen is still the machine's trouble and not the program's.
        problem = ImmunityError(
            expected="files that can be read and written", got=str(error), remedy="another path or disk"
        )
        return _say(str(problem), code=2)
    except (RuntimeError, MemoryError) as error:
        # PyTorch's own class, by name: naming it properly would import PyTorch for `--help`.
        on_cpu = "can't allocate memory" in str(error)  # for which PyTorch has no class
        if not (isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError" or on_cpu):
            raise
        problem = ImmunityError(
            expected="enough memory", got=str(error).splitlines()[0], remedy="a smaller --batch, or --dtype bfloat16"
        )
        return _say(str(problem), code=2)


def _say(text: str, *, code: int) -> int:
    print(f"{PROGRAM}: {text}", file=sys.stderr)
    return code


def _run(given: Sequence[str]) -> int:
    if not given or given[0] in ("-h", "--help"):
        print(_help())
        return 0
    if given[0] == "--version":
        print(importlib.metadata.version(PROGRAM))
        return 0
    try:
        _call(given[0], given[1:])
    except SystemExit as leaving:  # how tyro ends after help (0) and after flags that it cannot read (2)
        return leaving.code if isinstance(leaving.code, int) else 2
    return 0


def _call(verb: str, arguments: Sequence[str]) -> None:
    if verb not in COMMANDS:
        near = difflib.get_close_matches(verb, COMMANDS, n=1)
        raise ImmunityError(
            expected=f"a command: {', '.join(COMMANDS)}",
            got=repr(verb),
            remedy=f"{PROGRAM} {near[0]}" if near else f"{PROGRAM} --help",
        )
    if started() > 1 and verb not in _SHARED_BY_PROCESSES:
        raise ImmunityError(
            expected=f"one process, as only {', '.join(_SHARED_BY_PROCESSES)} share their work by `accelerate launch`",
            got=f"{started()} for {verb}",
            remedy=f"{PROGRAM} {verb} without the launcher",
        )
    from immunity.cli.choices import joined, read

    read(function_of(verb), joined(arguments), prog=f"{PROGRAM} {verb}")


def _help() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:{width}}  {command.summary}" for name, command in COMMANDS.items()]
    return "\n".join(
        [
            f"usage: {PROGRAM} COMMAND …",
            "",
            "Erase a concept from a text-to-image model, attack the result, immunize it, and report the evidence.",
            "",
            *lines,
            "",
            f"{PROGRAM} COMMAND --help tells more.",
        ]
    )


def _warn(message: Warning | str, category: type[Warning], *_: object, **__: object) -> None:
    # A user's warning is one line; a library's deprecations are no business of the user's.
    if issubclass(category, UserWarning):
        print(f"{PROGRAM}: {' '.join(str(message).split())}", file=sys.stderr)
