import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import immunity.worlds
from immunity import World
from immunity.metrics import WorldJudges

pytestmark = pytest.mark.world

JUDGES = Path(immunity.worlds.__file__).parent / "emoji" / "judges"
PARTS = {
    "clip": "VisionTextDualEncoderModel",
    "dino": "ResNetModel",
    "lpips": "ResNetModel",
    "object": "ResNetForImageClassification",
    "style": "ResNetForImageClassification",
}

PLAIN = """
import sys, torch, transformers
folder, name = sys.argv[1:]
model, loading = getattr(transformers, name).from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
assert not any(loading[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys")), loading
model.eval()
pixels = torch.zeros(2, 3, 64, 64)
with torch.no_grad():
    if name == "VisionTextDualEncoderModel":
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
        tokens = tokenizer(["image of a church", "image of a qwxz"], padding=True, return_tensors="pt")
        output = model(pixel_values=pixels, **tokens).logits_per_image
    else:
        output = next(iter(model(pixels).values()))
assert output.isfinite().all()
assert not any(module.partition(".")[0] == "immunity" for module in sys.modules)
"""


@pytest.fixture(scope="module")
def summary() -> dict:
    if not (JUDGES / "judges.json").is_file():
        pytest.skip("the embedded world's judges are not in this checkout")
    return json.loads((JUDGES / "judges.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("part", PARTS)
def test_plain_transformers_loads_it_without_this_package(summary, part):
    subprocess.run([sys.executable, "-c", PLAIN, JUDGES / part, PARTS[part]], check=True, timeout=120)


def test_on_disk_they_are_small_float16(summary):
    from safetensors import safe_open

    for part in PARTS:
        with safe_open(JUDGES / part / "model.safetensors", framework="pt") as file:
            kinds = {str(file.get_tensor(name).dtype) for name in file.keys()}  # noqa: SIM118 - not a mapping
        assert kinds <= {"torch.float16", "torch.int64"}, part
    assert sum(file.stat().st_size for file in JUDGES.rglob("*") if file.is_file()) < 15 * 2**20


def test_they_know_a_real_church(summary):
    world = World.open("emoji")
    judges = WorldJudges.load(world)
    churches, guitars = (world.examples(name).images for name in ("church", "guitar"))
    assert judges.object_accuracy(churches, ["church"]).mean() > 0.8
    assert judges.object_accuracy(churches, ["guitar"]).mean() == 0
    for metric in judges.similarities:
        assert metric(churches, churches).mean() > metric(guitars, churches).mean(), metric.name
    right, wrong = (judges.clip_score(churches, [f"image of a {name}"]).mean() for name in ("church", "guitar"))
    assert right > wrong
    assert not torch.equal(judges.object.probabilities(churches)[0], judges.object.probabilities(guitars)[0])
