"""The whole flow on Stable Diffusion 1.x and 2.x, and what plain diffusers makes of its results."""

import functools
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from PIL import Image

from immunity import Delta, Examples, load

from tests.cli.conftest import environment, immunity

FAMILIES = ("sd1", "sd2", "sd2v")  # the others go through the verbs in test_families.py
SAMPLE = ("--steps", 3, "--guidance", 3)


@dataclass(frozen=True)
class Flow:
    """What the verbs wrote for one family."""

    model: Path
    root: Path

    @property
    def erased(self) -> Path:
        return self.root / "erased.safetensors"

    @property
    def immune(self) -> Path:
        return self.root / "immune.safetensors"

    @property
    def attack(self) -> Path:
        return self.root / "attack"


def run(*arguments: object) -> None:
    done = immunity(*arguments)
    assert done.code == 0, done
    # No stray words of the libraries: a warning of ours at most, and bars on a slow machine.
    assert all(line.startswith("immunity: ") or "|" in line for line in done.err.splitlines() if line.strip()), done.err


@pytest.fixture(scope="module")
def made(tiny_folders, tmp_path_factory, pictures) -> Callable[[str], Flow]:
    """The flow of a family, made when it is first asked for: several processes may share these tests."""

    @functools.cache
    def make(family: str) -> Flow:
        flow = Flow(tiny_folders[family], tmp_path_factory.mktemp(family))
        on = ("--model", flow.model)
        run(
            *("erase", *on, "--concept", "church", "--concept", "castle", "--out", flow.erased, "--seed", 3),
            *("esd", "--steps", 3, "--lr", 1e-3, "--sampler-steps", 3),
        )
        learned = ("--deltas", flow.erased, "--images", pictures, "--prompt", "a church")
        run(
            *("immunize", *on, *learned, "--out", flow.immune),
            *("imma", "--steps", 4, "--outer-lr", 1e-3, "--against", "lora", "--rank", 2),
        )
        # The prompts and seeds are those of `PLAIN` below.
        run(
            *("adapt", *on, *learned, "--out", flow.attack, "--seed", 5),
            *("--sample-at", 0, 6, "--sample-count", 2, "--sample-steps", 3, "--sample-guidance", 3),
            *("lora", "--rank", 2, "--alpha", 4, "--steps", 6, "--lr", 0.05),
        )
        both = ("--deltas", flow.erased, flow.immune)
        run("sample", *on, *both, "--prompt", "a church", "x", "--count", 2, *SAMPLE, "--out", flow.root / "pictures")
        run("export", *on, *both, "--out", flow.root / "exported")
        run("export", *on, "--deltas", flow.erased, "--out", flow.root / "exported-erased")
        return flow

    return make


@pytest.fixture(params=FAMILIES)
def family(request) -> str:
    return request.param


@pytest.fixture
def flow(made, family) -> Flow:
    return made(family)


def test_each_verb_leaves_its_provenance(flow):
    erased, immune = Delta.load(flow.erased), Delta.load(flow.immune)
    attack = Delta.load(flow.attack / "delta.safetensors")
    base = load(flow.model).base_hash
    assert {one.provenance.base_hash for one in (erased, immune, attack)} == {base}
    assert (erased.provenance.method, erased.provenance.seed, erased.provenance.config["steps"]) == ("Esd", 3, 3)
    assert [concept["name"] for concept in erased.provenance.config["inputs"]["concepts"]] == ["church", "castle"]
    assert immune.provenance.parents == attack.provenance.parents == (erased.hash,)
    assert immune.provenance.config["inputs"]["against"]["rank"] == 2
    shown = immunity("info", flow.immune)
    assert shown.code == 0
    assert "inputs.against.rank" in shown.out


def test_the_folder_of_an_attack_is_known(made, tmp_path):
    flow = made("sd1")
    shown = immunity("info", flow.attack / "pytorch_lora_weights.safetensors")
    assert shown.code == 0, shown
    assert "adapter" in shown.out
    assert "Lora" in shown.out
    run("export", "--model", flow.model, "--deltas", flow.erased, flow.attack, "--out", tmp_path / "taught")
    expected = load(flow.model, deltas=[flow.erased, flow.attack / "delta.safetensors"]).parameters("all")
    assert all(
        torch.equal(value, expected[name]) for name, value in load(tmp_path / "taught").parameters("all").items()
    )


def test_nothing_is_left_of_the_runs(flow):
    assert sorted(path.name for path in flow.root.iterdir()) == [
        *("attack", "erased.safetensors", "exported", "exported-erased", "immune.safetensors", "pictures")
    ]
    assert sorted(path.relative_to(flow.attack).as_posix() for path in flow.attack.rglob("*")) == [
        *("delta.safetensors", "losses.json", "pytorch_lora_weights.safetensors"),
        *("samples", "samples/00000.png", "samples/00006.png"),
    ]
    assert len(json.loads((flow.attack / "losses.json").read_text())["losses"]) == 6


