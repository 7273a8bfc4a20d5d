import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from immunity import Delta, ImmunityError, Provenance, load
from immunity.models.folders import read_weights

from tests.network import network_error


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


@pytest.mark.parametrize("variant", ["fp16", "bf16"])
@pytest.mark.parametrize("shards", ["10GB", "20KB"])
def test_variants_as_the_libraries_write_them(copy, variant, shards):
    from diffusers import UNet2DConditionModel
    from transformers import CLIPTextModel

    dtype = {"fp16": torch.float16, "bf16": torch.bfloat16}[variant]
    for kind, part in ((UNet2DConditionModel, "unet"), (CLIPTextModel, "text_encoder")):
        module = kind.from_pretrained(copy / part).to(dtype)
        shutil.rmtree(copy / part)
        module.save_pretrained(copy / part, variant=variant, max_shard_size=shards)
        files = list((copy / part).glob("*.safetensors"))
        assert (len(files) > 1) == (shards == "20KB")
        assert all(f".{variant}" in file.name for file in files)
    whole = load(copy)
    for value in whole.parameters("all").values():
        assert value.dtype == torch.float32
        assert torch.equal(value, value.to(dtype).float())
    short = load(copy, dtype=str(dtype).removeprefix("torch."))
    assert short.base_hash == whole.base_hash
    assert read_weights(CLIPTextModel, copy / "text_encoder", dtype=dtype).dtype == dtype, "not by way of float32"


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


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (drop_a_tensor, "none for conv_in.weight"),
        (truncate, "complete diffusers folder"),
        (only_a_pickle, "safetensors weights"),
    ],
)
def test_damaged_folders(copy, damage, message):
    damage(copy)
    with pytest.raises(ImmunityError, match=message):
        load(copy)


INDEX, SCHEDULER = "model_index.json", "scheduler/scheduler_config.json"


def change(path: Path, **settings: object) -> None:
    path.write_text(json.dumps((json.loads(path.read_text()) if path.exists() else {}) | settings))


@pytest.mark.parametrize(
    ("file", "settings", "message"),
    [
        (SCHEDULER, {"prediction_type": "sample"}, "predicts epsilon or v_prediction"),
        (SCHEDULER, {"beta_start": "x"}, "complete diffusers folder"),
        (SCHEDULER, {"num_train_timesteps": 0}, "complete diffusers folder"),
        (INDEX, {"text_encoder": ["transformers", "T5EncoderModel"]}, "CLIPTextModel as text_encoder; got T5Enc"),
        (INDEX, {"text_encoder": ["transformers", ["CLIPTextModel"]]}, "CLIPTextModel as text_encoder"),
        (INDEX, {"_class_name": ["StableDiffusionPipeline"]}, "one of StableDiffusionPipeline"),
        *((INDEX, {"scheduler": entry}, "a scheduler that this") for entry in (None, 5, "x", ["diffusers"], [[], []])),
        ("unet/config.json", {"layers_per_block": None}, "complete diffusers folder"),
        ("unet/config.json", {"sample_size": None}, "complete diffusers folder"),
        ("vae/config.json", {"scaling_factor": None}, "complete diffusers folder"),
        ("text_encoder/config.json", {"num_attention_heads": 0}, "complete diffusers folder"),
        ("text_encoder/config.json", {"vocab_size": "x"}, "complete diffusers folder"),
    ],
)
def test_settings_that_make_no_model(copy, file, settings, message):
    change(copy / file, **settings)
    with pytest.raises(ImmunityError, match=message):
        load(copy)


@pytest.mark.parametrize("content", ["[]", "5", '"owner/name"', "[" * 100_000, "9" * 5000, "\0"])
@pytest.mark.parametrize("file", [INDEX, SCHEDULER, "unet/config.json", "tokenizer/tokenizer_config.json"])
def test_files_of_settings_that_are_none(copy, file, content):
    (copy / file).write_text(content)
    with pytest.raises(ImmunityError, match=r"readable model_index\.json|complete diffusers folder"):
        load(copy)


@pytest.mark.parametrize(
    "entry",
    [
        ["diffusers", "DiffusionPipeline"],
        ["diffusers", "UNet2DConditionModel"],
        ["diffusers", "schedulers"],
        ["diffusers.schedulers", "PNDMScheduler"],
        ["x", "PNDMScheduler"],
    ],
)
def test_no_class_is_called_but_a_scheduler(copy, entry, monkeypatch):
    import diffusers

    def call(*_arguments: object, **_settings: object) -> None:
        raise AssertionError("called")

    monkeypatch.setattr(diffusers.DiffusionPipeline, "from_pretrained", call)
    monkeypatch.setattr(diffusers.UNet2DConditionModel, "from_pretrained", call)
    change(copy / INDEX, scheduler=entry)
    with pytest.raises(ImmunityError, match=f"a scheduler that this installation of diffusers has; got .*{entry[1]}"):
        load(copy)


KERNEL = "somebody/attention"


