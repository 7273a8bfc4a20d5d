"""Runs that end too early lose nothing: the same command again gives what an uninterrupted one would have given."""

import contextlib
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image
from safetensors.torch import load_file

from immunity import Delta
from immunity.cli import subjects

from tests.cli.conftest import PROGRAM, Done, environment, immunity


def steps_in(checkpoint: Path) -> int:
    return len(load_file(checkpoint)["results"]) if checkpoint.exists() else 0


def stopped(arguments: list[str], sign: signal.Signals, *, when: Callable[[], bool]) -> Done:
    """Starts the installed program and sends it the signal as soon as `when` says so."""
    process = subprocess.Popen(
        [PROGRAM, *arguments],
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A shell that runs the tests in the background makes its children ignore it.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    try:
        while not when():
            assert process.poll() is None, process.communicate()
            time.sleep(0.02)
        process.send_signal(sign)
        out, err = process.communicate(timeout=120)
        return Done(process.returncode, out, err)
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()


def test_an_interruption_and_a_kill_do_not_change_the_result(sd1, pictures, tmp_path):
    out = tmp_path / "immune.safetensors"
    checkpoint = tmp_path / "immune.safetensors.partial" / "Imma.safetensors"

    def command(out: Path, seed: int = 0) -> list[str]:
        return [
            *("immunize", "--model", str(sd1), "--images", str(pictures), "--prompt", "a church"),
            *("--out", str(out), "--seed", str(seed), "--save-every", "1"),
            *("imma", "--steps", "60", "--against", "lora", "--rank", "2"),
        ]

    done = stopped(command(out), signal.SIGINT, when=lambda: steps_in(checkpoint) >= 2)
    assert done.code == 130, done
    last = done.err.strip().splitlines()[-1]
    assert last.startswith("immunity: interrupted; nothing half-written is left; the same command again goes on")
    assert "Traceback" not in done.err
    first = steps_in(checkpoint)
    assert 2 <= first < 60
    assert not out.exists()

    done = stopped(command(out), signal.SIGKILL, when=lambda: steps_in(checkpoint) >= first + 2)
    assert done.code == -signal.SIGKILL
    assert "going on from" in done.err
    second = steps_in(checkpoint)
    assert first + 2 <= second < 60
    assert not out.exists()

    other = immunity(*command(out, seed=1))
    assert 'differs: "seed": 1 and not "seed": 0' in other.complaint
    assert steps_in(checkpoint) == second

    assert immunity(*command(out)).code == 0
    assert not checkpoint.parent.exists()
    whole = tmp_path / "whole.safetensors"
    assert immunity(*command(whole)).code == 0
    assert Delta.load(out).hash == Delta.load(whole).hash


@pytest.fixture
def interrupted_at(monkeypatch) -> Callable[[str], None]:
    """Makes the drawing of a grid the moment at which the user loses patience."""
    real = subjects.draw

    def at(name: str) -> None:
        def draw(*arguments, label, **settings):
            if label.endswith(name):
                raise KeyboardInterrupt
            return real(*arguments, label=label, **settings)

        monkeypatch.setattr(subjects, "draw", draw)

    return at


def test_grids_drawn_before_an_interruption_are_kept(sd1, pictures, tmp_path, interrupted_at):
    def command(out: Path, *more: object) -> Done:
        return immunity(
            *("adapt", "--model", sd1, "--images", pictures, "--prompt", "a church", "--out", out, *more),
            *("--save-every", 1, "--sample-at", 0, 1, 3, "--sample-count", 1, "--sample-steps", 1),
            *("lora", "--steps", 3, "--lr", 0.01),
        )

    interrupted_at("00003.png")
    done = command(tmp_path / "attack")
    assert done.code == 130, done
    assert not (tmp_path / "attack").exists()
    interrupted_at("nothing")
    done = command(tmp_path / "attack")
    assert done.code == 0, done
    assert "going on from" in done.err
    assert command(tmp_path / "whole").code == 0
    for file in ("samples/00000.png", "samples/00001.png", "samples/00003.png", "pytorch_lora_weights.safetensors"):
        if file.endswith(".png"):
            assert (tmp_path / "attack" / file).read_bytes() == (tmp_path / "whole" / file).read_bytes()
    first, second = (Delta.load(tmp_path / name / "delta.safetensors") for name in ("attack", "whole"))
    assert first.hash == second.hash


def test_pictures_that_were_drawn_to_learn_from_are_kept_for_who_goes_on(sd1, tmp_path, interrupted_at):
    """Another device would not draw the same to the bit, and the checkpoint would be of other pictures."""

    def command(*more: object) -> Done:
        return immunity(
            *("adapt", "--model", sd1, "--concept", "church", "--drawn", 2, "--out", tmp_path / "attack", *more),
            *("--save-every", 1, "--sample-at", 2, "--sample-count", 1, "--sample-steps", 1, "lora", "--steps", 2),
        )

    interrupted_at("00002.png")
    assert command().code == 130
    assert len(list(tmp_path.glob("attack.partial/pictures/*.safetensors"))) == 1
    interrupted_at("draw")
    assert 'differs: "dtype": "bfloat16" and not "dtype": "float32"' in command("--dtype", "bfloat16").complaint
    done = command()
    assert done.code == 0, done
    assert sorted(path.name for path in tmp_path.iterdir()) == ["attack"]


def test_force_begins_anew_where_another_run_was_interrupted(sd1, pictures, tmp_path, interrupted_at):
    def command(*more: object) -> Done:
        return immunity(
            *("adapt", "--model", sd1, "--images", pictures, "--prompt", "a church", "--out", tmp_path / "attack"),
            *("--save-every", 1, "--sample-at", 2, "--sample-count", 1, "--sample-steps", 1, *more, "lora"),
            *("--steps", 2),
        )

    interrupted_at("00002.png")
    assert command().code == 130
    interrupted_at("nothing")
    assert "--force to begin anew" in command("--seed", 1).complaint
    done = command("--seed", 1, "--force")
    assert done.code == 0, done
    assert Delta.load(tmp_path / "attack" / "delta.safetensors").provenance.seed == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["attack"]


def test_another_model_other_deltas_and_other_pictures_make_another_run(sd1, pictures, tmp_path, interrupted_at):
    mine, attack, erased = tmp_path / "mine", tmp_path / "attack", tmp_path / "erased.safetensors"
    shutil.copytree(pictures, mine)
    shutil.copytree(sd1, tmp_path / "model")

    def command(*more: object, model: object = tmp_path / "model") -> Done:
        return immunity(
            *("adapt", "--model", model, "--images", mine, "--prompt", "a church", "--out", attack, *more),
            *("--save-every", 1, "--sample-at", 2, "--sample-count", 1, "--sample-steps", 1, "lora", "--steps", 2),
        )

    def erase(concept: str) -> None:
        erased.unlink(missing_ok=True)
        assert immunity("erase", "--model", sd1, "--concept", concept, "--out", erased, "uce").code == 0

    changes: list[tuple[Callable[[], object], Callable[[], Done], Callable[..., Done]]] = [
        (lambda: None, command, lambda *more: command(*more, model=sd1)),
        (lambda: erase("church"), command, lambda *more: command(*more, "--deltas", erased)),
        (
            lambda: erase("castle"),
            lambda: command("--deltas", erased),
            lambda *more: command(*more, "--deltas", erased),
        ),
        (lambda: Image.new("RGB", (9, 9), "red").save(mine / "0.png"), command, command),
    ]
    erase("church")
    for change, first, then in changes:
        shutil.rmtree(attack, ignore_errors=True)
        interrupted_at("00002.png")
        assert first().code == 130
        change()
        assert "one that differs" in then().complaint
        interrupted_at("nothing")
        done = then("--force")
        assert done.code == 0, done
        assert "going on from" not in done.err


def test_every_verb_that_keeps_checkpoints_tells_runs_apart_by_what_they_are_made_from(sd1, pictures, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(sd1, other)
    learned = ("--images", pictures, "--prompt", "a church")
    for verb, out, more in (
        ("erase", "a.safetensors", ("--concept", "church", "esd", "--steps", 1, "--sampler-steps", 1)),
        ("adapt", "b", (*learned, "lora", "--steps", 1)),
        ("immunize", "c.safetensors", (*learned, "imma", "--steps", 1, "--against", "lora")),
        ("poison", "d", (*learned, "advdm", "--steps", 1)),
    ):
        folder = tmp_path / f"{out}.partial"

        def command(model: Path, verb=verb, out=out, more=more) -> Done:
            return immunity(verb, "--model", model, "--out", tmp_path / out, *more)

        with pytest.MonkeyPatch.context() as patched:
            patched.setattr("immunity.cli.partial._remove", lambda _: None)
            assert command(sd1).code == 0
        shutil.rmtree(tmp_path / out) if (tmp_path / out).is_dir() else (tmp_path / out).unlink()
        assert "one that differs" in command(other).complaint, verb
        shutil.rmtree(folder)


def test_an_interruption_before_the_first_checkpoint_leaves_nothing(sd1, pictures, tmp_path, interrupted_at):
    interrupted_at("00000.png")
    done = immunity(
        *("adapt", "--model", sd1, "--images", pictures, "--prompt", "a church", "--out", tmp_path / "attack"),
        *("--sample-at", 0, "lora", "--steps", 1),
    )
    assert done.code == 130
    assert done.err.strip() == "immunity: interrupted; nothing half-written is left"
    assert not list(tmp_path.iterdir())
