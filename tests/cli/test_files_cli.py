"""Files of other programs on the command line: told apart, applied, refused."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from immunity import load

from tests.cli.conftest import immunity

BLOCK = "down_blocks.1.attentions.0.transformer_blocks.0.attn2"
METRICS = [{"name": "clip", "kind": "similarity", "higher_is_better": True, "label": "CLIP similarity"}]
KOHYA = f"lora_unet_{BLOCK.replace('.', '_')}_to_k"


@pytest.fixture(scope="module")
def change(sd1):
    """A LoRA's factors and what they add to one weight of the model."""
    a, b = torch.randn(2, 16, generator=torch.Generator().manual_seed(0)), torch.ones(16, 2)
    return a, b, b @ a


@pytest.fixture
def kohya(tmp_path, change):
    a, b, _ = change
    path = tmp_path / 'it\'s a "LoRA".safetensors'
    tensors = {f"{KOHYA}.lora_down.weight": a, f"{KOHYA}.lora_up.weight": b, f"{KOHYA}.alpha": torch.tensor(2.0)}
    save_file(tensors, path, metadata={"ss_output_name": "church", "ss_evil": "\x1b[2J"})
    return path


def test_an_adapter_of_another_program_is_a_delta(sd1, kohya, change, tmp_path):
    shown = immunity("info", kohya)
    assert shown.code == 0, shown
    for word in ("LoRA in the layout of kohya", "1 layers of unet", "1 cross-attention", "church", "'\\x1b[2J'"):
        assert word in shown.out
    done = immunity("export", "--model", sd1, "--deltas", kohya, "--out", tmp_path / "out")
    assert done.code == 0, done
    name = f"unet.{BLOCK}.to_k.weight"
    before, after = (load(folder).parameters("all") for folder in (sd1, tmp_path / "out"))
    assert torch.allclose(after[name], before[name] + change[2], atol=1e-6)
    assert all(torch.equal(after[other], value) for other, value in before.items() if other != name)
    card = (tmp_path / "out" / "README.md").read_text()
    assert card.startswith('---\nlibrary_name: "diffusers"')
    assert 'the file it\'s a "LoRA".safetensors' in card


def test_a_lora_is_written_in_another_layout(sd1, kohya, tmp_path):
    out = tmp_path / "d.safetensors"
    done = immunity("convert", kohya, "--model", sd1, "--to", "diffusers", "--out", out)
    assert done.code == 0, done
    assert "LoRA in the layout of diffusers" in immunity("info", out).out
    assert "does not exist yet" in immunity("convert", kohya, "--model", sd1, "--to", "kohya", "--out", out).complaint
    other = immunity("convert", weights(tmp_path), "--model", sd1, "--to", "kohya", "--out", out, "--force")
    assert "a LoRA, which both" in other.complaint


def weights(folder):
    torch.save({f"unet.{BLOCK}.to_k": {"weight": torch.zeros(16, 16)}}, folder / "esd.pt")
    return folder / "esd.pt"


def test_long_words_of_a_file_are_apart_from_what_they_say(sd1, kohya, tmp_path):
    out = tmp_path / "k.safetensors"
    assert immunity("convert", kohya, "--model", sd1, "--to", "kohya", "--out", out).code == 0
    assert "ss_network_module networks.lora" in immunity("info", out).out


def test_a_safety_checker_is_left_out_aloud(sd1, tmp_path):
    folder = shutil.copytree(sd1, tmp_path / "checked")
    index = json.loads((folder / "model_index.json").read_text())
    checker = {"safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"], "requires_safety_checker": True}
    (folder / "model_index.json").write_text(json.dumps(index | checker))
    done = immunity("export", "--model", folder, "--out", tmp_path / "out")
    assert done.code == 0, done
    assert "without safety_checker, which checked has" in done.err
    assert "Left out, though the base model has it: safety_checker." in (tmp_path / "out" / "README.md").read_text()