def test_sample_writes_what_the_library_draws(flow):
    record = json.loads((flow.root / "pictures" / "sample.json").read_text())
    asked = [(row["prompt"], row["seed"]) for row in record["images"]]
    assert asked == [("a church", 0), ("a church", 1), ("x", 0), ("x", 1)]
    assert record["deltas"] == [Delta.load(path).hash for path in (flow.erased, flow.immune)]
    model = load(flow.model, deltas=[flow.erased, flow.immune])
    images = model.sample([prompt for prompt, _ in asked], seeds=[seed for _, seed in asked], steps=3, guidance=3)
    for i, image in enumerate(images):
        written = torch.tensor(list(Image.open(flow.root / "pictures" / f"{i:03}.png").tobytes()))
        assert torch.equal(written, (image.permute(1, 2, 0).reshape(-1) * 255).round().long())
    assert Image.open(flow.root / "pictures" / "grid.png").size == (2 * 16 + 2, 2 * 16 + 2)


PLAIN = """
import json, sys
from pathlib import Path
import numpy as np, torch
from diffusers import StableDiffusionPipeline
from PIL import Image

def draw(pipe, prompts, seeds):
    images = pipe(prompts, generator=[torch.Generator().manual_seed(seed) for seed in seeds], num_inference_steps=3,
                  guidance_scale=3, output_type="np").images
    return (images * 255).round().astype(np.int16)

def cells(file):
    whole = np.asarray(Image.open(file)).astype(np.int16)
    return np.stack([whole[:16, :16], whole[:16, 18:34]])

found = {}
for root in map(Path, sys.argv[1:]):
    pipe = StableDiffusionPipeline.from_pretrained(root / "exported")
    pipe.set_progress_bar_config(disable=True)
    written = np.stack([np.asarray(Image.open(root / "pictures" / f"{i:03}.png")).astype(np.int16) for i in range(4)])
    exported = np.abs(draw(pipe, ["a church", "a church", "x", "x"], [0, 1, 0, 1]) - written).max()
    pipe = StableDiffusionPipeline.from_pretrained(root / "exported-erased")
    pipe.set_progress_bar_config(disable=True)
    before = draw(pipe, ["a church"] * 2, [5, 6])
    pipe.load_lora_weights(root / "attack", weight_name="pytorch_lora_weights.safetensors")
    after = draw(pipe, ["a church"] * 2, [5, 6])
    first, last = (cells(root / "attack" / "samples" / name) for name in ("00000.png", "00006.png"))
    found[root.name] = {
        "exported": int(exported),
        "before": int(np.abs(before - first).max()),
        "after": int(np.abs(after - last).max()),
        "learned": int(np.abs(after - before).max()),
    }
assert not any(name.split(".")[0] == "immunity" for name in sys.modules)
print(json.dumps(found))
"""


def test_plain_diffusers_draws_the_same_from_the_exported_folder_and_from_the_lora_file(made):
    roots = [made(family).root for family in FAMILIES]
    done = subprocess.run(
        [sys.executable, "-c", PLAIN, *roots], capture_output=True, text=True, env=environment(), check=False
    )
    assert done.returncode == 0, done.stderr
    for differences in json.loads(done.stdout.splitlines()[-1]).values():
        assert differences["exported"] == 0
        assert differences["before"] == 0
        assert differences["after"] <= 1  # of 255: the adapter's products are summed in another order
        assert differences["learned"] > 20, "an adapter that does nothing would prove nothing"


def test_closed_form_half_precision_and_drawn_pictures(sd1, tmp_path):
    on = ("--model", sd1)
    run("erase", *on, "--dtype", "bfloat16", "--concept", "church", "--out", tmp_path / "uce.safetensors", "uce")
    assert Delta.load(tmp_path / "uce.safetensors").provenance.method == "Uce"
    digests = []
    for verb, name, method in (
        ("adapt", "attack", ("lora", "--steps", 1)),
        ("immunize", "noise.safetensors", ("random-perturbation", "--against", "lora")),
        ("immunize", "ascent.safetensors", ("ascent-only", "--steps", 1, "--against", "lora")),
    ):
        run(verb, *on, "--concept", "van gogh", "--kind", "style", "--drawn", 2, "--out", tmp_path / name, *method)
        file = tmp_path / name / "delta.safetensors" if verb == "adapt" else tmp_path / name
        digests.append(Delta.load(file).provenance.config.get("inputs", {}).get("examples"))
    assert digests[0] != digests[2], "attack and defence draw different pictures"


def test_what_is_drawn_to_learn_from_is_called_by_its_name(sd1, tmp_path):
    """As a world's own pictures are: with no captions, the token takes the name's place in the prompts."""
    drawn = ("--concept", "church", "--drawn", 2)
    run("adapt", "--model", sd1, *drawn, "--out", tmp_path / "attack", "textual-inversion", "--steps", 1, "--captions")


def test_what_sample_draws_can_be_learned_from(sd1, tmp_path):
    on = ("--model", sd1)
    run("sample", *on, "--prompt", "a church", "a cat, too", "--count", 2, *SAMPLE, "--out", tmp_path / "drawn")
    assert sorted(path.name for path in (tmp_path / "drawn").iterdir()) == [
        *("000.png", "001.png", "002.png", "003.png", "grid.png", "metadata.csv", "sample.json"),
    ]
    examples = Examples.from_folder(tmp_path / "drawn", size=16)
    assert examples.prompts == ("a church", "a church", "a cat, too", "a cat, too")
    run("adapt", *on, "--images", tmp_path / "drawn", "--out", tmp_path / "attack", "lora", "--steps", 1)
