"""The same file by diffusers' own loader, and its fused weights: for the layouts that it loads."""

import pytest
import torch
from safetensors.torch import save_file

from immunity import load

from tests import tiny

BLOCK = "down_blocks.1.attentions.0.transformer_blocks.0.attn2"
WIDTHS = {"sd1": 16, "sdxl": 32}


def noise(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape))) / 4


def _lora(name: str, down: str, up: str, width: int) -> dict[str, torch.Tensor]:
    return {f"{name}{down}.weight": noise(2, width), f"{name}{up}.weight": noise(16, 2)}


def peft(width: int, family: str) -> dict[str, torch.Tensor]:
    convolution = "unet.down_blocks.1.resnets.0.conv1"
    return {
        **_lora(f"unet.{BLOCK}.to_k", ".lora_A", ".lora_B", width),
        f"{convolution}.lora_A.weight": noise(2, 8, 3, 3),
        f"{convolution}.lora_B.weight": noise(16, 2, 1, 1),
    }


def attention_processors(width: int, family: str) -> dict[str, torch.Tensor]:
    return {
        **_lora(f"unet.{BLOCK}.processor.to_k", "_lora.down", "_lora.up", width),
        **_lora(f"unet.{BLOCK}.processor.to_out", "_lora.down", "_lora.up", 16),
    }


def kohya(width: int, family: str) -> dict[str, torch.Tensor]:
    place = "input_blocks_3_1" if family == "sdxl" else "down_blocks_1_attentions_0"
    name = f"lora_unet_{place}_transformer_blocks_0_attn2_to_k"
    return {**_lora(name, ".lora_down", ".lora_up", width), f"{name}.alpha": torch.tensor(0.5)}


@pytest.mark.parametrize("family", ["sd1", "sdxl"])
def test_merged_weights_are_those_that_diffusers_fuses(tiny_folders, tmp_path, family):
    before = load(tiny_folders[family]).parameters("denoiser")
    for layout in (peft, attention_processors, kohya):
        file = tmp_path / f"{layout.__name__}.safetensors"
        save_file(layout(WIDTHS[family], family), file)
        pipe = tiny.plain(tiny_folders[family])
        pipe.load_lora_weights(tmp_path, weight_name=file.name)
        pipe.fuse_lora()
        pipe.unload_lora_weights()
        expected = dict(pipe.unet.named_parameters())
        found = load(tiny_folders[family], deltas=[file]).parameters("denoiser")
        changed = [name for name, value in found.items() if not torch.equal(value, before[name])]
        assert len(changed) == (1 if layout is kohya else 2)
        for name, value in found.items():
            assert torch.allclose(value, expected[name.removeprefix("unet.")], atol=1e-6), (layout, name)
