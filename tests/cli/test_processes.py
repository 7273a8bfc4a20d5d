"""Two processes share a training, and the result is that of one."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.cli.conftest import environment, immunity


def launched(*arguments: object, processes: int = 2) -> subprocess.CompletedProcess[str]:
    """The command, by accelerate's launcher, on the CPU (by gloo).

    Without a GPU the launcher starts several processes only if it is told that there are some.
    """
    command = [
        *(sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", str(processes)),
        *("--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"),
        *("-m", "immunity", *map(str, arguments)),
    ]
    alone = {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true", "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=250, env={**environment(), **alone}
    )


def near(one: Path, other: Path) -> bool:
    first, second = load_file(one), load_file(other)
    assert first.keys() == second.keys()
    # The sum of two halves of a batch is not to the bit that of the whole, and AdamW's first steps divide by it.
    moved = [torch.allclose(first[name].float(), second[name].float(), atol=2e-5, rtol=1e-3) for name in first]
    return all(moved)


METHODS = {
    "erase": ("esd", "--steps", 4, "--batch", 2, "--sampler-steps", 4),
    "immunize": ("imma", "--steps", 6, "--against", "lora", "--rank", 2, "--batch", 2),
}


@pytest.mark.parametrize("verb", METHODS)
def test_two_processes_give_what_one_gives(verb, sd1, pictures, tmp_path):
    shown = ("--concept", "church") if verb == "erase" else ("--images", pictures, "--prompt", "a church")
    common = (verb, "--model", sd1, *shown)
    assert immunity(*common, "--out", tmp_path / "one.safetensors", *METHODS[verb]).code == 0
    done = launched(*common, "--out", tmp_path / "two.safetensors", *METHODS[verb])
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [str(tmp_path / "two.safetensors")]
    assert near(tmp_path / "one.safetensors", tmp_path / "two.safetensors")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one.safetensors", "two.safetensors"]


def test_a_denoiser_that_is_split_learns_the_same(tiny_folders, pictures, tmp_path):
    common = ("immunize", "--model", tiny_folders["flux"], "--images", pictures, "--prompt", "a church")
    assert immunity(*common, "--out", tmp_path / "one.safetensors", *METHODS["immunize"]).code == 0
    done = launched(*common, "--shard", "--out", tmp_path / "two.safetensors", *METHODS["immunize"])
    assert done.returncode == 0, done.stderr
    assert near(tmp_path / "one.safetensors", tmp_path / "two.safetensors")


def test_a_split_denoiser_draws_the_class_pictures_too(tiny_folders, pictures, tmp_path):
    prior = ("--class-prompt", "a church", "--prior-pictures", 2, "--prior-steps", 1)
    done = launched(
        *("immunize", "--model", tiny_folders["flux"], "--images", pictures, "--prompt", "a church", "--shard"),
        *("--out", tmp_path / "two.safetensors", "imma", "--steps", 2, "--against", "dreambooth-lora", "--rank", 2),
        *("--batch", 2, *prior),
    )
    assert done.returncode == 0, done.stderr


def test_what_is_split_cannot_be_trained(sd1, pictures, tmp_path):
    done = launched(
        *("adapt", "--model", sd1, "--images", pictures, "--prompt", "a church", "--out", tmp_path / "no", "--shard"),
        *("--whole", "text_kv", "lora", "--steps", 2, "--batch", 2),
    )
    assert done.returncode != 0
    assert "split over the processes; try other targets, or --whole" in done.stderr


def test_one_process_splits_nothing(sd1, tmp_path):
    done = immunity(
        *("erase", "--model", sd1, "--shard", "--concept", "church", "--out", tmp_path / "no.safetensors", "uce")
    )
    assert done.complaint.startswith("immunity: expected several processes to share the weights")


def test_nothing_is_drawn_by_a_model_that_is_to_be_split(sd1, tmp_path):
    done = immunity(
        *("adapt", "--model", sd1, "--shard", "--concept", "church", "--drawn", 2, "--out", tmp_path / "no", "lora")
    )
    assert "got --drawn, which would draw them before it is; try immunity sample" in done.complaint


def test_an_attack_and_its_samples_are_written_once(sd1, pictures, tmp_path):
    common = ("adapt", "--model", sd1, "--images", pictures, "--prompt", "a church", "--sample-at", 2)
    method = ("lora", "--rank", 2, "--steps", 2, "--batch", 2)
    drawn = ("--sample-steps", 2, "--sample-count", 1)
    assert immunity(*common, *drawn, "--out", tmp_path / "one", *method).code == 0
    done = launched(*common, *drawn, "--out", tmp_path / "two", *method)
    assert done.returncode == 0, done.stderr
    files = [
        sorted(str(p.relative_to(tmp_path / name)) for p in (tmp_path / name).rglob("*")) for name in ("one", "two")
    ]
    assert files[0] == files[1]
    assert near(tmp_path / "one" / "delta.safetensors", tmp_path / "two" / "delta.safetensors")


def test_a_batch_that_cannot_be_shared_is_refused(sd1, pictures, tmp_path):
    done = launched(
        *("adapt", "--model", sd1, "--images", pictures, "--prompt", "a church", "--out", tmp_path / "no"),
        *("lora", "--steps", 2, "--batch", 3),
    )
    assert done.returncode != 0
    assert "immunity: expected batches that 2 processes can share equally; got 3 pictures; try --batch 4" in done.stderr
    assert not list(tmp_path.iterdir())


def test_what_is_not_shared_wants_one_process(monkeypatch):
    monkeypatch.setitem(os.environ, "WORLD_SIZE", "2")
    assert immunity("info", "emoji").complaint.startswith("immunity: expected one process")
