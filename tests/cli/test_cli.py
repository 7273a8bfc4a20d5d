"""The installed program, as a subprocess."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from PIL import Image

from immunity import Delta, Examples, Provenance, load

PROGRAM = Path(sys.executable).with_name("immunity")


def run(*arguments: object) -> subprocess.CompletedProcess:
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [PROGRAM, *map(str, arguments)], capture_output=True, text=True, env=environment, check=False, timeout=250
    )


@pytest.fixture(scope="module")
def folder(tiny_folders):
    return tiny_folders["sd1"]


def test_help_is_fast_and_version_is_known():
    start = time.perf_counter()
    shown = run("--help")
    assert time.perf_counter() - start < 5, "no PyTorch at the start"
    assert shown.returncode == 0
    assert "sample" in shown.stdout
    assert run("--version").stdout.strip()[0].isdigit()


def test_help_loads_no_heavy_library():
    code = "import sys, immunity.cli; immunity.cli.main(['--help']); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode == 0


def test_sample_writes_what_the_library_draws(folder, tmp_path):
    out = tmp_path / "pictures"
    done = run(
        *("sample", "--model", folder, "--out", out, "--prompt", "image of a church", "a castle"),
        *("--images", 2, "--seed", 5, "--steps", 2, "--guidance", 3),
    )
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in out.iterdir()) == [
        *(f"{i:03}.png" for i in range(4)),
        "grid.png",
        "sample.json",
    ]
    record = json.loads((out / "sample.json").read_text())
    assert [(row["prompt"], row["seed"]) for row in record["images"]] == [
        ("image of a church", 5),
        ("image of a church", 6),
        ("a castle", 5),
        ("a castle", 6),
    ]
    model = load(folder)
    assert record["base_hash"] == model.base_hash
    images = model.sample([row["prompt"] for row in record["images"]], seeds=[5, 6, 5, 6], steps=2, guidance=3)
    written = Examples.from_folder(out, prompt="", size=model.resolution).images[:4]
    assert (written - images).abs().max() <= 0.51 / 255
    assert Image.open(out / "grid.png").size == (2 * 16 + 2, 2 * 16 + 2)


def test_export_with_a_delta_loads_in_plain_diffusers(folder, tmp_path):
    from diffusers import StableDiffusionPipeline

    model = load(folder)
    name = next(iter(model.parameters("text_kv")))
    made = Provenance(base=model.name, base_hash=model.base_hash, method="Test", config={"lr": 1}, seed=7)
    Delta({name: torch.ones_like(model.parameters("all")[name])}, made).save(tmp_path / "delta.safetensors")
    shown = run("info", tmp_path / "delta.safetensors")
    assert shown.returncode == 0, shown.stderr
    assert 'Test {"lr": 1}' in shown.stdout
    done = run("export", "--model", folder, "--deltas", tmp_path / "delta.safetensors", "--out", tmp_path / "new")
    assert done.returncode == 0, done.stderr
    plain = StableDiffusionPipeline.from_pretrained(tmp_path / "new")
    assert (plain.unet.get_parameter(name.removeprefix("unet.")) == 1).all()


def test_info_of_a_model(folder):
    shown = run("info", folder)
    assert shown.returncode == 0, shown.stderr
    assert load(folder).base_hash in shown.stdout
    assert "cross_attention" in shown.stdout


def test_a_long_prompt_is_one_line_of_warning(folder, tmp_path):
    done = run(
        *("sample", "--model", folder, "--out", tmp_path / "out", "--steps", 1, "--prompt", "church " * 30),
    )
    assert done.returncode == 0
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    assert len(lines) == 1
    assert "cut to 16 tokens" in lines[0]


@pytest.fixture
def bad(tmp_path, folder) -> dict[str, Path]:
    """Sources that are no model, by name."""
    (tmp_path / "empty").mkdir()
    (tmp_path / "model.ckpt").write_bytes(b"a pickle, perhaps")
    other = tmp_path / "other"
    other.mkdir()
    (other / "model_index.json").write_text('{"_class_name": "FluxPipeline"}')
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "model_index.json").write_text("{")
    parts = tmp_path / "parts"
    parts.mkdir()
    (parts / "model_index.json").write_bytes((folder / "model_index.json").read_bytes())
    return {path.name: path for path in tmp_path.iterdir()}


def one_line(done: subprocess.CompletedProcess) -> str:
    assert done.returncode == 2, (done.stdout, done.stderr)
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("immunity: expected ")
    return lines[0]


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("empty", "without model_index.json"),
        ("model.ckpt", "from_single_file"),
        ("other", "FluxPipeline"),
        ("broken", "readable model_index.json"),
        ("parts", "the folder unet"),
    ],
)
def test_what_is_not_a_model(bad, tmp_path, source, message):
    assert message in one_line(run("export", "--model", bad[source], "--out", tmp_path / "out"))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("smaple",), "try immunity sample"),
        (("info", "no-such-world"), "a world, or a hub id"),
        (("info", "nobody/nothing"), "not to be had from the hub"),
        (("info", "/no/such/folder"), "none of them"),
        (("info", "no-such.safetensors"), "does not exist"),
    ],
)
def test_names_that_mean_nothing(arguments, message):
    assert message in one_line(run(*arguments))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--device", "abacus"), "device that this PyTorch can use"),
        (("--steps", "0"), "at least one step"),
        (("--images", "0"), "one image each"),
        (("--deltas", "missing.safetensors"), "does not exist"),
    ],
)
def test_bad_settings(folder, tmp_path, arguments, message):
    out = tmp_path / "out"
    assert message in one_line(run("sample", "--model", folder, "--out", out, "--prompt", "x", *arguments))
    assert not out.exists()


def test_an_existing_result_is_kept_without_force(folder, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "precious").touch()
    arguments = ("export", "--model", folder, "--out", out)
    assert "does not exist yet" in one_line(run(*arguments))
    assert (out / "precious").exists()
    assert run(*arguments, "--force").returncode == 0
    assert not (out / "precious").exists()
    assert (out / "model_index.json").exists()


def test_a_flag_that_does_not_exist_is_code_2():
    assert run("info", "x", "--no-such-flag", "1").returncode == 2
