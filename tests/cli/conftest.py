import contextlib
import io
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from PIL import Image

from immunity.cli import main

PROGRAM = Path(sys.executable).with_name("immunity")


@dataclass(frozen=True)
class Done:
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def complaint(self) -> str:
        """The one line that bad input gets."""
        assert self.code == 2, self
        lines = self.err.strip().splitlines()
        assert len(lines) == 1, self.err
        assert lines[0].startswith("immunity: expected "), self.err
        return lines[0]


def immunity(*arguments: object) -> Done:
    """The command, in this process: importing PyTorch anew takes as long as a hundred of these."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main([str(argument) for argument in arguments])
    return Done(code, out.getvalue(), err.getvalue())


def installed(*arguments: object) -> Done:
    """The installed program, as a subprocess."""
    done = subprocess.run(
        [PROGRAM, *map(str, arguments)], capture_output=True, text=True, env=environment(), check=False, timeout=250
    )
    return Done(done.returncode, done.stdout, done.stderr)


def environment() -> dict[str, str]:
    return {**os.environ, "HF_HUB_OFFLINE": "1"}


@pytest.fixture(scope="session")
def pictures(tmp_path_factory) -> Path:
    """A folder of six pictures without prompts. Read only."""
    folder = tmp_path_factory.mktemp("pictures")
    for i in range(6):
        Image.new("RGB", (20, 24), (40 * i, 255 - 40 * i, 128)).save(folder / f"{i}.png")
    return folder


@pytest.fixture(scope="session")
def sd1(tiny_folders) -> Path:
    return tiny_folders["sd1"]
