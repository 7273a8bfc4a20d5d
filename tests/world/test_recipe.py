"""The recipe of the embedded world runs through all its stages on a small budget, so that it cannot rot."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

RECIPE = Path(__file__).parents[2] / "studies" / "emoji_world" / "build.py"
STAGES = ("data", "autoencoder", "judges", "generator", "evaluate", "ship")


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.skipif(shutil.which("npm") is None, reason="the icon sets come as npm packages, and npm is not installed")
def test_all_stages_run_resume_and_pack_a_world(tmp_path):
    pytest.importorskip("resvg_py", reason="pip install 'immunity[world]'")
    command = [sys.executable, str(RECIPE), "--work", str(tmp_path / "work"), "--budget", "smoke"]
    first = subprocess.run([*command, "--until", "autoencoder"], capture_output=True, text=True, check=False)
    assert first.returncode == 0, first.stderr[-2000:]
    stages = [line.removeprefix("== ") for line in first.stdout.splitlines() if line.startswith("== ")]
    assert stages == ["data", "autoencoder"]
    rendered = (tmp_path / "work" / "data" / "index.json").stat().st_mtime_ns

    second = subprocess.run(command, capture_output=True, text=True, check=False)
    assert second.returncode == 0, second.stderr[-2000:]
    assert (tmp_path / "work" / "data" / "index.json").stat().st_mtime_ns == rendered, "a finished stage was repeated"

    other = subprocess.run([*command[:-1], "full"], capture_output=True, text=True, check=False)
    assert "is of the budget smoke" in other.stderr

    packed = tmp_path / "work" / "package"
    described = json.loads((packed / "world.json").read_text())
    assert {row["split"] for row in described["objects"]} == {"trained", "held_out", "fold"}
    assert (packed / "README.md").read_text().startswith("---\nlicense:")
    assert (packed / "NOTICE").read_bytes() == RECIPE.with_name("NOTICE").read_bytes()
    # The parts load without our package; that the shipped ones draw and judge well is not for this test to say.
    lines = [
        "import sys",
        "from diffusers import StableDiffusionPipeline",
        "from transformers import AutoModelForImageClassification as Classifier",
        f"pipe = StableDiffusionPipeline.from_pretrained({str(packed / 'generator')!r})",
        *(f"Classifier.from_pretrained({str(packed / 'judges' / part)!r})" for part in ("object", "style")),
        "assert 'immunity' not in sys.modules",
        "print(type(pipe.unet).__name__)",
    ]
    loaded = subprocess.run([sys.executable, "-c", "\n".join(lines)], capture_output=True, text=True, check=False)
    assert loaded.stdout.strip() == "UNet2DConditionModel", loaded.stderr[-2000:]
