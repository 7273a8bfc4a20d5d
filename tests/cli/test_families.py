"""Each of the other families through every verb once."""

import json

import pytest

from immunity import Delta, Examples, load

from tests import support, tiny
from tests.cli.conftest import immunity

OTHERS = tuple(family for family in tiny.FAMILIES if family not in ("sd1", "sd2", "sd2v"))


@pytest.mark.parametrize("family", OTHERS)
def test_every_verb(tiny_folders, tmp_path, pictures, family):
    model, out = tiny_folders[family], tmp_path

    def run(verb: str, *arguments: object) -> str:
        done = immunity(verb, *arguments)
        assert done.code == 0, done
        return done.out

    on = ("--model", model)
    told = run("info", model)
    assert load(model).family in told
    assert "text_kv" in told
    erased, immune, attack = out / "erased.safetensors", out / "immune.safetensors", out / "attack"
    run("erase", *on, "--concept", "church", "--out", erased, "esd", "--steps", 1, "--lr", 1e-3, "--sampler-steps", 2)
    learned = ("--deltas", erased, "--images", pictures, "--prompt", "a church")
    run("immunize", *on, *learned, "--out", immune, "imma", "--steps", 2, "--against", "lora", "--rank", 2)
    run("adapt", *on, *learned, "--out", attack, "lora", "--rank", 2, "--steps", 1)
    poison = ("advdm", "--steps", 1)
    run("poison", *on, *learned, "--out", out / "poisoned", *poison)
    assert len(Examples.from_folder(out / "poisoned", size=8)) == len(Examples.from_folder(pictures, prompt="", size=8))
    both = ("--deltas", erased, immune)
    run("sample", *on, *both, "--prompt", "a church", "--steps", 1, "--out", out / "drawn")
    assert len(json.loads((out / "drawn" / "sample.json").read_text())["deltas"]) == 2
    run("export", *on, *both, "--out", out / "exported")
    exported, changed = load(out / "exported"), load(model, deltas=[erased, immune])
    assert exported.parameters("all").keys() == changed.parameters("all").keys()
    assert Delta.load(attack / "delta.safetensors").provenance.parents == (Delta.load(erased).hash,)


@pytest.mark.parametrize("family", ["flux"])
def test_what_a_family_cannot_is_told_in_one_line(tiny_folders, tmp_path, family):
    done = immunity(
        "erase", "--model", tiny_folders[family], "--concept", "church", "--out", tmp_path / "x.safetensors", "uce"
    )
    assert "unsupported" in done.complaint
    assert "FLUX.1" in done.complaint
    assert not (tmp_path / "x.safetensors").exists()


def test_the_page_of_families_says_what_the_tests_ask():
    assert support.PAGE.read_text(encoding="utf-8") == support.page(), "python -m tests.support"
