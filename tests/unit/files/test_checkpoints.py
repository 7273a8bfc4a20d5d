"""Whole models in one file, and folders whose weights are sharded or of half precision."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from immunity import ImmunityError, load
from immunity.files.describing import describe

from tests.network import network_error
from tests.originals import original


@pytest.fixture(scope="module")
def sdxl(tiny_folders, tmp_path_factory):
    """SDXL with text encoders of different widths, by which diffusers tells them apart."""
    from diffusers import UNet2DConditionModel

    from tests import tiny

    folder = shutil.copytree(tiny_folders["sdxl"], tmp_path_factory.mktemp("sdxl") / "sdxl")
    tiny._text_encoder("sdxl", projection=8, width=8).save_pretrained(folder / "text_encoder_2")
    config = UNet2DConditionModel.load_config(folder / "unet") | {"cross_attention_dim": 24}
    UNet2DConditionModel.from_config(config).save_pretrained(folder / "unet")
    return folder


@pytest.mark.parametrize("family", ["sd1", "sd2", "sd2v", "sdxl"])
def test_a_model_in_one_file_is_the_model_of_its_folder(tiny_folders, sdxl, family, tmp_path):
    folder = sdxl if family == "sdxl" else tiny_folders[family]
    tensors = original(folder, family)
    file = tmp_path / "my model.safetensors"
    if family == "sd1":
        file = tmp_path / "model.ckpt"
        torch.save({"state_dict": tensors, "global_step": 7}, file)
    else:
        save_file(tensors, file)
    model = load(file, config=folder)
    assert model.name == file.name
    assert model.base_hash == load(folder).base_hash
    shown = describe(file).rows
    expected = {"sd1": "1.x", "sd2": "2.x", "sd2v": "2.x", "sdxl": "XL"}[family]
    assert shown["model"] == f"a whole model in one file, Stable Diffusion {expected}"
    if family in ("sd2", "sd2v"):
        kind = "v_prediction" if family == "sd2v" else "epsilon"
        assert model._scheduler.config.prediction_type == kind
        with pytest.raises(ImmunityError, match=r"predicts noise or v; got no --config.*2-1-base if.*2-1 if"):
            load(file)
    if family == "sd2v":
        without_text = {name: value for name, value in tensors.items() if "resblocks.1" not in name}
        save_file(without_text, tmp_path / "part.safetensors")
        with pytest.raises(ImmunityError, match=r"a whole Stable Diffusion 2\.x"):
            load(tmp_path / "part.safetensors", config=folder)
        with pytest.raises(ImmunityError, match="StableDiffusionXLPipeline in"):
            load(file, config=sdxl)


def unreachable(*_: object, **__: object) -> None:
    raise network_error("ProxyError")


def test_settings_that_are_not_to_be_had(tiny_folders, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
    names = ("model.diffusion_model.x.weight", "first_stage_model.x.weight", "cond_stage_model.transformer.x.weight")
    file = tmp_path / "model.safetensors"
    save_file({name: torch.zeros(1) for name in names}, file)
    with pytest.raises(ImmunityError, match=r"settings of Stable Diffusion 1\.x.*--config FOLDER"):
        load(file)
    with pytest.raises(ImmunityError, match="nobody/nothing, not to be had"):
        load(file, config="nobody/nothing")
    with monkeypatch.context() as patched:
        patched.setattr("huggingface_hub.snapshot_download", unreachable)
        with pytest.raises(ImmunityError, match="nobody/nothing, not to be had"):
            load(file, config="nobody/nothing")
    with pytest.raises(ImmunityError, match="a folder that exists"):
        load(file, config="nothing")
    with pytest.raises(ImmunityError, match=r"one with model_index\.json"):
        load(file, config=tmp_path)
    (tmp_path / "model_index.json").write_text("[" * 10**5)
    with pytest.raises(ImmunityError, match=r"one with model_index\.json"):
        load(file, config=tmp_path)
    (tmp_path / "model_index.json").unlink()
    with pytest.raises(ImmunityError, match="leaving the settings"):
        load(tiny_folders["sd1"], config=tmp_path)
    save_file({"model.diffusion_model.x.weight": torch.zeros(1)}, file)
    with pytest.raises(ImmunityError, match="with the parts model"):
        load(file, config=tiny_folders["sd1"])


def test_sharded_and_bfloat16_folders(tiny_folders, tmp_path):
    folder = shutil.copytree(tiny_folders["sd1"], tmp_path / "sharded")
    file = folder / "unet" / "diffusion_pytorch_model.safetensors"
    tensors = {name: value.bfloat16() for name, value in load_file(file).items()}
    file.unlink()
    shards = {}
    for number, names in enumerate((sorted(tensors)[::2], sorted(tensors)[1::2]), start=1):
        shard = f"diffusion_pytorch_model-{number:05}-of-00002.safetensors"
        save_file({name: tensors[name] for name in names}, folder / "unet" / shard, metadata={"format": "pt"})
        shards |= dict.fromkeys(names, shard)
    index = folder / "unet" / "diffusion_pytorch_model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 0}, "weight_map": shards}))
    for name, value in load(folder).parameters("denoiser").items():
        assert torch.equal(value, tensors[name.removeprefix("unet.")].float())


def test_links_out_of_a_models_folder(tiny_folders, tmp_path):
    folder = shutil.copytree(tiny_folders["sd1"], tmp_path / "linked")
    secret = tmp_path / "secret.json"
    shutil.move(folder / "unet" / "config.json", secret)
    (folder / "unet" / "config.json").symlink_to(secret)
    with pytest.raises(ImmunityError, match="a link to"):
        load(folder)
    hub = tmp_path / "models--a--b"
    (hub / "snapshots").mkdir(parents=True)
    (hub / "blobs").mkdir()
    snapshot = shutil.move(folder, hub / "snapshots" / "0")
    shutil.move(secret, hub / "blobs" / "1")
    (snapshot / "unet" / "config.json").unlink()
    (snapshot / "unet" / "config.json").symlink_to("../../../blobs/1")
    assert load(snapshot).name == "0"
