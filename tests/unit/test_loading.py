import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from immunity import Delta, ImmunityError, Provenance, load


@pytest.fixture
def copy(tiny_folders, tmp_path) -> Path:
    return shutil.copytree(tiny_folders["sd1"], tmp_path / "copy")


def unet_file(folder: Path) -> Path:
    return folder / "unet" / "diffusion_pytorch_model.safetensors"


@pytest.mark.parametrize("name", ["diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.fp16.safetensors"])
def test_half_precision_files_are_made_float32(copy, name):
    halves = {key: value.half() for key, value in load_file(unet_file(copy)).items()}
    unet_file(copy).unlink()
    save_file(halves, copy / "unet" / name, metadata={"format": "pt"})
    model = load(copy)
    for key, value in model.parameters("denoiser").items():
        assert value.dtype == torch.float32
        assert torch.equal(value, halves[key.removeprefix("unet.")].float())


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_a_model_is_the_same_by_hash_in_whatever_it_is_read(copy, dtype):
    for file in copy.rglob("*.safetensors"):
        save_file({key: value.half() for key, value in load_file(file).items()}, file, metadata={"format": "pt"})
    whole, short = load(copy), load(copy, dtype=dtype, vae_dtype=dtype)
    assert short.base_hash == whole.base_hash
    for name, value in whole.parameters("all").items():
        assert torch.equal(short.parameters("all")[name], value.to(getattr(torch, dtype)))


def test_deltas_are_applied_in_order_from_files_too(copy, tmp_path):
    model = load(copy)
    name = next(iter(model.parameters("text_kv")))
    shape = model.parameters("all")[name].shape

    def delta(value: float, parents: tuple[str, ...]) -> Delta:
        made = Provenance(base=model.name, base_hash=model.base_hash, method="T", config={}, seed=0, parents=parents)
        return Delta({name: torch.full(shape, value)}, made)

    first = delta(1.0, ())
    second = delta(2.0, (first.hash,))
    second.save(tmp_path / "second.safetensors")
    changed = load(copy, deltas=[first, tmp_path / "second.safetensors"])
    assert (changed.parameters("all")[name] == 2).all()
    assert changed.parents == (first.hash, second.hash)
    assert changed.base_hash == model.base_hash
    with pytest.raises(ImmunityError, match="carries the deltas"):
        load(copy, deltas=[second])


def drop_a_tensor(folder: Path) -> None:
    tensors = load_file(unet_file(folder))
    tensors.pop("conv_in.weight")
    save_file(tensors, unet_file(folder), metadata={"format": "pt"})


def truncate(folder: Path) -> None:
    unet_file(folder).write_bytes(unet_file(folder).read_bytes()[:1000])


def only_a_pickle(folder: Path) -> None:
    torch.save(load_file(unet_file(folder)), folder / "unet" / "diffusion_pytorch_model.bin")
    unet_file(folder).unlink()


def predict_the_sample(folder: Path) -> None:
    path = folder / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"prediction_type": "sample"}))


def other_text_encoder(folder: Path) -> None:
    path = folder / "model_index.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"text_encoder": ["transformers", "T5EncoderModel"]}))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (drop_a_tensor, "none for conv_in.weight"),
        (truncate, "complete diffusers folder"),
        (only_a_pickle, "safetensors weights"),
        (predict_the_sample, "predicts epsilon or v_prediction"),
        (other_text_encoder, "CLIPTextModel as text_encoder; got T5EncoderModel"),
    ],
)
def test_damaged_folders(copy, damage, message):
    damage(copy)
    with pytest.raises(ImmunityError, match=message):
        load(copy)


def test_other_pipelines_are_refused_by_name(copy):
    path = copy / "model_index.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"_class_name": "KandinskyV22Pipeline"}))
    with pytest.raises(ImmunityError, match=r"one of StableDiffusionPipeline, .*FluxPipeline.*; got KandinskyV22Pipe"):
        load(copy)


def test_a_text_encoder_without_its_tokenizer(tiny_folders, tmp_path):
    folder = shutil.copytree(tiny_folders["sd3"], tmp_path / "copy")
    path = folder / "model_index.json"
    index = json.loads(path.read_text())
    path.write_text(json.dumps(index | {"tokenizer_2": [None, None]}))
    with pytest.raises(ImmunityError, match="both or neither of text_encoder_2 and tokenizer_2"):
        load(folder)
    names = [f"{kind}{end}" for kind in ("text_encoder", "tokenizer") for end in ("", "_2", "_3")]
    path.write_text(json.dumps(index | {name: [None, None] for name in names}))
    with pytest.raises(ImmunityError, match="at least one text encoder"):
        load(folder)


@pytest.mark.parametrize("settings", [{"stochastic_sampling": True}, {"invert_sigmas": True}])
def test_flows_that_are_not_the_familys_own(tiny_folders, tmp_path, settings):
    folder = shutil.copytree(tiny_folders["sd3"], tmp_path / "copy")
    path = folder / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))
    with pytest.raises(ImmunityError, match="neither inverted nor stochastic"):
        load(folder)


def test_autoencoders_with_a_scale_for_each_channel(tiny_folders, tmp_path):
    folder = shutil.copytree(tiny_folders["sdxl"], tmp_path / "copy")
    path = folder / "vae" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"latents_mean": [0.0] * 4}))
    with pytest.raises(ImmunityError, match="latents_mean"):
        load(folder)


def test_unknown_dtypes_and_devices(copy):
    with pytest.raises(ImmunityError, match="a dtype: float32"):
        load(copy, dtype="int8")
    with pytest.raises(ImmunityError, match="device that this PyTorch"):
        load(copy, device="abacus")
