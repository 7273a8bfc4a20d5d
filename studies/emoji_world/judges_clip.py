"""The image–text judge, which plays CLIP's part: trained by contrast on captions of pictures of the eight known styles.

A vision transformer learns too slowly from so few pictures on two cores, so the vision tower is convolutional:
transformers' ``VisionTextDualEncoderModel`` with a ``ConvNextModel`` and a ``CLIPTextModel``. (Of the towers that this
class takes, ConvNext learned fastest; MobileNets, EfficientNet and LeViT hardly learned in the same time.) It looks at
48 px.

Which caption fits which picture of a batch is known exactly, since a caption says an object, a style or both: all
that fit are positives (one softmax with several targets), so two churches are never pushed apart by the caption "a
church". Two linear heads on the vision tower, for the object and for the style that a caption names, speed its
training up and are thrown away at its end.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import augment
import captions
import judges
import numpy as np
import torch
import torch.nn.functional as F
import training
from data import World
from torch import Tensor, nn

WIDTH = 128
PIXELS = 48
# Pictures for captions that name a style keep their colours and their drawing; those for objects alone are also
# recoloured and redrawn.
SHAPES = augment.Recipe(rotate=12, scale=(0.75, 1.15), stretch=0.15, shear=0.1, shift=0.08, elastic=0.03)
STRONG_SHARE = 0.6
HEADS = 1.0  # weight of the two heads' cross-entropy beside the contrast


def text_config(tokenizer: Any) -> Any:
    from transformers import CLIPTextConfig

    return CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=WIDTH,
        intermediate_size=2 * WIDTH,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=captions.MAX_TOKENS,
        projection_dim=WIDTH,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def build(tokenizer: Any) -> nn.Module:
    from transformers import (
        CLIPTextModel,
        ConvNextConfig,
        ConvNextModel,
        VisionTextDualEncoderConfig,
        VisionTextDualEncoderModel,
    )

    # The dual encoder asks its vision tower for ``hidden_size``, which ConvNext's configuration leaves out.
    vision = ConvNextConfig(
        num_stages=3,
        hidden_sizes=[48, 96, 192],
        depths=[1, 1, 2],
        layer_scale_init_value=1.0,
        image_size=PIXELS,
        hidden_size=192,
    )
    tower = ConvNextModel(vision)
    # Its own initial weights (0.02 everywhere) are for 300 epochs; scaled to a layer's inputs they learn faster.
    for layer in tower.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            nn.init.normal_(layer.weight, std=layer.weight[0].numel() ** -0.5)
    config = VisionTextDualEncoderConfig.from_vision_text_configs(vision, text_config(tokenizer), projection_dim=WIDTH)
    model = VisionTextDualEncoderModel(config, tower, CLIPTextModel(text_config(tokenizer)))
    return model.to(memory_format=torch.channels_last)


def fits(said: list[tuple[str | None, str | None]], shown: list[tuple[str, str]]) -> Tensor:
    """bool [captions, pictures]: is all that a caption says (object, style; None where silent) true of a picture?"""
    return torch.tensor([[o in (None, name) and s in (None, style) for name, style in shown] for o, s in said])


def contrast(texts: Tensor, images: Tensor, scale: Tensor, positive: Tensor) -> Tensor:
    """Softmax both ways with uniform targets over all that fits; features of unit length [n, d]."""
    logits = scale * texts @ images.T
    target = positive.float()
    forward = -(target / target.sum(1, keepdim=True) * logits.log_softmax(1)).sum(1).mean()
    backward = -(target / target.sum(0, keepdim=True) * logits.log_softmax(0)).sum(0).mean()
    return (forward + backward) / 2


class Judge:
    """The model with its tokenizer, and how it is asked."""

    def __init__(self, model: nn.Module, tokenizer: Any) -> None:
        self.model, self.tokenizer = model, tokenizer

    def texts(self, texts: list[str]) -> Tensor:
        tokens = self.tokenizer(
            texts, padding=True, max_length=captions.MAX_TOKENS, truncation=True, return_tensors="pt"
        )
        features = self.model.get_text_features(input_ids=tokens.input_ids, attention_mask=tokens.attention_mask)
        return F.normalize(_pooled(features), dim=1)

    def seen(self, ink: Tensor) -> Tensor:
        """The vision tower's own features, before they are projected."""
        return self.model.vision_model(pixel_values=judges.normalised(ink)).pooler_output

    def images(self, ink: Tensor) -> Tensor:
        return self.projected(self.seen(ink))

    def projected(self, seen: Tensor) -> Tensor:
        return F.normalize(self.model.visual_projection(seen), dim=1)

    @torch.no_grad()
    def guesses(self, ink: Tensor, prompts: list[str]) -> Tensor:
        """The index of the prompt nearest to each picture."""
        self.model.eval()
        texts = self.texts(prompts)
        return torch.cat([(self.images(part) @ texts.T).argmax(1) for part in ink.split(128)])


def _pooled(output: Any) -> Tensor:
    return output if isinstance(output, Tensor) else output.pooler_output


def draw_captions(
    rows: list[Any], strong: bool, generator: torch.Generator
) -> tuple[list[str], list[tuple[str | None, str | None]]]:
    """A caption for each picture, and what it says of object and style."""
    forms = captions.OBJECT_ONLY if strong else captions.BOTH + captions.OBJECT_ONLY[:2] + captions.STYLE_ONLY
    picked = [forms[i] for i in torch.randint(len(forms), (len(rows),), generator=generator).tolist()]
    texts = [captions.fill(form, r.object, r.style) for form, r in zip(picked, rows, strict=True)]
    said = [
        (r.object if form not in captions.STYLE_ONLY else None, r.style if "{style}" in form else None)
        for form, r in zip(picked, rows, strict=True)
    ]
    return texts, said


