"""Poisoned pictures from the command line, on a tiny model."""

import json

from immunity import Examples

from tests.cli.conftest import immunity


def test_a_folder_becomes_a_folder_that_can_be_learned_from(sd1, pictures, tmp_path):
    out, size = tmp_path / "poisoned", 16
    on = ("--model", sd1, "--images", pictures)
    done = immunity("poison", *on, "--prompt", "a church", "--out", out, "--seed", 1, "advdm", "--steps", 2)
    assert done.code == 0, done
    made = json.loads((out / "poison.json").read_text())
    assert (made["method"], made["config"]["steps"], made["seed"]) == ("Advdm", 2, 1)
    assert made["config"]["inputs"]["examples"]
    poisoned = Examples.from_folder(out, size=size)
    assert poisoned.prompts == ("a church",) * len(poisoned)
    clean = Examples.from_folder(pictures, prompt="a church", size=size)
    assert 1 <= ((poisoned.images - clean.images).abs() * 255).round().max() <= 8
    assert immunity("adapt", "--model", sd1, "--images", out, "--out", tmp_path / "a", "lora", "--steps", 1).code == 0
    again = immunity("poison", *on, "--prompt", "a church", "--out", out, "advdm", "--steps", 2)
    assert "--force" in again.complaint
    forced = immunity("poison", *on, "--prompt", "a church", "--out", out, "--force", "encoder-attack", "--steps", 1)
    assert forced.code == 0, forced
    assert json.loads((out / "poison.json").read_text())["method"] == "EncoderAttack"


def test_a_surrogate_is_an_adaptation_with_flags_of_its_own(sd1, pictures, tmp_path):
    common = ("poison", "--model", sd1, "--images", pictures, "--prompt", "a church")
    aspl = ("aspl", "--rounds", 1, "--surrogate-steps", 1)
    for surrogate in ((), ("lora", "--rank", 2)):
        out = tmp_path / f"poisoned-{len(surrogate)}"
        done = immunity(*common, "--out", out, *aspl, *surrogate)
        assert done.code == 0, done
        made = json.loads((out / "poison.json").read_text())["config"]
        assert made["surrogate"]["method"] == ("Lora" if surrogate else "Dreambooth")
    assert made["surrogate"]["rank"] == 2


def test_what_cannot_be_poisoned(sd1, pictures, tmp_path):
    common = ("poison", "--model", sd1, "--images", pictures, "--prompt", "a church", "--out")
    assert "budget of at least 0" in immunity(*common, tmp_path / "a", "advdm", "--budget", -1).complaint
    assert "every one or more steps" in immunity(*common, tmp_path / "a", "--save-every", 0, "advdm").complaint
    half = immunity(*common, tmp_path / "a", "--dtype", "float16", "advdm", "--steps", 1)
    assert "bfloat16" in half.complaint
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "metadata.csv").write_text("mine")
    assert "something else" in immunity(*common, mine, "--force", "advdm", "--steps", 1).complaint
    assert (mine / "metadata.csv").read_text() == "mine"
    assert not (tmp_path / "a").exists()
