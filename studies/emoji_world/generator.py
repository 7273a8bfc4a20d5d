"""Stage 4: the text-to-image generator, a plain ``StableDiffusionPipeline`` of Stable Diffusion 1.x's architecture.

Text encoder and denoiser learn together on the trained objects in the eight known styles: epsilon prediction, SD's
scaled-linear schedule, min-SNR weighting (Hang et al., 2023, gamma 5). The autoencoder's latents are computed once.

Two runs. The first draws its pictures independently and ends with objects that are right and vendors that are drawn too
alike: what a vendor changes is small beside the noise of a batch. In the second each batch shows the same objects by
several vendors under the *same* noise at the same time, so what is common to them cancels out of what tells them apart.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import captions
import torch
import training
import vocabulary as v
from autoencoder import to_tensor
from data import World
from torch import Tensor

UNCONDITIONAL = 0.1
SNR_CAP = 5.0
HANDS = 4  # vendors that draw the same object in a batch of the second run
STUDY_WEIGHT = 1.5  # the concepts of the published studies are drawn more often: what is shown must be drawn well


def build_text_encoder(tokenizer):
    from transformers import CLIPTextConfig, CLIPTextModel

    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=256,
            intermediate_size=1024,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=captions.MAX_TOKENS,
            projection_dim=256,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def build_unet():
    """16×16 latents; attention at 8×8 and 4×4 only: its backward at 16×16 costs more than it teaches (two levels of
    SD's four)."""
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(
        sample_size=16,
        in_channels=4,
        out_channels=4,
        block_out_channels=(64, 192, 256),
        layers_per_block=1,
        cross_attention_dim=256,
        attention_head_dim=(2, 2, 4),
        norm_num_groups=16,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    )


def build_scheduler():
    from diffusers import DDIMScheduler

    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )


def build_sampler(chain):
    """DPM-Solver++: in 8 steps the judges recognise what it draws as often as what DDIM draws in 25."""
    from diffusers import DPMSolverMultistepScheduler

    return DPMSolverMultistepScheduler.from_config(chain.config)


def tokenize(tokenizer, texts: list[str]) -> Tensor:
    return tokenizer(
        texts, padding="max_length", max_length=captions.MAX_TOKENS, truncation=True, return_tensors="pt"
    ).input_ids


def sampling_density(snr: Tensor) -> Tensor:
    """Draw a timestep more often where its weighted loss is larger; the loss is divided by this, so its expectation
    is unchanged."""
    density = 0.4 + 0.6 * torch.clamp(SNR_CAP / snr, max=1.0)
    return density / density.mean()


class Pictures:
    """The trained pictures as latents, with names, styles and drawing weights."""

    def __init__(self, world: World, vae, limit: int | None) -> None:
        indices = world.where(splits=("trained",))
        if limit is not None:
            names = sorted({world.rows[i].object for i in indices})[:limit]
            indices = [i for i in indices if world.rows[i].object in names]
        self.rows = [world.rows[i] for i in indices]
        with torch.no_grad():
            parts = [vae.encode(x).latent_dist for x in to_tensor(world.pictures[indices]).split(64)]
            self.mean = torch.cat([p.mean for p in parts]) * vae.config.scaling_factor
            self.std = torch.cat([p.std for p in parts]) * vae.config.scaling_factor
        study = {name.lower() for name in v.STUDY_OBJECTS}
        self.weights = torch.tensor([STUDY_WEIGHT if r.object in study else 1.0 for r in self.rows])
        by_object: dict[str, list[int]] = {}
        for i, row in enumerate(self.rows):
            by_object.setdefault(row.object, []).append(i)
        self.by_object = {name: torch.tensor(rows) for name, rows in by_object.items()}

    def draw(self, batch: int, generator: torch.Generator) -> Tensor:
        """int64 [batch]: rows drawn independently."""
        return torch.multinomial(self.weights, batch, replacement=True, generator=generator)

    def draw_hands(self, objects: int, generator: torch.Generator) -> list[Tensor]:
        """For each of ``objects`` objects, the rows of at most `HANDS` vendors' pictures of it."""
        first = self.draw(objects, generator).tolist()
        rows = [self.by_object[self.rows[i].object] for i in first]
        return [r[torch.randperm(len(r), generator=generator)[:HANDS]] for r in rows]


