"""Stage 4: the text-to-image generator, a plain ``StableDiffusionPipeline`` of Stable Diffusion 1.x's architecture.

Text encoder and denoiser learn together on the trained objects in the eight known styles: epsilon prediction, SD's
scaled-linear schedule. The autoencoder's latents are computed once.

Four runs, each from the averaged weights of the one before:

1. pictures drawn independently, min-SNR weighting (Hang et al., 2023, gamma 5). It ends with objects that are right and
   vendors that are drawn too alike: what a vendor changes is small beside the noise of a batch.
2. each batch shows the same objects by several vendors under the *same* noise at the same time, so what is common to
   them cancels out of what tells them apart.
3. the same batches, with strong noise drawn more often and an error in the *picture* counting at every time. A vendor's
   colours and outlines are settled in the first sampling steps, where an error of the noise, however small, is a large
   one of the picture, and where min-SNR all but ignores it.
4. the same once more, from a lower rate: the third run was still learning where it ended.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import captions
import torch
import training
import vocabulary as v
from autoencoder import to_tensor
from data import World
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

DrawTimes = Callable[[int, torch.Generator], Tensor]
UNCONDITIONAL = 0.1
SNR_CAP = 5.0
PICTURE_FLOOR = 0.5
HANDS = 4  # vendors that draw the same object in a batch of all runs but the first
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


@dataclass(frozen=True)
class Weighting:
    """How often a timestep is drawn, ``density``, and what its squared error of the noise counts, ``weight``; both
    [timesteps]. Dividing by the density leaves the expected loss as it is and lowers its variance."""

    density: Tensor
    weight: Tensor

    @classmethod
    def of(cls, density: Tensor, weight: Tensor) -> Weighting:
        density = density / density.mean()
        return cls(density, weight / density)

    @classmethod
    def of_noise(cls, snr: Tensor) -> Weighting:
        """Min-SNR for epsilon prediction."""
        weight = torch.clamp(SNR_CAP / snr, max=1.0)
        return cls.of(0.4 + 0.6 * weight, weight)

    @classmethod
    def of_pictures(cls, snr: Tensor) -> Weighting:
        """The picture's squared error is the noise's over the signal-to-noise ratio; it counts `PICTURE_FLOOR` where
        nothing but noise is left, more where less noise is, up to min-SNR's cap."""
        return cls.of(1.0 + 2.5 / (1.0 + snr), torch.clamp(snr + PICTURE_FLOOR, max=SNR_CAP) / snr)

    def times(self, count: int, generator: torch.Generator) -> Tensor:
        """int64 [count], drawn independently."""
        return torch.multinomial(self.density, count, replacement=True, generator=generator)

    def spread_times(self, count: int, generator: torch.Generator) -> Tensor:
        """int64 [count], one from each of ``count`` equally likely ranges, in random order: a batch of few times then
        always holds weak and strong noise."""
        shares = (self.density / self.density.sum()).cumsum(0)
        wanted = (torch.arange(count) + torch.rand(count, generator=generator)) / count
        times = torch.searchsorted(shares, wanted).clamp(max=len(shares) - 1)
        return times[torch.randperm(count, generator=generator)]


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


