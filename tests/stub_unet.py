"""The little that files need of a model: names and shapes of a small U-Net and text encoders, without diffusers."""

import torch
from torch import nn

from immunity.deltas import hash_tensors


class Stub:
    """A model whose parameters are random numbers."""

    def __init__(self, shapes: dict[str, tuple[int, ...]], name: str = "stub") -> None:
        generator = torch.Generator().manual_seed(0)
        self.theta = {key: nn.Parameter(torch.randn(shape, generator=generator)) for key, shape in shapes.items()}
        self.name = name
        self.parents: tuple[str, ...] = ()
        self.base_hash = hash_tensors(self.theta)
        self.dtype = torch.float32

    def parameters(self, group: str) -> dict[str, nn.Parameter]:
        assert group == "all"
        return self.theta


def stub(*, encoders: int = 1, sizes: bool = False) -> Stub:
    """Two levels of one resnet, attention in the second, as in tests/tiny.py; with `sizes` SDXL's embedding of them."""
    shapes: dict[str, tuple[int, ...]] = {}

    def layer(path: str, *shape: int) -> None:
        shapes[f"{path}.weight"] = shape
        shapes[f"{path}.bias"] = shape[:1]

    def resnet(path: str, inner: int, outer: int) -> None:
        layer(f"{path}.norm1", inner)
        layer(f"{path}.conv1", outer, inner, 3, 3)
        layer(f"{path}.time_emb_proj", outer, 32)
        layer(f"{path}.norm2", outer)
        layer(f"{path}.conv2", outer, outer, 3, 3)
        layer(f"{path}.conv_shortcut", outer, inner, 1, 1)

    def transformer(path: str) -> None:
        layer(f"{path}.proj_in", 16, 16, 1, 1)
        for attention, width in (("attn1", 16), ("attn2", 12)):
            inner = f"{path}.transformer_blocks.0.{attention}"
            shapes[f"{inner}.to_q.weight"] = (16, 16)
            shapes[f"{inner}.to_k.weight"] = shapes[f"{inner}.to_v.weight"] = (16, width)
            layer(f"{inner}.to_out.0", 16, 16)

    layer("unet.conv_in", 8, 4, 3, 3)
    layer("unet.time_embedding.linear_1", 32, 8)
    if sizes:
        layer("unet.add_embedding.linear_1", 32, 8)
    resnet("unet.down_blocks.0.resnets.0", 8, 8)
    layer("unet.down_blocks.0.downsamplers.0.conv", 8, 8, 3, 3)
    resnet("unet.down_blocks.1.resnets.0", 8, 16)
    transformer("unet.down_blocks.1.attentions.0")
    resnet("unet.mid_block.resnets.0", 16, 16)
    transformer("unet.mid_block.attentions.0")
    resnet("unet.mid_block.resnets.1", 16, 16)
    for number in range(2):
        resnet(f"unet.up_blocks.0.resnets.{number}", 32, 16)
        transformer(f"unet.up_blocks.0.attentions.{number}")
    layer("unet.up_blocks.0.upsamplers.0.conv", 16, 16, 3, 3)
    resnet("unet.up_blocks.1.resnets.0", 24, 8)
    layer("unet.conv_out", 4, 8, 3, 3)
    for number in range(encoders):
        encoder = f"text_encoder{f'_{number + 1}' if number else ''}"
        for projection in ("q_proj", "k_proj", "v_proj", "out_proj"):
            layer(f"{encoder}.encoder.layers.0.self_attn.{projection}", 12, 12)
        layer(f"{encoder}.encoder.layers.0.mlp.fc1", 24, 12)
    return Stub(shapes)
