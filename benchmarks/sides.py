"""One operation, done in two ways: as this package does it, and as one would write it down first.

The straightforward way: float32, every picture and prompt encoded anew at each step, gradients computed and kept for
all weights, a frozen copy of the denoiser where one is needed, the sampler from the pipeline's own parts. Both call
`gate` after each step, which takes the time and waits for its turn.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

Gate = Callable[[], None]
PROMPT = "image of a church"
SAMPLER_STEPS = 12
"""Of ESD's sampler. The paper's 50 take four times as long on both sides."""
OPERATIONS = ("lora", "imma", "esd", "esd-shared", "sample")
"""In "esd-shared" our side lets four training steps share a run of the sampler: see `Esd.states_per_run`."""


def ours(
    operation: str,
    folder: Path,
    *,
    steps: int,
    batch: int,
    dtype: str,
    device: str,
    gate: Gate,
    concepts: int = 1,
    checkpointing: bool = False,
) -> None:
    from immunity import Concept, Esd, Examples, Imma, Journal, Lora, adapt, load

    model = load(folder, dtype=dtype, device=device)
    pictures = torch.rand(4, 3, model.resolution, model.resolution, generator=torch.Generator().manual_seed(0))
    examples = Examples(pictures, (PROMPT,) * 4, ("noise",) * 4)
    journal = Journal(on_step=lambda *_: gate())
    lora = Lora(steps=steps, batch=batch, checkpointing=checkpointing)
    if operation == "lora":
        adapt(model, examples, lora, seed=0, journal=journal)
    elif operation == "imma":
        Imma(steps=steps)(model, examples, lora, seed=0, journal=journal)
    elif operation in ("esd", "esd-shared"):
        shared = 4 if operation == "esd-shared" else 1
        esd = Esd(steps=steps, batch=batch, sampler_steps=SAMPLER_STEPS, states_per_run=shared)
        esd(model, [Concept(name=f"church {number}") for number in range(concepts)], seed=0, journal=journal)
    else:
        model.sample([PROMPT] * batch, seeds=range(batch), steps=steps, progress=lambda *_: gate())


class Plain:
    """The straightforward way's model, in parts."""

    def __init__(self, folder: Path, batch: int, device: str) -> None:
        from diffusers import StableDiffusionPipeline

        self.pipe = StableDiffusionPipeline.from_pretrained(folder, torch_dtype=torch.float32, safety_checker=None)
        self.pipe.to(device)
        self.unet, self.vae, self.text = self.pipe.unet, self.pipe.vae, self.pipe.text_encoder
        self.batch, self.device = batch, device
        side = self.unet.config.sample_size * self.pipe.vae_scale_factor
        self.pictures = torch.rand(batch, 3, side, side, generator=torch.Generator().manual_seed(0)).to(device)

    def all_gradients(self) -> None:
        for module in (self.unet, self.text):
            module.requires_grad_(True)

    def prompts(self, text: str) -> Tensor:
        tokens = self.pipe.tokenizer([text] * self.batch, padding="max_length", truncation=True, return_tensors="pt")
        return self.text(tokens.input_ids.to(self.device)).last_hidden_state

    def loss(self) -> Tensor:
        latents = self.vae.encode(2 * self.pictures - 1).latent_dist.sample() * self.vae.config.scaling_factor
        noise = torch.randn_like(latents)
        times = torch.randint(0, 1000, (self.batch,), device=self.device)
        noisy = self.pipe.scheduler.add_noise(latents, noise, times)
        return F.mse_loss(self.unet(noisy, times, self.prompts(PROMPT)).sample, noise)

    def add_lora(self) -> list[Tensor]:
        from peft import LoraConfig

        targets = ["to_q", "to_k", "to_v", "to_out.0"]
        self.unet.add_adapter(LoraConfig(r=4, lora_alpha=4, target_modules=targets))
        self.all_gradients()
        return [p for n, p in self.unet.named_parameters() if "lora_" in n]

    def update(self, loss: Tensor, optimizer: torch.optim.Optimizer, trained: list[Tensor]) -> None:
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        self.unet.zero_grad()
        self.text.zero_grad()


def plain(operation: str, folder: Path, *, steps: int, batch: int, device: str, gate: Gate) -> None:
    model = Plain(folder, batch, device)
    if operation == "lora":
        phi = model.add_lora()
        optimizer = torch.optim.AdamW(phi, lr=1e-4)
        for _ in range(steps):
            model.update(model.loss(), optimizer, phi)
            gate()
    elif operation == "imma":
        phi = model.add_lora()
        theta = [p for n, p in model.unet.named_parameters() if ".to_" in n and "lora_" not in n]
        levels: list[tuple[Any, list[Tensor], int]] = [
            (torch.optim.AdamW(phi, lr=1e-4), phi, 1),
            (torch.optim.AdamW(theta, lr=1e-5), theta, -1),
        ]
        for step in range(steps):
            optimizer, trained, sign = levels[step % 2]
            model.update(sign * model.loss(), optimizer, trained)
            gate()
    elif operation in ("esd", "esd-shared"):
        _plain_esd(model, steps, gate)
    else:
        model.pipe.set_progress_bar_config(disable=True)
        model.pipe(
            [PROMPT] * batch,
            num_inference_steps=steps,
            output_type="pt",
            callback_on_step_end=lambda _pipe, _step, _time, values: (gate(), values)[1],
        )


def _plain_esd(model: Plain, steps: int, gate: Gate) -> None:
    import copy

    frozen = copy.deepcopy(model.unet)
    model.all_gradients()
    trained = [p for n, p in model.unet.named_parameters() if "attn2" in n]
    optimizer = torch.optim.Adam(trained, lr=1e-5)
    generator = torch.Generator().manual_seed(0)
    scheduler = model.pipe.scheduler
    for _ in range(steps):
        with torch.no_grad():
            concept, nothing = model.prompts(PROMPT), model.prompts("")
            scheduler.set_timesteps(SAMPLER_STEPS)
            stop = int(torch.randint(SAMPLER_STEPS, (), generator=generator))
            x = torch.randn(model.batch, 4, *[model.unet.config.sample_size] * 2, generator=generator).to(model.device)
            for t in scheduler.timesteps[:stop]:
                out, towards = model.unet(x, t, nothing).sample, model.unet(x, t, concept).sample
                x = scheduler.step(out + 3.0 * (towards - out), t, x).prev_sample
            t = scheduler.timesteps[stop]
            unconditional, conditional = frozen(x, t, nothing).sample, frozen(x, t, concept).sample
            target = unconditional - (conditional - unconditional)
        F.mse_loss(model.unet(x, t, model.prompts(PROMPT)).sample, target).backward()
        optimizer.step()
        model.unet.zero_grad()
        model.text.zero_grad()
        gate()