class Lesson:
    """The modules that learn, and the loss of each run."""

    def __init__(self, tokenizer, vae, world: World, *, batch: int, limit: int | None) -> None:
        self.tokenizer, self.vae, self.batch = tokenizer, vae, batch
        self.text_encoder, self.unet, self.scheduler = build_text_encoder(tokenizer), build_unet(), build_scheduler()
        self.data = Pictures(world, vae, limit)
        snr = self.scheduler.alphas_cumprod / (1 - self.scheduler.alphas_cumprod)
        self.of_noise, self.of_pictures = Weighting.of_noise(snr), Weighting.of_pictures(snr)

    def _loss(
        self, rows: Tensor, times: Tensor, noise: Tensor, texts: list[str], weight: Tensor, generator: torch.Generator
    ) -> Tensor:
        mean, std = self.data.mean[rows], self.data.std[rows]
        noisy = self.scheduler.add_noise(mean + std * torch.randn(mean.shape, generator=generator), noise, times)
        # PyTorch's fused attention is the slower one here: its backward pass on a CPU is for longer sequences.
        with training.lower_precision(), sdpa_kernel(SDPBackend.MATH):
            conditioning = self.text_encoder(tokenize(self.tokenizer, texts)).last_hidden_state
            predicted = self.unet(noisy, times, conditioning).sample
        return (weight[times] * (predicted.float() - noise).square().mean((1, 2, 3))).mean()

    def independent(self, _: int, generator: torch.Generator) -> Tensor:
        """The first run's loss."""
        rows = self.data.draw(self.batch, generator)
        texts = [
            captions.caption(self.data.rows[i].object, self.data.rows[i].style, generator, unconditional=UNCONDITIONAL)
            for i in rows.tolist()
        ]
        times = self.of_noise.times(self.batch, generator)
        noise = torch.randn(self.data.mean[rows].shape, generator=generator)
        return self._loss(rows, times, noise, texts, self.of_noise.weight, generator)

    def _hands(self, draw_times: DrawTimes, weight: Tensor, generator: torch.Generator) -> Tensor:
        groups = self.data.draw_hands(self.batch // HANDS, generator)
        own = torch.cat([torch.full((len(rows),), k) for k, rows in enumerate(groups)])
        rows = torch.cat(groups)
        forms = [captions.form(generator, naming_style=0.95) for _ in groups]
        texts = [
            captions.fill(forms[k], self.data.rows[i].object, self.data.rows[i].style)
            if float(torch.rand((), generator=generator)) >= UNCONDITIONAL
            else ""
            for k, i in zip(own.tolist(), rows.tolist(), strict=True)
        ]
        times = draw_times(len(groups), generator)
        noise = torch.randn((len(groups), *self.data.mean.shape[1:]), generator=generator)
        return self._loss(rows, times[own], noise[own], texts, weight, generator)

    def hands(self, _: int, generator: torch.Generator) -> Tensor:
        """The second run's loss."""
        return self._hands(self.of_noise.times, self.of_noise.weight, generator)

    def pictures(self, _: int, generator: torch.Generator) -> Tensor:
        """The third and fourth runs' loss."""
        return self._hands(self.of_pictures.spread_times, self.of_pictures.weight, generator)

    def pipeline(self):
        from diffusers import StableDiffusionPipeline

        pipe = StableDiffusionPipeline(
            vae=self.vae,
            text_encoder=self.text_encoder,
            tokenizer=self.tokenizer,
            unet=self.unet,
            scheduler=build_sampler(self.scheduler),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
        pipe.set_progress_bar_config(disable=True)
        return pipe

    def sample(self, step: int, folder: Path) -> None:
        """A grid of six objects in all styles."""
        names = [n.lower() for n in (*v.STUDY_OBJECTS[:2], "cat face", "bus", "banana", "key")]
        prompts = [captions.fill(captions.BOTH[0], n, s.name) for n in names for s in v.STYLES]
        seeds = [torch.Generator().manual_seed(i) for i in range(len(prompts))]
        pictures = self.pipeline()(
            prompts, generator=seeds, num_inference_steps=12, guidance_scale=2.0, output_type="pt"
        ).images
        training.grid(pictures, len(v.STYLES), folder / "samples" / f"{step:06d}.png", scale=2)


def train(
    work: Path,
    *,
    steps: tuple[int, int, int, int] = (8200, 3600, 9500, 3000),
    batch: int = 32,
    seed: int = 4,
    limit: int | None = None,
    sample_every: int = 500,
) -> None:
    from diffusers import AutoencoderKL
    from transformers import CLIPTokenizer

    out = work / "generator"
    if (out / "model" / "model_index.json").exists():
        return
    tokenizer = (
        CLIPTokenizer.from_pretrained(out / "tokenizer")
        if (out / "tokenizer" / "vocab.json").exists()
        else captions.train_tokenizer(out / "tokenizer")
    )
    vae = AutoencoderKL.from_pretrained(work / "autoencoder" / "model", torch_dtype=torch.float32)
    torch.manual_seed(seed)  # the initial weights only
    lesson = Lesson(tokenizer, vae.eval().requires_grad_(False), World.load(work), batch=batch, limit=limit)
    plan = partial(training.Plan, sample_every=sample_every, average=0.998)
    runs = (
        (out, lesson.independent, plan(steps=steps[0], rate=6e-4, warmup=200, seed=seed, decay=0.35)),
        (out / "hands", lesson.hands, plan(steps=steps[1], rate=5e-4, seed=seed + 1)),
        (out / "pictures", lesson.pictures, plan(steps=steps[2], rate=5e-4, warmup=50, seed=seed + 7, decay=1.0)),
        (out / "again", lesson.pictures, plan(steps=steps[3], rate=4e-4, warmup=50, seed=seed + 8, decay=1.0)),
    )
    for folder, loss, schedule in runs:
        run = training.Run({"unet": lesson.unet, "text_encoder": lesson.text_encoder}, schedule, folder)
        run.loop(loss, sample=partial(lesson.sample, folder=folder), name=f"generator, {folder.name}")
        run.use_average()
    lesson.pipeline().to(torch.float16).save_pretrained(out / "model")


if __name__ == "__main__":
    import sys

    train(Path(sys.argv[1]), steps=tuple(map(int, sys.argv[2:6])))
