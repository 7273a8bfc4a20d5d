"""The training loop that all stages share: AdamW, a schedule, an average of the weights, and checkpoints that survive
a kill.

Every draw of step *k* comes from a generator seeded by (seed, k), so a resumed run continues exactly as an
uninterrupted one. Checkpoints are safetensors (weights, their average, both moments) with the step and the plan in the
header.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from tqdm import tqdm


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How long and how fast to train: ``decay`` is the last share of the steps, over which the rate falls linearly to
    2%."""

    steps: int
    rate: float
    warmup: int = 100
    decay: float = 0.4
    weight_decay: float = 0.01
    beta2: float = 0.99
    average: float = 0.999
    clip: float = 1.0
    seed: int = 0
    save_every_seconds: float = 120.0
    sample_every: int = 0

    def rate_at(self, step: int) -> float:
        left = (self.steps - step) / (self.decay * self.steps)
        return self.rate * min((step + 1) / self.warmup, 1.0) * max(min(left, 1.0), 0.02)


def lower_precision() -> torch.autocast:
    """bfloat16 for convolutions and matrix products where the processor has instructions for it (there it is up to
    three times faster), float32 elsewhere."""
    return torch.autocast("cpu", dtype=torch.bfloat16, enabled=torch.cpu.get_capabilities().get("avx512_bf16", False))


def generator_for(seed: int, step: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed * 1_000_003 + step)


class Run:
    """One stage's training state: the modules' parameters, their moving average, the optimizer, the step reached."""

    def __init__(self, modules: dict[str, nn.Module], plan: Plan, folder: Path) -> None:
        self.plan, self.folder, self.step = plan, folder, 0
        self.modules = modules
        self.parameters = {
            f"{m}.{n}": p for m, module in modules.items() for n, p in module.named_parameters() if p.requires_grad
        }
        decayed = [p for p in self.parameters.values() if p.ndim > 1]
        others = [p for p in self.parameters.values() if p.ndim <= 1]
        self.optimizer = torch.optim.AdamW(
            [{"params": decayed, "weight_decay": plan.weight_decay}, {"params": others, "weight_decay": 0.0}],
            lr=plan.rate,
            betas=(0.9, plan.beta2),
            fused=True,
        )
        self.average = {n: p.detach().clone() for n, p in self.parameters.items()}
        self._load()

    @property
    def _checkpoint(self) -> Path:
        return self.folder / "checkpoint.safetensors"

    def save(self) -> None:
        tensors: dict[str, Tensor] = {}
        for name, parameter in self.parameters.items():
            tensors[f"weight/{name}"], tensors[f"average/{name}"] = parameter.detach(), self.average[name]
            for moment, value in self.optimizer.state.get(parameter, {}).items():
                if moment in ("exp_avg", "exp_avg_sq"):
                    tensors[f"{moment}/{name}"] = value
        for module_name, module in self.modules.items():
            tensors |= {f"buffer/{module_name}.{n}": b for n, b in module.named_buffers()}
        self.folder.mkdir(parents=True, exist_ok=True)
        part = self._checkpoint.with_suffix(".part")
        save_file({n: t.contiguous().clone() for n, t in tensors.items()}, part, metadata=self._header())
        part.replace(self._checkpoint)

    def _header(self) -> dict[str, str]:
        return {"step": str(self.step), "plan": json.dumps(asdict(self.plan), sort_keys=True)}

    def _load(self) -> None:
        if not self._checkpoint.exists():
            return
        with safe_open(self._checkpoint, framework="pt") as file, torch.no_grad():
            if file.metadata().get("plan") != self._header()["plan"]:
                raise SystemExit(f"{self._checkpoint} is of another plan: remove its folder, or work in another one")
            self.step = int(file.metadata()["step"])
            present = set(file.keys())
            for name, parameter in self.parameters.items():
                parameter.copy_(file.get_tensor(f"weight/{name}"))
                self.average[name].copy_(file.get_tensor(f"average/{name}"))
                if f"exp_avg/{name}" in present:
                    self.optimizer.state[parameter] = {
                        "step": torch.tensor(float(self.step)),
                        "exp_avg": file.get_tensor(f"exp_avg/{name}"),
                        "exp_avg_sq": file.get_tensor(f"exp_avg_sq/{name}"),
                    }
            for module_name, module in self.modules.items():
                for n, b in module.named_buffers():
                    b.copy_(file.get_tensor(f"buffer/{module_name}.{n}"))

    def update(self, loss: Tensor) -> None:
        loss.backward()
        nn.utils.clip_grad_norm_(self.parameters.values(), self.plan.clip, foreach=True)
        for group in self.optimizer.param_groups:
            group["lr"] = self.plan.rate_at(self.step)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        # The average warms up with the run: a short run must not end on its initial weights.
        keep = min(self.plan.average, (self.step + 1) / (self.step + 10))
        torch._foreach_lerp_(list(self.average.values()), [p.detach() for p in self.parameters.values()], 1 - keep)
        self.step += 1

    def use_average(self) -> None:
        """Copy the averaged weights into the modules; training ends here."""
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                parameter.copy_(self.average[name])

    def loop(
        self,
        loss: Callable[[int, torch.Generator], Tensor],
        *,
        sample: Callable[[int], None] | None = None,
        name: str = "train",
    ) -> None:
        """Train to the plan's last step; ``loss(step, generator)`` draws its own batch. Losses go to
        ``losses.jsonl``."""
        self.folder.mkdir(parents=True, exist_ok=True)
        saved, recent = time.monotonic(), float("nan")
        with (
            tqdm(total=self.plan.steps, initial=self.step, desc=name, mininterval=10) as bar,
            (self.folder / "losses.jsonl").open("a") as log,
        ):
            while self.step < self.plan.steps:
                value = loss(self.step, generator_for(self.plan.seed, self.step))
                self.update(value)
                number = value.item()
                if not math.isfinite(number):
                    raise FloatingPointError(f"{name}: the loss is {number} at step {self.step}")
                recent = number if math.isnan(recent) else 0.98 * recent + 0.02 * number
                bar.update()
                if self.step % 50 == 0:
                    bar.set_postfix(loss=f"{recent:.4f}", refresh=False)
                    log.write(json.dumps({"step": self.step, "loss": recent, "time": time.time()}) + "\n")
                    log.flush()
                if sample is not None and self.plan.sample_every and self.step % self.plan.sample_every == 0:
                    self._sample(sample)
                if time.monotonic() - saved > self.plan.save_every_seconds:
                    self.save()
                    saved = time.monotonic()
        self.save()

    def _sample(self, sample: Callable[[int], None]) -> None:
        raw = {n: p.detach().clone() for n, p in self.parameters.items()}
        self.use_average()
        with torch.no_grad():
            sample(self.step)
            for n, p in self.parameters.items():
                p.copy_(raw[n])


def grid(images: Tensor, columns: int, path: Path, *, scale: int = 1) -> None:
    """Write pictures [n, 3, H, W] in [0, 1] as one PNG, ``columns`` to a row."""
    from PIL import Image

    n, _, height, width = images.shape
    rows = -(-n // columns)
    sheet = torch.ones(3, rows * (height + 2), columns * (width + 2))
    for i, image in enumerate(images):
        top, left = (i // columns) * (height + 2), (i % columns) * (width + 2)
        sheet[:, top : top + height, left : left + width] = image.clamp(0, 1)
    picture = Image.fromarray((sheet * 255).round().byte().permute(1, 2, 0).numpy())
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.resize((picture.width * scale, picture.height * scale), Image.Resampling.NEAREST).save(path)
