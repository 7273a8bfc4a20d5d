"""What is written for others: LoRA in both layouts, and the way to the hub."""

import json
import os

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from immunity import ImmunityError
from immunity.files import Adapter, read
from immunity.files.hub import push
from immunity.files.lora import write_lora
from immunity.files.tensors import read_metadata

from tests.network import network_error
from tests.stub_unet import stub

BLOCK = "down_blocks.1.attentions.0.transformer_blocks.0.attn2"
TO_K, CONV = f"unet.{BLOCK}.to_k", "unet.down_blocks.1.resnets.0.conv1"
TEXT = "text_encoder.encoder.layers.0.self_attn.q_proj"


def noise(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


@pytest.fixture
def lora(tmp_path) -> Adapter:
    tensors = {
        f"{TO_K}.lora_A.weight": noise(2, 12),
        f"{TO_K}.lora_B.weight": noise(16, 2),
        f"{CONV}.lora_A.weight": noise(3, 8, 3, 3),
        f"{CONV}.lora_B.weight": noise(16, 3, 1, 1),
        f"{TEXT}.lora_A.weight": noise(2, 12) + 1,
        f"{TEXT}.lora_B.weight": noise(12, 2),
        f"{TEXT}.lora_magnitude_vector": noise(12).abs(),
    }
    settings = {"unet.r": 2, "unet.lora_alpha": 5, "unet.alpha_pattern": {"conv1": 6}}
    save_file(tensors, tmp_path / "lora.safetensors", metadata={"lora_adapter_metadata": json.dumps(settings)})
    return read(tmp_path / "lora.safetensors")


@pytest.mark.parametrize(("encoders", "sizes"), [(1, False), (2, True)])
def test_a_lora_does_the_same_in_every_layout(lora, tmp_path, encoders, sizes):
    model = stub(encoders=encoders, sizes=sizes)
    expected = lora.on(model).tensors
    for layout in ("kohya", "diffusers", "kohya"):  # of the original, then of what was written before
        file = tmp_path / f"{layout}-{len(list(tmp_path.iterdir()))}.safetensors"
        write_lora(lora, model, file, layout=layout, header={"immunity_adapter": "x"})
        lora = read(file)
        assert lora.layout == layout
        found = lora.on(model).tensors
        assert found.keys() == expected.keys()
        assert all(torch.allclose(value, expected[name], atol=1e-5) for name, value in found.items())
        names = set(load_file(file))
        if layout == "diffusers":
            assert f"{TO_K}.lora_A.weight" in names
            assert "text_encoder.text_model.encoder.layers.0.self_attn.q_proj.lora_magnitude_vector" in names
        else:
            place = "input_blocks_3_1" if sizes else "down_blocks_1_attentions_0"
            assert f"lora_unet_{place}_transformer_blocks_0_attn2_to_k.lora_up.weight" in names
            assert f"lora_te{encoders - 1 or ''}_text_model_encoder_layers_0_self_attn_q_proj.alpha" in names
    with pytest.raises(ImmunityError, match="does not exist yet"):
        write_lora(lora, model, file, layout="kohya")


@pytest.mark.parametrize(
    ("width", "sizes", "said"),
    [
        (768, False, {"ss_base_model_version": "sd_v1", "ss_v2": "False"}),
        (1024, False, {"ss_base_model_version": "sd_v2", "ss_v2": "True"}),
        (2048, True, {"ss_base_model_version": "sdxl_base_v1-0", "ss_v2": "False"}),
        (12, False, {}),
    ],
)
def test_the_header_of_kohyas_layout_says_for_which_model_it_is(tmp_path, width, sizes, said):
    """By it A1111 decides which to show."""
    model = stub(sizes=sizes)
    for name, value in model.theta.items():
        if name.endswith(("attn2.to_k.weight", "attn2.to_v.weight")):
            model.theta[name] = nn.Parameter(torch.zeros(len(value), width))
    source, written = tmp_path / "lora.safetensors", tmp_path / "kohya.safetensors"
    save_file({f"{TO_K}.lora_A.weight": noise(2, width), f"{TO_K}.lora_B.weight": noise(16, 2)}, source)
    write_lora(read(source), model, written, layout="kohya")
    assert {key: value for key, value in read_metadata(written).items() if key.startswith(("ss_b", "ss_v"))} == said


def test_floats_of_eight_bits_become_longer(tmp_path):
    tensors = {f"{TO_K}.lora_A.weight": noise(2, 12), f"{TO_K}.lora_B.weight": noise(16, 2)}
    settings = {"lora_adapter_metadata": json.dumps({"unet.r": 2, "unet.lora_alpha": 3})}
    eight = {name: value.to(torch.float8_e4m3fn) for name, value in tensors.items()}
    save_file(eight, tmp_path / "a.safetensors", metadata=settings)
    lora, model = read(tmp_path / "a.safetensors"), stub()
    (expected,) = lora.on(model).tensors.values()
    for layout in ("diffusers", "kohya"):
        write_lora(lora, model, tmp_path / f"{layout}.safetensors", layout=layout)
        (found,) = read(tmp_path / f"{layout}.safetensors").on(model).tensors.values()
        assert torch.allclose(found, expected, atol=1e-5)


def test_what_has_no_place_in_those_layouts(tmp_path):
    name = TO_K.replace("unet.", "lora_unet_").replace(".", "_")
    down, up = {f"{name}.lora_down.weight": noise(2, 12)}, {f"{name}.lora_up.weight": noise(16, 2)}
    for tensors, message in (
        ({f"{name}.diff": noise(16, 12)}, "full difference of another form"),
        ({**down, **up, f"{name}.diff_b": noise(16)}, "adds to biases"),
        ({**down, **up, f"{name}.dora_scale": noise(1, 12)}, "a magnitude for each input"),
    ):
        save_file(tensors, tmp_path / "a.safetensors")
        with pytest.raises(ImmunityError, match=message):
            write_lora(read(tmp_path / "a.safetensors"), stub(), tmp_path / "b.safetensors", layout="kohya")
    assert not (tmp_path / "b.safetensors").exists()


# The hub


@pytest.fixture
def exported(tmp_path):
    folder = tmp_path / "exported"
    folder.mkdir()
    (folder / "model_index.json").write_text("{}")
    return folder


class Hub:
    """What the hub has, in the place of its client."""

    def __init__(self, files: list[str] | None = None, error: Exception | None = None) -> None:
        self.files, self.error, self.done = files, error, []

    def __call__(self) -> "Hub":
        return self

    def repo_exists(self, name: str) -> bool:
        if self.error is not None:
            raise self.error
        return self.files is not None

    def list_repo_files(self, name: str) -> list[str]:
        return self.files

    def create_repo(self, name: str, *, private: bool) -> None:
        self.done.append(("create", name, private))

    def upload_folder(self, *, repo_id: str, folder_path, commit_message: str) -> None:
        self.done.append(("upload", repo_id, folder_path))


@pytest.fixture
def hub(monkeypatch):
    def use(**state: object) -> Hub:
        there = Hub(**state)
        monkeypatch.setattr("huggingface_hub.HfApi", there)
        monkeypatch.setattr("huggingface_hub.get_token", lambda: "token")
        return there

    return use


def test_a_new_repository_is_made_and_one_with_files_is_asked_about(exported, hub):
    there = hub()
    assert push(exported, "me/mine", private=True) == "https://huggingface.co/me/mine"
    assert there.done == [("create", "me/mine", True), ("upload", "me/mine", exported)]
    there = hub(files=[".gitattributes"])
    push(exported, "me/mine")
    assert [step[0] for step in there.done] == ["upload"]
    there = hub(files=[".gitattributes", "README.md"])
    with pytest.raises(ImmunityError, match=r"me/mine with 1 files, e\.g\. README\.md; try another name, or --force"):
        push(exported, "me/mine")
    assert not there.done
    push(exported, "me/mine", force=True)
    assert [step[0] for step in there.done] == ["upload"]


def test_learned_words_alone_are_the_folder_of_an_attack(tmp_path, hub):
    (tmp_path / "learned_embeds.safetensors").touch()
    there = hub()
    push(tmp_path, "me/word")
    assert [step[0] for step in there.done] == ["create", "upload"]


def test_no_token_no_network_and_folders_that_nobody_should_publish(exported, hub, monkeypatch, tmp_path):
    hub(error=ConnectionError("no route to host"))
    with pytest.raises(ImmunityError, match="ConnectionError: no route to host; try checking the connection"):
        push(exported, "me/mine")
    for error in (network_error("ConnectError"), network_error("ReadTimeout")):
        hub(error=error)
        with pytest.raises(ImmunityError, match=r"the hub to answer; got .*: no route to host; try checking"):
            push(exported, "me/mine")
    hub(error=RuntimeError("a mistake"))
    with pytest.raises(RuntimeError):
        push(exported, "me/mine")
    nobody = hub()
    (exported / "unet").mkdir()
    (exported / "unet" / "secret.json").symlink_to(tmp_path / "key")
    with pytest.raises(ImmunityError, match="a link to"):
        push(exported, "me/mine")
    os.unlink(exported / "unet" / "secret.json")  # noqa: PTH108 (as one does by hand)
    (exported / "unet" / "weights.bin").touch()
    with pytest.raises(ImmunityError, match="without pickles"):
        push(exported, "me/mine")
    (exported / "unet" / "weights.bin").unlink()
    for folder, name, message in (
        (tmp_path / "none", "me/mine", "does not exist"),
        (tmp_path, "me/mine", "something else"),
        (exported, "mine", "owner/name"),
    ):
        with pytest.raises(ImmunityError, match=message):
            push(folder, name)
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    with pytest.raises(ImmunityError, match="a token of the hub"):
        push(exported, "me/mine")
    assert not nobody.done
