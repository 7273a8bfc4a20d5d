"""Whole models in one file, and folders whose weights are sharded or of half precision."""

import errno
import json
import re
import shutil

import pytest
import torch
from safetensors import SafetensorError
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
        with pytest.raises(ImmunityError, match=r"predict noise or v; got no --config.*2-1-base if.*2-1 if"):
            load(file)
    if family == "sd2v":
        without_text = {name: value for name, value in tensors.items() if "resblocks.1" not in name}
        save_file(without_text, tmp_path / "part.safetensors")
        with pytest.raises(ImmunityError, match=r"a whole Stable Diffusion 2\.x"):
            load(tmp_path / "part.safetensors", config=folder)
        with pytest.raises(ImmunityError, match="StableDiffusionXLPipeline in"):
            load(file, config=sdxl)


@pytest.mark.parametrize("values", [0, 1])
def test_a_file_that_says_that_it_predicts_v(sdxl, tmp_path, values):
    """The tensors, which may have no values, are for their names alone."""
    tensors, marks = original(sdxl, "sdxl"), {"v_pred": torch.zeros(values), "ztsnr": torch.zeros(values)}
    saved = {
        "noise": (tensors, {}, ("epsilon", False)),
        "said-noise": (tensors, {"modelspec.prediction_type": "epsilon"}, ("epsilon", False)),
        "header": (tensors, {"modelspec.prediction_type": "v"}, ("v_prediction", False)),
        "marks": (tensors | marks, {}, ("v_prediction", True)),
    }
    for name, (content, metadata, expected) in saved.items():
        file = tmp_path / f"{name}.safetensors"
        save_file(content, file, metadata=metadata)
        model = load(file, config=sdxl)
        config = model._scheduler.config
        assert (config.prediction_type, config.rescale_betas_zero_snr) == expected, name
        assert describe(file).rows.get("predicts", "epsilon").startswith(expected[0])
    assert config.timestep_spacing == "trailing"
    latents = torch.ones(1, *model.latent_shape)
    last, none = torch.tensor([999]), torch.zeros_like(latents)
    assert model.add_noise(latents, none, last).abs().max() < 1e-3, "nothing is left of the picture"
    torch.testing.assert_close(model.target(latents, none, last), -latents, rtol=0, atol=1e-3)
    assert model.sample(["a church"], seeds=[0], steps=2).isfinite().all()


def test_a_sampler_that_cannot_begin_with_noise_alone(tiny_folders, tmp_path):
    file = tmp_path / "model.safetensors"
    save_file(original(tiny_folders["sd1"], "sd1") | {"v_pred": torch.zeros(0), "ztsnr": torch.zeros(0)}, file)
    with pytest.raises(ImmunityError, match=r"PNDMScheduler, which knows no rescale_betas_zero_snr; try --config with"):
        load(file, config=tiny_folders["sd1"])


FIRST = "model.diffusion_model.input_blocks.0.0.weight"


@pytest.mark.parametrize(
    ("more", "obstacle"),
    [
        ({"edm_mean": torch.zeros(4), "edm_std": torch.ones(4)}, "as EDM does (edm_mean)"),
        ({"edm_vpred.sigma_max": torch.zeros(1)}, "as EDM does (edm_vpred.sigma_max)"),
        ({FIRST: torch.zeros(8, 9, 3, 3)}, "takes 9 channels where latents have 4 (a masked picture"),
        ({FIRST: torch.zeros(8, 8, 3, 3)}, "takes 8 channels where latents have 4 (a picture"),
        ({FIRST: torch.zeros(8, 7, 3, 3)}, "takes 7 channels where latents have 4 (a small picture"),
        ({"control_model.zero_convs.0.0.weight": torch.zeros(1)}, "a ControlNet in the same file"),
    ],
)
def test_models_in_one_file_that_are_more_than_text_to_image(tiny_folders, tmp_path, more, obstacle):
    file = tmp_path / "model.safetensors"
    save_file(original(tiny_folders["sd1"], "sd1") | more, file)
    assert obstacle in describe(file).rows["not read"]
    with pytest.raises(ImmunityError, match=re.escape(obstacle)):
        load(file, config=tiny_folders["sd1"])


def test_other_families_in_one_file_are_named(sdxl, tmp_path):
    texts = "conditioner.embedders"
    refiner = {
        name.replace(f"{texts}.1.", f"{texts}.0."): value
        for name, value in original(sdxl, "sdxl").items()
        if not name.startswith(f"{texts}.0.")
    }
    inside = {"vae.decoder.conv_in.weight": torch.zeros(1), "text_encoders.clip_l.x.weight": torch.zeros(1)}
    sd3 = {"model.diffusion_model.joint_blocks.0.context_block.attn.qkv.weight": torch.zeros(1), **inside}
    flux = {"model.diffusion_model.double_blocks.0.img_attn.qkv.weight": torch.zeros(1), **inside}
    for tensors, name in ((refiner, "refiner of Stable Diffusion XL"), (sd3, "Stable Diffusion 3"), (flux, r"FLUX\.1")):
        file = tmp_path / "model.safetensors"
        save_file(tensors, file)
        for ask in (describe, lambda path: load(path, config=sdxl)):
            with pytest.raises(ImmunityError, match=f"a whole model in one file: .*, of (the )?{name}"):
                ask(file)


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), SafetensorError("No space left")])
def test_a_full_disk_is_no_wrong_model(tiny_folders, tmp_path, monkeypatch, error):
    def full(*_: object, **__: object) -> None:
        raise error

    file = tmp_path / "model.safetensors"
    save_file(original(tiny_folders["sd1"], "sd1"), file)
    monkeypatch.setattr("diffusers.StableDiffusionPipeline.save_pretrained", full)
    with pytest.raises(ImmunityError, match=r"room in .*No space left.*TMPDIR"):
        load(file, config=tiny_folders["sd1"])


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
    assert load(snapshot).name == "a/b"
