"""Tiny random judges, built in code and saved in the formats of the real ones and of the embedded world's."""

import json
from pathlib import Path

import torch

from tests import tiny

CLASSES = ("church", "castle", "dog face")


def _preprocessing(folder: Path, *, size: object, mean: list[float], std: list[float], crop: int | None = None) -> None:
    config = {"size": size, "image_mean": mean, "image_std": std, "resample": 3, "do_center_crop": crop is not None}
    if crop is not None:
        config["crop_size"] = crop
    (folder / "preprocessor_config.json").write_text(json.dumps(config))


def _text_config(width: int):
    from transformers import CLIPTextConfig

    vocabulary = len(tiny._vocabulary())
    return CLIPTextConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=tiny.TOKENS,
        projection_dim=width,
        bos_token_id=vocabulary - 2,
        eos_token_id=vocabulary - 1,
        pad_token_id=vocabulary - 1,
    )


def _seeded(build, seed: int):
    with torch.random.fork_rng(devices=[]):  # the models' initialisers know only the global generator
        torch.manual_seed(seed)
        return build()


def _lively(model):
    """MobileNet's own initialisation is so small that an untrained one answers zero to everything."""
    for module in model.modules():
        if isinstance(module, torch.nn.Conv2d):
            torch.nn.init.kaiming_normal_(module.weight)
    return model


def clip(folder: Path) -> Path:
    """As openai's ViT-B/32: a `CLIPModel`, shorter side resized, middle cut out."""
    from transformers import CLIPConfig, CLIPModel, CLIPVisionConfig

    vision = CLIPVisionConfig(
        image_size=16, patch_size=8, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2
    )
    config = CLIPConfig(text_config=_text_config(16).to_dict(), vision_config=vision.to_dict(), projection_dim=8)
    _seeded(lambda: CLIPModel(config), 1).save_pretrained(folder)
    tiny._tokenizer(folder)
    _preprocessing(folder, size={"shortest_edge": 16}, mean=[0.48, 0.46, 0.41], std=[0.27, 0.26, 0.28], crop=16)
    return folder


def dual_encoder(folder: Path) -> Path:
    """As the embedded world's: a convolutional tower beside CLIP's text encoder, in float16 on disk."""
    from transformers import (
        CLIPTextModel,
        MobileNetV1Config,
        MobileNetV1Model,
        VisionTextDualEncoderConfig,
        VisionTextDualEncoderModel,
    )

    vision = MobileNetV1Config(image_size=32, depth_multiplier=0.1, min_depth=8, tf_padding=False, hidden_size=102)
    config = VisionTextDualEncoderConfig.from_vision_text_configs(vision, _text_config(16), projection_dim=8)
    model = _seeded(
        lambda: VisionTextDualEncoderModel(config, _lively(MobileNetV1Model(vision)), CLIPTextModel(_text_config(16))),
        2,
    )
    model.half().save_pretrained(folder)
    tiny._tokenizer(folder)
    _preprocessing(folder, size={"height": 32, "width": 32}, mean=[1.0] * 3, std=[0.5] * 3)
    return folder


def dino_transformer(folder: Path) -> Path:
    """As facebook's ViT-S/16: a `ViTModel`, whose pooler means nothing."""
    from transformers import ViTConfig, ViTModel

    config = ViTConfig(
        image_size=16, patch_size=8, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2
    )
    _seeded(lambda: ViTModel(config, add_pooling_layer=False), 3).save_pretrained(folder)
    _preprocessing(folder, size=16, mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225])
    return folder


def _resnet_config(**options):
    from transformers import ResNetConfig

    return ResNetConfig(embedding_size=8, hidden_sizes=[8, 8], depths=[1, 1], layer_type="basic", **options)


def dino_convolutional(folder: Path) -> Path:
    from transformers import ResNetModel

    _seeded(lambda: ResNetModel(_resnet_config()), 4).half().save_pretrained(folder)
    _preprocessing(folder, size={"height": 16, "width": 16}, mean=[1.0] * 3, std=[0.5] * 3)
    return folder


def classifier(folder: Path, classes: tuple[str, ...] = CLASSES) -> Path:
    from transformers import ResNetForImageClassification

    names = dict(enumerate(classes))
    config = _resnet_config(id2label=names, label2id={name: i for i, name in names.items()})
    _seeded(lambda: ResNetForImageClassification(config), 5).half().save_pretrained(folder)
    _preprocessing(folder, size={"height": 16, "width": 16}, mean=[1.0] * 3, std=[0.5] * 3)
    return folder


def perceptual(folder: Path) -> Path:
    from safetensors.torch import save_file

    dino_convolutional(folder)
    weights = {f"layer.{i}": torch.rand(8, generator=torch.Generator().manual_seed(i)) for i in range(3)}
    save_file(weights, folder / "weights.safetensors")
    return folder


def world(folder: Path, *, styles: tuple[str, ...] = CLASSES) -> Path:
    """The judges' part of a world's folder."""
    parts = {
        "clip": dual_encoder,
        "dino": dino_convolutional,
        "lpips": perceptual,
        "object": classifier,
        "style": lambda at: classifier(at, styles),
    }
    for part, build in parts.items():
        (folder / "judges" / part).mkdir(parents=True)
        build(folder / "judges" / part)
    temperatures = {"object": {"temperature": 0.5}, "style": {"temperature": 2.0}}
    (folder / "judges" / "judges.json").write_text(json.dumps(temperatures))
    return folder
