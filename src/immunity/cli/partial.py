"""What a long run keeps beside its result, so that the same command goes on after a kill."""

import json
import shutil
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from immunity import processes
from immunity.atomic import replacing
from immunity.cli.options import OutputOptions
from immunity.errors import ImmunityError
from immunity.stepping import DivergedError

_RECORD = "run.json"


class Interrupted(KeyboardInterrupt):
    """An interruption whose text says how to go on."""


@contextmanager
def partial(output: OutputOptions, what: Mapping[str, object]) -> Iterator[Path]:
    """The folder <out>.partial for the length of a run that ends by writing the result; then it is removed.

    `what` is what makes the run this one and no other, as values of JSON. A folder that another run began is refused
    (with `force`, replaced). It stays after a kill, an interruption or an error, if the run left a checkpoint in it.
    """
    folder = output.out.with_name(output.out.name + ".partial")
    if processes.is_first():
        _begin(folder, json.dumps(what, sort_keys=True, indent=1), force=output.force)
    processes.wait()
    try:
        yield folder
    except DivergedError:
        _remove(folder)  # going on from there would only diverge again
        raise
    except BaseException as error:
        if not _has_checkpoint(folder):
            _remove(folder)
        elif isinstance(error, KeyboardInterrupt):
            raise Interrupted(f"the same command again goes on from the last checkpoint, in {folder}") from error
        raise
    processes.wait()
    _remove(folder)


def _remove(folder: Path) -> None:
    if processes.is_first():
        shutil.rmtree(folder, ignore_errors=True)


def _begin(folder: Path, record: str, *, force: bool) -> None:
    file = folder / _RECORD
    try:
        # What begins with a dot may be left from a kill while it was written.
        left = [path for path in folder.iterdir() if not path.name.startswith(".")] if folder.exists() else []
        earlier = file.read_text(encoding="utf-8") if file in left else None
    except OSError as error:
        raise ImmunityError(
            expected=f"{folder} for checkpoints", got=error.strerror or str(error), remedy="another --out"
        ) from error
    if left and earlier is None:
        raise ImmunityError(
            expected=f"{folder} free for checkpoints", got="a folder of something else", remedy="another --out"
        )
    if earlier is not None and earlier != record:
        if not force:
            raise ImmunityError(
                expected=f"the command that began {folder}",
                got=f"one that differs: {_difference(earlier, record)}",
                remedy="that command to go on with it, or --force to begin anew",
            )
        shutil.rmtree(folder)
    elif _has_checkpoint(folder):
        print(f"immunity: going on from {folder}", file=sys.stderr)
    with replacing(file, force=True) as temporary:
        temporary.write_text(record, encoding="utf-8")


def _has_checkpoint(folder: Path) -> bool:
    return any(not path.name.startswith(".") for path in folder.glob("*.safetensors"))


def _difference(earlier: str, now: str) -> str:
    """The first line of one record that the other has otherwise."""
    pairs = zip(earlier.splitlines(), now.splitlines(), strict=False)
    before, after = next(((a, b) for a, b in pairs if a != b), (earlier, now))
    return f"{after.strip(' ,')} and not {before.strip(' ,')}"
