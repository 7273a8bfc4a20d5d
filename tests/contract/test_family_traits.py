"""What one family alone does."""

import pytest
import torch

from immunity import ImmunityError, load
from immunity.models.vocabulary import LearnedToken

from tests import tiny
from tests.contract.test_models import PROMPTS, generators


@pytest.mark.parametrize("family", ["sdxl"])
def test_sdxl_guides_away_from_zeros_unless_something_is_named(model, folder, family):
    """As the plain pipeline without a negative prompt; with an empty one it encodes that, and so do other words."""
    assert not model.unconditional().embeddings.any()
    assert not model.unconditional().pooled.any()
    ours = model.sample(["a castle"], seeds=[1], steps=2, guidance=3.0, negative="cat")
    arguments = tiny.plain_arguments(family, ["a castle"], 3.0)
    theirs = tiny.plain(folder)(
        **arguments, negative_prompt=["cat"], generator=generators([1]), num_inference_steps=2, output_type="pt"
    ).images
    assert torch.equal(ours, theirs)


@pytest.mark.parametrize("family", ["flux"])
def test_a_guidance_distilled_model_takes_guidance_as_a_number(model, family):
    low, high = (model.sample(["a castle"], seeds=[1], steps=2, guidance=guidance) for guidance in (1.0, 9.0))
    assert not torch.equal(low, high)
    with pytest.raises(ImmunityError, match="no negative prompt, which a guidance-distilled"):
        model.sample(["a castle"], seeds=[1], steps=2, guidance=3.0, negative="cat")


ENCODERS = {"_1": slice(0, 16), "_2": slice(16, 24)}


@pytest.mark.parametrize("absent", [("_1",), ("_2",), ("_1", "_2"), ("_1", "_3"), ("_3",)])
def test_sd3_without_some_of_its_text_encoders(tiny_folders, tmp_path, absent):
    """An absent one says zeros, in its own place; what the others say is as before."""
    names = [f"{kind}{end}".removesuffix("_1") for end in absent for kind in ("text_encoder", "tokenizer")]
    seed = tiny.FAMILIES.index("sd3")
    partial = load(tiny.build(tmp_path / "partial", "sd3", seed=seed, without=tuple(names)))
    whole = load(tiny_folders["sd3"]).encode_prompts(PROMPTS)
    ours = partial.encode_prompts(PROMPTS)
    # Where no tokenizer says how long CLIP's part is, it is as long as CLIP's own.
    clip = 77 if {"_1", "_2"} <= set(absent) else tiny.TOKENS
    t5 = ours.embeddings[:, clip:]
    assert t5.shape[1] == 256
    assert not t5.any() if "_3" in absent else torch.equal(t5, whole.embeddings[:, tiny.TOKENS :])
    # The second encoder's features are as wide as its pooled output only in the models that were published.
    for end, part in ENCODERS.items():
        if end in absent:
            assert not ours.pooled[:, part].any()
        elif "_1" not in absent:
            torch.testing.assert_close(ours.pooled[:, part], whole.pooled[:, part])
            torch.testing.assert_close(ours.embeddings[:, :clip, part], whole.embeddings[:, :clip, part])
    assert partial.sample(["a castle"], seeds=[0], steps=1, guidance=3.0).isfinite().all()
    partial.export(tmp_path / "exported")
    assert load(tmp_path / "exported").base_hash == partial.base_hash


def learned(model, token: str) -> LearnedToken:
    generator = torch.Generator().manual_seed(0)
    widths = {
        one.component: model.components[one.component].get_input_embeddings().weight.shape[1]
        for one in model.vocabularies()
    }
    return LearnedToken(token, {part: torch.randn(1, width, generator=generator) for part, width in widths.items()})


@pytest.mark.parametrize("family", ["sdxl", "sd3", "flux"])
def test_the_pooled_embedding_is_that_of_the_end_with_a_new_token_too(model):
    """As published, CLIP's configuration has transformers take the token of the largest number, which a new one has."""
    with learned(model, "<new>").known_to(model):
        ours = model.encode_prompts(["image of <new>", "a <new> castle"])
        for part, encoder in model.components.items():
            if part.startswith("text_encoder") and encoder.config.model_type == "clip_text_model":
                (inner,) = [module for module in encoder.modules() if module.__dict__.get("eos_token_id") == 2]
                inner.eos_token_id = len(tiny._vocabulary()) - 1
        theirs = [
            text.encoder(text.tokens(["image of <new>", "a <new> castle"]).input_ids)
            for text in model._text_encoders()
            if text.layout != "t5"
        ]
    pooled = [one.get("text_embeds", one.get("pooler_output")) for one in theirs]
    expected = torch.cat(pooled[-1:] if model.family == "Stable Diffusion XL" else pooled, dim=-1)
    assert torch.equal(ours.pooled, expected)


@pytest.mark.parametrize("family", ["pixart"])
def test_a_token_that_prompts_cannot_name_is_refused(model):
    """PixArt reads prompts in lower case."""
    with pytest.raises(ImmunityError, match=r"'<New>', which becomes '<new>'; try '<new>'"):
        learned(model, "<New>").known_to(model)
    plain = model.encode_prompts(["image of <new>"]).embeddings
    with learned(model, "<new>").known_to(model):
        assert not torch.equal(model.encode_prompts(["image of <New>"]).embeddings, plain)


@pytest.mark.parametrize("family", ["sd3", "flux"])
def test_text_encoders_without_its_vectors_read_a_new_word_as_text(model):
    def ids() -> dict[str, list[int]]:
        return {text.layout: text.tokens(["a <new> castle"]).input_ids.tolist() for text in model._text_encoders()}

    rows, plain = learned(model, "<new>").rows, ids()
    with LearnedToken("<new>", {"text_encoder": rows["text_encoder"]}).known_to(model):
        taught = ids()
        assert model.sample(["a <new> castle"], seeds=[0], steps=1).isfinite().all()
    assert [layout for layout in plain if taught[layout] != plain[layout]] == ["clip_l"]
    with pytest.raises(ImmunityError, match=r"vectors of <new> for a text encoder of .*; got elsewhere"):
        LearnedToken("<new>", {"elsewhere": rows["text_encoder"]}).known_to(model)
