"""Flags that would be ignored are refused, or said to be: a defence or an attack is what its command says."""

import os
import re
import shutil

import pytest

from tests.cli.conftest import immunity


@pytest.fixture
def place(tmp_path):
    return tmp_path / "results"


@pytest.fixture
def learn(sd1, pictures, place):
    def run(verb, *arguments, out="out.safetensors"):
        on = ("--model", sd1, "--images", pictures, "--out", place / out)
        return immunity(verb, *on, *arguments)

    return run


@pytest.mark.parametrize(
    ("method", "message"),
    [
        (("imma", "--against", "lora", "--steps", 9), "imma has its own; give its flags before --against"),
        (("ascent-only", "--against", "lora", "--lr", 1), "Lora(lr=1.0)"),
        (("imma", "--against", "mixture", "--of", "lora --steps 9"), "Lora(steps=9)"),
        (("imma", "--retention-weight", 5, "--against", "lora"), "retention_weight as it is by default"),
        (("imma", "--against", "lora", "--optimizer", "sgd", "--weight-decay", 0.1), "with SGD"),
        (("imma", "--against", "mixture", "--ranks", 4, "--of", "full-finetuning"), "ranks=(4,) for FullFinetuning"),
    ],
)
def test_what_the_defence_does_not_read_is_refused(learn, place, method, message):
    assert message in learn("immunize", "--prompt", "x", *method).complaint
    assert not place.exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--sample-count", 3, "lora"), "without --sample-at"),
        (("--whole", "all", "lora", "--steps", 1), "without --shard"),
        (("lora", "--steps", 1, "--targets", "to_q", "too_v"), "no too_v in it"),
        (("peft-adapter", "--kind", "oft", "--rank", 7, "--steps", 1), "divides the"),
        (("dreambooth", "--prior-weight", 2), "with prior_pictures=0"),
    ],
)
def test_what_the_attack_does_not_do_is_refused(learn, place, arguments, message):
    assert message in learn("adapt", "--prompt", "x", *arguments, out="attack").complaint
    assert not (place / "attack").exists()


def test_what_a_poison_or_a_sampler_does_not_read_is_refused(learn, sd1, place):
    noise = learn("poison", "--prompt", "x", "random-noise", "--step-size", 2, out="noise")
    assert "all pictures change once" in noise.complaint
    asked = ("--prompt", "x", "--negative", "y", "--guidance", 1, "--out", place)
    assert "a guidance above 1" in immunity("sample", "--model", sd1, *asked).complaint
    assert not place.exists()


def test_a_prompt_that_captions_take_the_place_of_is_said_to_be_unused(learn):
    method = ("dreambooth-lora", "--steps", 1, "--rank", 1)
    done = learn("adapt", "--prompt", "a church", *method, out="attack")
    assert done.code == 0, done.err
    assert "--prompt is not used: dreambooth-lora calls its pictures a photo of sks" in done.err
    own = learn("adapt", "--prompt", "a church", *method, "--captions", out="own")
    assert "--prompt is not used" not in own.err


def test_grids_ask_for_what_is_learned(learn, place):
    """One step at an absurd rate changes what the new word means, and nothing else."""
    method = ("textual-inversion", "--steps", 1, "--lr", 10, "--clip", "None")
    grids = ("--sample-at", 0, 1, "--sample-count", 1, "--sample-steps", 2)
    assert learn("adapt", "--prompt", "a church", *grids, *method, out="words").code == 0
    before, after = (place / "words" / "samples" / f"0000{step}.png" for step in (0, 1))
    assert before.read_bytes() != after.read_bytes()


def test_a_result_is_not_put_among_the_pictures(sd1, pictures):
    on = ("--model", sd1, "--images", pictures, "--prompt", "x", "--out", pictures / "poisoned")
    assert "a result beside the folder of pictures" in immunity("poison", *on, "random-noise").complaint
    assert not (pictures / "poisoned").exists()


def test_a_kind_beside_what_the_world_knows_is_refused(place):
    on = ("--model", "emoji", "--concept", "church", "--kind", "style", "--out")
    assert "which this world knows" in immunity("erase", *on, place / "a.safetensors", "uce").complaint
    assert "which this world knows" in immunity("adapt", *on, place / "b", "lora", "--steps", 1).complaint


def test_a_sampler_of_too_few_steps_says_so(sd1, tmp_path):
    """DDIM takes no more steps than its model was trained with."""
    model = tmp_path / "model"
    shutil.copytree(sd1, model)
    for name in ("model_index.json", "scheduler/scheduler_config.json"):
        text = (model / name).read_text()
        (model / name).write_text(re.sub("[A-Z][A-Za-z]*Scheduler", "DDIMScheduler", text))
    done = immunity("sample", "--model", model, "--prompt", "x", "--steps", 1001, "--out", tmp_path / "out")
    assert "sampling steps that DDIMScheduler can take; got 1001" in done.complaint


def test_tokens_alone_of_what_changes_weights_too_are_half_of_it(learn, sd1, place):
    assert learn("adapt", "--prompt", "a", "custom-diffusion", "--steps", 1, "--lr", 1e-2, out="cd").code == 0
    drawn = ("sample", "--model", sd1, "--prompt", "a <new>", "--steps", 2, "--count", 1, "--tokens", place / "cd")
    assert "changes weights, too" in immunity(*drawn, "--out", place / "half").err
    assert "changes weights, too" not in immunity(*drawn, "--deltas", place / "cd", "--out", place / "whole").err


def test_no_memory_on_a_processor_is_said_in_one_line(learn):
    vectors = ("textual-inversion", "--steps", 1, "--vectors", 10**11, "--captions")
    assert "enough memory" in learn("adapt", "--prompt", "a {}", *vectors, out="words").complaint


def test_a_name_that_is_no_text_can_be_a_folder_of_pictures(sd1, pictures, tmp_path):
    folder = tmp_path / os.fsdecode(b"caf\xe9")
    try:
        folder.symlink_to(pictures)
    except OSError:
        pytest.skip("names are text on this file system")
    on = ("--model", sd1, "--images", folder, "--prompt", "x", "--out", tmp_path / "out.safetensors")
    assert immunity("immunize", *on, "imma", "--steps", 1, "--against", "lora", "--rank", 1).code == 0