def test_scores_of_another_model_are_no_part_of_the_card(sd1, tmp_path):
    scores = {
        "concept": "church",
        "pictures": ["a"],
        "metrics": [],
        "scores": {},
        "references": [],
        "model": "other",
        "base_hash": "0",
        "deltas": [],
    }
    envelope = {"format": "immunity.measurement", "version": 1, "content": scores}
    (tmp_path / "scores.json").write_text(json.dumps(envelope))
    out = ("--out", tmp_path / "out")
    done = immunity("export", "--model", sd1, "--measured", tmp_path / "scores.json", *out)
    assert "scores of sd1 with these deltas; got" in done.complaint
    scores |= {"base_hash": load(sd1).base_hash, "metrics": METRICS, "scores": {"clip": [0.25]}}
    (tmp_path / "scores.json").write_text(json.dumps(envelope))
    done = immunity("export", "--model", sd1, "--measured", tmp_path / "scores.json", *out)
    assert done.code == 0, done
    assert "church, mean of 1 picture: CLIP similarity 0.250" in (tmp_path / "out" / "README.md").read_text()


def test_nothing_is_pushed_without_a_token(sd1, monkeypatch):
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    assert "a token of the hub" in immunity("push", sd1, "me/mine").complaint


def test_esds_weights_and_an_adapter_upon_them(sd1, kohya, change, tmp_path, pictures):
    name = f"{BLOCK}.to_k.weight"
    torch.save({f"unet.{BLOCK}.to_k": {"weight": torch.zeros(16, 16)}}, tmp_path / "esd.pt")
    shown = immunity("info", tmp_path / "esd.pt")
    assert "new values of a model's parameters" in shown.out
    attack = ("adapt", "--model", sd1, "--images", pictures, "--prompt", "x", "--out", tmp_path / "attack")
    done = immunity(*attack, "--deltas", tmp_path / "esd.pt", kohya, "lora", "--steps", 1, "--lr", 0)
    assert done.code == 0, done
    value = load_file(tmp_path / "attack" / "delta.safetensors")[f"unet.{name}"]
    assert torch.allclose(value, change[2], atol=1e-6), "the attack began where both had left the model"


def test_a_token_is_for_prompts_and_not_for_weights(sd1, tmp_path):
    token = {"string_to_token": {"*": 1}, "string_to_param": {"*": torch.ones(2, 16)}, "name": "<chapel>"}
    torch.save(token, tmp_path / "chapel.pt")
    assert "<chapel>, a learned word in the layout of A1111" in immunity("info", tmp_path / "chapel.pt").out
    out = ("--out", tmp_path / "out")
    refused = immunity("export", "--model", sd1, "--deltas", tmp_path / "chapel.pt", *out)
    assert f"try immunity sample --tokens {tmp_path / 'chapel.pt'}" in refused.complaint
    asked = ("sample", "--model", sd1, "--prompt", "a <chapel>", "--steps", 1, *out)
    done = immunity(*asked, "--tokens", tmp_path / "chapel.pt")
    assert done.code == 0, done
    assert json.loads((tmp_path / "out" / "sample.json").read_text())["settings"]["tokens"] == ["chapel.pt"]


def test_weights_are_no_token(sd1, kohya, tmp_path):
    done = immunity("sample", "--model", sd1, "--prompt", "x", "--tokens", kohya, "--out", tmp_path / "out")
    assert "which changes weights" in done.complaint


def test_adapters_for_another_kind_of_model(sd1, change, tmp_path):
    a, b, _ = change
    name = "lora_unet_double_blocks_0_img_attn_proj"
    save_file({f"{name}.lora_down.weight": a, f"{name}.lora_up.weight": b}, tmp_path / "flux.safetensors")
    done = immunity("export", "--model", sd1, "--deltas", tmp_path / "flux.safetensors", "--out", tmp_path / "out")
    assert "it seems to be for FLUX.1" in done.complaint
    assert not (tmp_path / "out").exists()
    assert "for       FLUX.1" in immunity("info", tmp_path / "flux.safetensors").out