def train(
    work: Path,
    *,
    steps: tuple[int, int] = (8200, 3600),
    batch: int = 32,
    rates: tuple[float, float] = (6e-4, 5e-4),
    seed: int = 4,
    limit: int | None = None,
    sample_every: int = 500,
) -> None:
    from diffusers import AutoencoderKL, StableDiffusionPipeline
    from transformers import CLIPTokenizer

    out = work / "generator"
    if (out / "model" / "model_index.json").exists():
        return
    tokenizer = (
        CLIPTokenizer.from_pretrained(out / "tokenizer")
        if (out / "tokenizer" / "vocab.json").exists()
        else captions.train_tokenizer(out / "tokenizer")
    )
    torch.manual_seed(seed)  # the initial weights only
    text_encoder, unet, scheduler = build_text_encoder(tokenizer), build_unet(), build_scheduler()
    vae = (
        AutoencoderKL.from_pretrained(work / "autoencoder" / "model", torch_dtype=torch.float32)
        .eval()
        .requires_grad_(False)
    )
    data = Pictures(World.load(work), vae, limit)
    alphas = scheduler.alphas_cumprod
    snr = alphas / (1 - alphas)
    density = sampling_density(snr)
    weight = torch.clamp(SNR_CAP / snr, max=1.0) / density

    def loss_of(rows: Tensor, times: Tensor, noise: Tensor, texts: list[str], generator: torch.Generator) -> Tensor:
        latents = data.mean[rows] + data.std[rows] * torch.randn(data.mean[rows].shape, generator=generator)
        noisy = scheduler.add_noise(latents, noise, times)
        with training.lower_precision():
            conditioning = text_encoder(tokenize(tokenizer, texts)).last_hidden_state
            predicted = unet(noisy, times, conditioning).sample
        return (weight[times] * (predicted.float() - noise).square().mean((1, 2, 3))).mean()

    def loss(_: int, generator: torch.Generator) -> Tensor:
        picked = data.draw(batch, generator)
        texts = [
            captions.caption(data.rows[i].object, data.rows[i].style, generator, unconditional=UNCONDITIONAL)
            for i in picked.tolist()
        ]
        times = torch.multinomial(density, batch, replacement=True, generator=generator)
        noise = torch.randn(data.mean[picked].shape, generator=generator)
        return loss_of(picked, times, noise, texts, generator)

    def loss_of_hands(_: int, generator: torch.Generator) -> Tensor:
        groups = data.draw_hands(batch // HANDS, generator)
        own = torch.cat([torch.full((len(rows),), k) for k, rows in enumerate(groups)])
        picked = torch.cat(groups)
        forms = [captions.form(generator, naming_style=0.95) for _ in groups]
        texts = [
            captions.fill(forms[k], data.rows[i].object, data.rows[i].style)
            if float(torch.rand((), generator=generator)) >= UNCONDITIONAL
            else ""
            for k, i in zip(own.tolist(), picked.tolist(), strict=True)
        ]
        times = torch.multinomial(density, len(groups), replacement=True, generator=generator)
        noise = torch.randn((len(groups), *data.mean.shape[1:]), generator=generator)
        return loss_of(picked, times[own], noise[own], texts, generator)

    def pipeline() -> StableDiffusionPipeline:
        pipe = StableDiffusionPipeline(
            vae=vae,
            text_encoder=text_encoder,
            tokenizer=tokenizer,
            unet=unet,
            scheduler=build_sampler(scheduler),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
        pipe.set_progress_bar_config(disable=True)
        return pipe

    def sample(step: int, folder: Path) -> None:
        names = [n.lower() for n in (*v.STUDY_OBJECTS[:2], "cat face", "bus", "banana", "key")]
        prompts = [captions.fill(captions.BOTH[0], n, s.name) for n in names for s in v.STYLES]
        seeds = [torch.Generator().manual_seed(i) for i in range(len(prompts))]
        pictures = pipeline()(
            prompts, generator=seeds, num_inference_steps=12, guidance_scale=4.0, output_type="pt"
        ).images
        training.grid(pictures, len(v.STYLES), folder / "samples" / f"{step:06d}.png", scale=2)

    modules = {"unet": unet, "text_encoder": text_encoder}
    independent = training.Plan(
        steps=steps[0], rate=rates[0], warmup=200, seed=seed, sample_every=sample_every, average=0.998, decay=0.35
    )
    of_hands = training.Plan(
        steps=steps[1], rate=rates[1], warmup=100, seed=seed + 1, sample_every=sample_every, average=0.998
    )
    for plan, folder, objective in ((independent, out, loss), (of_hands, out / "hands", loss_of_hands)):
        run = training.Run(modules, plan, folder)
        run.loop(objective, sample=partial(sample, folder=folder), name=f"generator, {folder.name}")
        run.use_average()
    pipeline().to(torch.float16).save_pretrained(out / "model")


if __name__ == "__main__":
    import sys

    train(Path(sys.argv[1]), steps=(int(sys.argv[2]), int(sys.argv[3])))