def train_clip(work: Path, *, steps: int, batch: int = 128, seed: int = 13) -> None:
    if judges.done(work, "clip"):
        return
    tokenizer = captions.train_tokenizer(judges.folder(work, "clip") / "tokenizer")
    torch.manual_seed(seed)
    model = build(tokenizer)
    report = _train(work, "clip", Judge(model, tokenizer), steps=steps, batch=batch, seed=seed)
    judges.save_model(model, judges.folder(work, "clip") / "model", pixels=PIXELS)
    tokenizer.save_pretrained(judges.folder(work, "clip") / "model")
    judges.write_report(work, "clip", report)


def _train(work: Path, name: str, judge: Judge, *, steps: int, batch: int, seed: int) -> dict[str, Any]:
    world, out = World.load(work), judges.folder(work, name)
    main, pool = world.where(splits=("trained", "held_out")), world.where(splits=("pool",))
    seen = np.concatenate([main, pool])
    pictures = (judges.ink(world.pictures[seen], PIXELS) * 255).round().byte()
    rows = [world.rows[i] for i in seen]
    classes = judges.objects_of(world, "trained", "held_out")
    prompts = [captions.fill("image of {a}", name, "") for name in classes]
    style_prompts = [captions.fill("an artwork in the style of {style}", classes[0], style) for style in judges.KNOWN]
    test, fold = (
        world.where(splits=("trained", "held_out"), styles=(judges.UNSEEN_STYLE,)),
        world.where(splits=("fold",)),
    )
    plan = training.Plan(
        steps=steps, rate=2e-3, weight_decay=0.05, decay=0.5, average=0.997, sample_every=300, seed=seed
    )
    model = judge.model
    names = {name: i for i, name in enumerate(sorted({r.object for r in rows}))}
    width = model.visual_projection.in_features
    heads = nn.ModuleDict({"object": nn.Linear(width, len(names)), "style": nn.Linear(width, len(judges.KNOWN))})
    run = training.Run({"clip": model, "heads": heads}, plan, out)
    own = batch * 2 // 3

    def loss(_: int, generator: torch.Generator) -> Tensor:
        model.train()
        strong = float(torch.rand((), generator=generator)) < STRONG_SHARE
        picked = torch.cat(
            [
                torch.randint(len(main), (own,), generator=generator),
                len(main) + torch.randint(max(len(pool), 1), (batch - own,), generator=generator),
            ]
        )
        picked = picked.clamp_max(len(seen) - 1)
        recipe = augment.STRONG if strong else SHAPES
        x = augment.augment(pictures[picked].float() / 255, PIXELS, recipe, generator)
        shown = [rows[i] for i in picked.tolist()]
        texts, said = draw_captions(shown, strong, generator)
        positive = fits(said, [(r.object, r.style) for r in shown])
        with training.lower_precision():
            features = judge.seen(x).float()
            said_features = judge.texts(texts).float()
        value = contrast(said_features, judge.projected(features), model.logit_scale.exp().clamp_max(100), positive)
        value = value + HEADS * F.cross_entropy(
            heads["object"](features), torch.tensor([names[r.object] for r in shown]), label_smoothing=0.1
        )
        if not strong:  # no recolouring: the style is still to be seen
            style = torch.tensor([judges.KNOWN.index(r.style) for r in shown])
            value = value + HEADS * F.cross_entropy(heads["style"](features), style)
        return value

    def accuracies() -> dict[str, float]:
        objects = judge.guesses(judges.ink(world.pictures[test], PIXELS), prompts)
        right = torch.tensor(
            [classes[g] == world.rows[i].object for g, i in zip(objects.tolist(), test, strict=True)]
        ).float()
        styles = judge.guesses(judges.ink(world.pictures[fold], PIXELS), style_prompts)
        style_right = torch.tensor(
            [judges.KNOWN[g] == world.rows[i].style for g, i in zip(styles.tolist(), fold, strict=True)]
        ).float()
        held = torch.tensor([world.rows[i].split == "held_out" for i in test])
        return {
            "zero_shot_top1": right.mean().item(),
            "zero_shot_top1_trained": right[~held].mean().item(),
            "zero_shot_top1_held_out": right[held].mean().item(),
            "zero_shot_style_top1_fold": style_right.mean().item(),
        }

    def sample(step: int) -> None:
        row = {"step": step, **{k: round(value, 4) for k, value in accuracies().items()}}
        print(f"{name} {row}", flush=True)
        with (out / "curve.jsonl").open("a") as file:
            file.write(json.dumps(row) + "\n")

    run.loop(loss, sample=sample, name=name)
    run.use_average()
    model.half().float()  # what the file will hold
    return {
        "classes": len(classes),
        "pixels": PIXELS,
        "prompt": "image of a {object}",
        "pictures": len(test),
        "test": f"style {judges.UNSEEN_STYLE!r} (no judge saw it), objects of trained and held_out; styles: the fold",
        **accuracies(),
        "trained_on": "captions of trained, held_out and pool objects in the eight known styles",
        "steps": steps,
        "batch": batch,
        "seed": seed,
    }