@pytest.mark.parametrize(
    ("file", "settings", "message"),
    [
        ("text_encoder/config.json", {"attn_implementation": KERNEL}, "code from elsewhere"),
        ("text_encoder/config.json", {"_attn_implementation": f"paged|{KERNEL}"}, "code from elsewhere"),
        ("text_encoder/config.json", {"text_config": {"_attn_implementation_internal": KERNEL}}, "code from elsewhere"),
        ("text_encoder/config.json", {"attn_implementation": {"": KERNEL}}, "code from elsewhere"),
        (
            "text_encoder/config.json",
            {"quantization_config": {"quant_method": "bitsandbytes"}},
            "quantised ones are not",
        ),
        ("unet/config.json", {"quantization_config": {"quant_method": "x"}}, "the unquantised folder"),
        ("text_encoder/config.json", {"transformers_weights": "adapter_model.bin"}, "weights under their usual names"),
        ("text_encoder/adapter_config.json", {"base_model_name_or_path": "/"}, "an adapter beside them"),
        ("tokenizer/tokenizer_config.json", {"vocab": "../../secret.json"}, "same folder; got vocab"),
        ("tokenizer/tokenizer_config.json", {"merges_file": "/secret.txt"}, "same folder; got merges_file"),
    ],
)
def test_settings_that_lead_elsewhere(copy, file, settings, message):
    change(copy / file, **settings)
    with pytest.raises(ImmunityError, match=message):
        load(copy)


def test_settings_that_lead_nowhere(copy):
    base = load(copy).base_hash
    change(copy / "text_encoder/config.json", attn_implementation="sdpa", quantization_config=None)
    change(copy / "tokenizer/tokenizer_config.json", vocab_file="vocab.json", name_or_path="a/b")
    assert load(copy).base_hash == base


@pytest.mark.parametrize("place", ["../secret.safetensors", "{root}/secret.safetensors", "..", "a\\b", 5])
@pytest.mark.parametrize("part", ["unet", "text_encoder"])
def test_shards_that_lie_outside(copy, part, place):
    (file,) = (copy / part).glob("*.safetensors")
    shutil.move(file, copy / "secret.safetensors")
    place = place.format(root=copy) if isinstance(place, str) else place
    weights = dict.fromkeys(load_file(copy / "secret.safetensors"), place)
    index = file.with_name(f"{file.name}.index.json")
    index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": weights}))
    with pytest.raises(ImmunityError, match="names of files in the same folder"):
        load(copy)


def test_other_pipelines_are_refused_by_name(copy):
    change(copy / INDEX, _class_name="KandinskyV22Pipeline")
    with pytest.raises(ImmunityError, match=r"one of StableDiffusionPipeline, .*FluxPipeline.*; got KandinskyV22Pipe"):
        load(copy)


def test_a_folder_without_its_scheduler(copy):
    shutil.rmtree(copy / "scheduler")
    with pytest.raises(ImmunityError, match=r"expected scheduler/scheduler_config\.json in .*; got none"):
        load(copy)


def test_a_denoiser_that_takes_more_than_latents(copy):
    tensors = load_file(unet_file(copy))
    tensors["conv_in.weight"] = torch.zeros(len(tensors["conv_in.weight"]), 9, 3, 3)
    save_file(tensors, unet_file(copy), metadata={"format": "pt"})
    change(copy / "unet" / "config.json", in_channels=9)
    with pytest.raises(
        ImmunityError, match=r"autoencoder's 4 channels .*; got one of 9 channels in copy: for inpainting"
    ):
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
    change(folder / SCHEDULER, **settings)
    with pytest.raises(ImmunityError, match="neither inverted nor stochastic"):
        load(folder)


def test_autoencoders_with_a_scale_for_each_channel(tiny_folders, tmp_path):
    folder = shutil.copytree(tiny_folders["sdxl"], tmp_path / "copy")
    change(folder / "vae" / "config.json", latents_mean=[0.0] * 4)
    with pytest.raises(ImmunityError, match="latents_mean"):
        load(folder)


def test_a_hub_that_is_out_of_reach(monkeypatch):
    def out_of_reach(*_, **__):
        raise network_error("ProxyError")

    monkeypatch.setattr("huggingface_hub.snapshot_download", out_of_reach)
    with pytest.raises(ImmunityError, match="'nobody/nothing' \\(ProxyError"):
        load("nobody/nothing")


def test_a_tokenizer_that_does_not_say_how_much_it_reads(copy):
    whole = load(copy).encode_prompts(["a church"])
    change(copy / "tokenizer" / "tokenizer_config.json", model_max_length=None)
    assert load(copy).vocabularies()
    assert torch.equal(load(copy).encode_prompts(["a church"]).embeddings, whole.embeddings)


def test_unknown_dtypes_and_devices(copy):
    with pytest.raises(ImmunityError, match="a dtype: float32"):
        load(copy, dtype="int8")
    with pytest.raises(ImmunityError, match="device that this PyTorch"):
        load(copy, device="abacus")
