"""The other adaptations on the command line: as attacks, and as what IMMA plays against."""

import json

import pytest

from immunity import Delta

from tests.cli.conftest import immunity

NAMED = ("--captions", "image of {}")
PRIOR = ("--class-prompt", "image of church", "--prior-pictures", 2, "--prior-steps", 1)


@pytest.fixture
def adapt(sd1, pictures, tmp_path):
    def run(*method, to="attack"):
        on = ("--model", sd1, "--images", pictures, "--prompt", "image of church", "--out", tmp_path / to)
        return immunity("adapt", *on, *method)

    return run


@pytest.fixture
def immunize(sd1, pictures, tmp_path):
    def run(*against):
        on = ("--model", sd1, "--images", pictures, "--prompt", "image of church")
        out = ("--out", tmp_path / "immune.safetensors")
        return immunity("immunize", *on, *out, "imma", "--steps", 4, "--against", *against)

    return run


@pytest.mark.parametrize(
    ("method", "files"),
    [
        (("dreambooth", *PRIOR, *NAMED), {"delta.safetensors"}),
        (("dreambooth-lora", *NAMED), {"delta.safetensors", "pytorch_lora_weights.safetensors"}),
        (("textual-inversion", *NAMED), {"learned_embeds.safetensors", "new.safetensors"}),
        (
            ("custom-diffusion", *NAMED),
            {
                *("delta.safetensors", "pytorch_custom_diffusion_weights.safetensors"),
                *("learned_embeds.safetensors", "new.safetensors"),
            },
        ),
        (("full-finetuning", "--optimizer", "adafactor", "--schedule", "cosine"), {"delta.safetensors"}),
        (("peft-adapter", "--kind", "loha"), {"delta.safetensors", "lycoris.safetensors"}),
    ],
)
def test_an_attack_leaves_its_files(adapt, tmp_path, method, files):
    done = adapt(*method, "--steps", 2)
    assert done.code == 0, done
    assert {path.name for path in (tmp_path / "attack").iterdir()} == files | {"losses.json"}
    assert adapt(*method, "--steps", 2).complaint.startswith("immunity: expected a path that does not exist yet")


def test_a_new_token_can_be_sampled_with(adapt, sd1, tmp_path):
    assert adapt("textual-inversion", *NAMED, "--steps", 2).code == 0
    on = ("sample", "--model", sd1, "--prompt", "image of <new>", "--steps", 2)
    for tokens, to in (((), "plain"), ((tmp_path / "attack",), "taught")):
        told = ("--tokens", *tokens) if tokens else ()
        assert immunity(*on, *told, "--out", tmp_path / to).code == 0
    drawn = [(tmp_path / to / "000.png").read_bytes() for to in ("plain", "taught")]
    assert drawn[0] != drawn[1]
    refused = immunity(*on, "--deltas", tmp_path / "attack", "--out", tmp_path / "no")
    assert "teaches it a word" in refused.complaint


@pytest.mark.parametrize(
    "against",
    [
        ("dreambooth", "--lr", 1e-3),
        ("textual-inversion", *NAMED),
        ("mixture", "--lr-factors", 0.3, 3, "--ranks", 2, 4, "--of", "lora --lr 1e-3", "dreambooth"),
    ],
)
def test_imma_against_others(immunize, tmp_path, against):
    done = immunize(*against)
    assert done.code == 0, done
    told = Delta.load(tmp_path / "immune.safetensors").provenance.config["inputs"]["against"]
    if against[0] == "mixture":
        assert [one["method"] for one in told["of"]] == ["Lora", "Dreambooth"]
        assert told["of"][0]["lr"] == 1e-3
        assert told["ranks"] == [2, 4]
    else:
        assert told["method"] == {"dreambooth": "Dreambooth", "textual-inversion": "TextualInversion"}[against[0]]
    json.dumps(told)


@pytest.mark.parametrize(
    ("method", "complaint"),
    [
        (("textual-inversion", "--initialiser", "a church", *NAMED), "an initialiser of one token"),
        (("dreambooth", "--prior-pictures", 4), "a class prompt for prior preservation"),
        (("dreambooth", "--group", "biases"), "a group of parameters"),
        (("lora", "--captions", "a {}"), "Lora has no word for its subject"),
    ],
)
def test_bad_combinations_get_one_clear_line(adapt, tmp_path, method, complaint):
    assert complaint in adapt(*method).complaint
    assert not (tmp_path / "attack").exists()
    assert not (tmp_path / "attack.partial").exists()


def test_a_bad_mixture_gets_one_clear_line(immunize):
    assert "rank of at least 1" in immunize("mixture", "--ranks", 0, "--of", "lora").complaint
    assert "No closing quotation" in immunize("mixture", "--of", "lora 'x").complaint
