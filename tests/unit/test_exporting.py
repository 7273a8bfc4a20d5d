"""What an exported folder has for programs that are older than the installed ones."""

import json
import shutil

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from immunity import ImmunityError, load

from tests import tiny


def test_the_words_of_clip_are_written_for_slow_tokenizers(tiny_folders, tmp_path):
    folder = shutil.copytree(tiny_folders["sdxl"], tmp_path / "source")
    tokenizer = tiny._tokenizer(tmp_path / "published")
    tokenizer.add_tokens(["<new>"])
    shutil.rmtree(folder / "tokenizer")
    tokenizer.save_pretrained(folder / "tokenizer")
    load(folder).export(tmp_path / "out")
    for part in ("tokenizer", "tokenizer_2"):
        written = {file: (tmp_path / "out" / part / file).read_text("utf-8") for file in ("vocab.json", "merges.txt")}
        published = {file: (tmp_path / "published" / file).read_text("utf-8") for file in written}
        assert written["merges.txt"] == published["merges.txt"]
        assert json.loads(written["vocab.json"]) == json.loads(published["vocab.json"])
    # The slow class reads added words from here, as does the fast one.
    added = json.loads((tmp_path / "out" / "tokenizer" / "tokenizer.json").read_text(encoding="utf-8"))["added_tokens"]
    assert "<new>" in {token["content"] for token in added}
    again = load(tmp_path / "out")._parts["tokenizer"]
    assert again("a <new> church").input_ids == tokenizer("a <new> church").input_ids


def test_the_words_of_t5_are_copied(tiny_folders, tmp_path):
    folder = shutil.copytree(tiny_folders["sd3"], tmp_path / "source")
    (folder / "tokenizer_3" / "spiece.model").write_bytes(b"pieces")
    model = load(folder)
    shutil.rmtree(folder)  # as that of a converted file is gone
    model.export(tmp_path / "out")
    assert (tmp_path / "out" / "tokenizer_3" / "spiece.model").read_bytes() == b"pieces"
    assert not list((tmp_path / "out" / "tokenizer").glob("*.model"))
    # The one that needs nothing but tokenizer.json, where there are two.
    index = json.loads((tmp_path / "out" / "model_index.json").read_text())
    assert index["tokenizer_3"] == ["transformers", "T5TokenizerFast"]
    assert index["tokenizer"] == ["transformers", "CLIPTokenizer"]
    # What newer versions call a list, older ones want as a dictionary.
    settings = json.loads((tmp_path / "out" / "tokenizer_3" / "tokenizer_config.json").read_text())
    assert not isinstance(settings.get("extra_special_tokens"), list)
    again = load(tmp_path / "out")._parts["tokenizer_3"]
    assert again("a <extra_id_0> church").input_ids == model._parts["tokenizer_3"]("a <extra_id_0> church").input_ids


@pytest.mark.parametrize("family", ["sd1", "sdxl", "flux"])
@pytest.mark.parametrize("prefixed", [True, False])
def test_the_weights_of_clip_have_their_published_names(tiny_folders, tmp_path, family, prefixed):
    """Without "text_model." transformers 4 finds none of them and only warns."""
    folder = shutil.copytree(tiny_folders[family], tmp_path / "source")
    encoders = ["text_encoder", "text_encoder_2"][: 2 if family == "sdxl" else 1]
    for part in encoders:
        file = folder / part / "model.safetensors"
        plain = {name.removeprefix("text_model."): value.clone() for name, value in load_file(file).items()}
        prefix = "text_model." if prefixed or part == "text_encoder_2" else ""
        named = {name if "text_projection" in name else f"{prefix}{name}": value for name, value in plain.items()}
        save_file(named, file, metadata={"format": "pt"})
    model = load(folder)
    model.export(tmp_path / "out")
    assert load(tmp_path / "out").base_hash == model.base_hash
    for part in encoders:
        (file,) = (tmp_path / "out" / part).glob("*.safetensors")
        names = set(load_file(file))
        assert {name for name in names if not name.startswith("text_model.")} <= {"text_projection.weight"}
        assert "text_model.embeddings.token_embedding.weight" in names
        assert {entry.suffix for entry in file.parent.iterdir()} == {".safetensors", ".json"}
    if family == "flux":
        (t5,) = (tmp_path / "out" / "text_encoder_2").glob("*.safetensors")
        assert "encoder.final_layer_norm.weight" in load_file(t5)


def test_what_is_left_out_is_said(tiny_folders, tmp_path):
    folder = shutil.copytree(tiny_folders["sd1"], tmp_path / "source")
    index = json.loads((folder / "model_index.json").read_text())
    index["safety_checker"] = ["stable_diffusion", "StableDiffusionSafetyChecker"]
    (folder / "model_index.json").write_text(json.dumps(index | {"requires_safety_checker": True}))
    model = load(folder)
    assert model.left_out == ("safety_checker",)
    with pytest.warns(UserWarning, match="without safety_checker, which source has"):
        model.export(tmp_path / "out")
    assert load(tmp_path / "out").left_out == ()


def test_weights_are_written_in_the_type_that_they_are_used_in(tiny_folders, tmp_path):
    load(tiny_folders["sd1"], dtype="float16").export(tmp_path / "out")
    found = {
        part: load_file(*(tmp_path / "out" / part).glob("*.safetensors")) for part in ("unet", "text_encoder", "vae")
    }
    types = {part: {value.dtype for value in tensors.values()} for part, tensors in found.items()}
    assert types == {"unet": {torch.float16}, "text_encoder": {torch.float16}, "vae": {torch.float32}}


def test_a_full_disk(tiny_folders, tmp_path, monkeypatch):
    def full(*_: object, **__: object) -> None:
        raise SafetensorError("No space left on device")

    model = load(tiny_folders["sd1"])
    monkeypatch.setattr("diffusers.StableDiffusionPipeline.save_pretrained", full)
    with pytest.raises(ImmunityError, match=r"to be able to write .*; got No space left on device"):
        model.export(tmp_path / "out")
    assert not (tmp_path / "out").exists()
