"""What an attack writes is what other programs read."""

import dataclasses

import pytest
import torch

from immunity import ImmunityError, load
from immunity.adaptations import Lora, adapt
from immunity.files import read_token

from tests import tiny
from tests.contract.test_adaptations import ADAPTATIONS, FIRST, prediction


def lora_pipeline(folder, file):
    pipeline = tiny.plain(folder)
    pipeline.load_lora_weights(file.parent, weight_name=file.name)
    return pipeline


# Diffusers has no loader of such files for PixArt.
@pytest.mark.parametrize("family", [family for family in tiny.FAMILIES if family != "pixart"])
@pytest.mark.parametrize("settings", [{}, {"rank": 2, "alpha": 3.0}])
def test_the_lora_file_loads_in_a_plain_pipeline(model, folder, examples, tmp_path, settings):
    base = prediction(model)
    result = adapt(model, examples, Lora(lr=5e-2, steps=3, **settings), seed=0)
    result.save_files(tmp_path / "church")
    file = tmp_path / "church" / "pytorch_lora_weights.safetensors"
    with result.applied(model):
        ours = prediction(model)
    assert (ours - base).abs().max() > 1e-3
    plain = load(folder)
    pipeline = lora_pipeline(folder, file)
    plain.components[plain.denoiser] = plain._denoiser = pipeline.components[plain.denoiser]
    torch.testing.assert_close(prediction(plain), ours, rtol=1e-3, atol=1e-4)
    with pytest.raises(ImmunityError, match="does not exist yet"):
        result.save_files(tmp_path / "church")
    with pytest.raises(ImmunityError, match="without its provenance"):
        type(result.delta).load(file)


@pytest.mark.parametrize("family", ["sd1", "sdxl"])
def test_the_files_of_a_new_token_are_read_back_and_by_plain_diffusers(model, folder, examples, tmp_path, family):
    result = adapt(model, examples, ADAPTATIONS["textual-inversion"], seed=0)
    result.save_files(tmp_path / "token")
    with result.applied(model):
        ours = prediction(model, "image of <new>")
    for file in sorted((tmp_path / "token").iterdir()):
        with read_token(file).learned(model).known_to(model):
            assert torch.equal(prediction(model, "image of <new>"), ours)
    if family == "sd1":
        pipeline = tiny.plain(folder)
        pipeline.load_textual_inversion(tmp_path / "token", weight_name="learned_embeds.safetensors")
        with torch.no_grad():
            embeddings = pipeline.encode_prompt("image of <new>", "cpu", 1, False)[0]
        with result.applied(model):
            torch.testing.assert_close(model.encode_prompts(["image of <new>"]).embeddings, embeddings)


@pytest.mark.parametrize("family", ["sd1", "sdxl"])
@pytest.mark.parametrize("token", ["<delta>", "<pytorch_lora_weights>", "<learned_embeds>"])
def test_a_token_may_be_called_as_another_file_of_the_folder_is(model, folder, examples, tmp_path, family, token):
    adaptation = dataclasses.replace(ADAPTATIONS["pivotal-tuning"], token=token, steps=1)
    result = adapt(model, examples, adaptation, seed=0)
    result.save(tmp_path / "attack")
    names = {file.name for file in (tmp_path / "attack").glob("*.safetensors")}
    assert {"delta.safetensors", "pytorch_lora_weights.safetensors"} < names
    assert len(names) == (4 if family == "sd1" else 3)
    (own,) = read_token(tmp_path / "attack").learned(model, token=token).rows.items() if family == "sd1" else (None,)
    assert own is None or torch.equal(own[1], result.tokens[0].rows[own[0]])


@pytest.mark.parametrize("family", FIRST)
def test_custom_diffusions_file_loads_in_plain_diffusers(model, folder, examples, tmp_path):
    result = adapt(model, examples, dataclasses.replace(ADAPTATIONS["custom-diffusion"], lr=5e-2), seed=0)
    result.save_files(tmp_path / "custom")
    with result.delta.applied(model):
        ours = prediction(model)
    plain = load(folder)
    base = prediction(plain)
    pipeline = tiny.plain(folder)
    # Without `_pipeline` some versions of diffusers read the file and then forget it.
    pipeline.unet.load_attn_procs(
        tmp_path / "custom", weight_name="pytorch_custom_diffusion_weights.safetensors", _pipeline=pipeline
    )
    plain.components["unet"] = plain._denoiser = pipeline.unet
    assert (ours - base).abs().max() > 1e-3
    torch.testing.assert_close(prediction(plain), ours, rtol=1e-3, atol=1e-5)
