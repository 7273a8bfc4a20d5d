"""Erased Stable Diffusion: the model teaches itself to do without a concept."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from immunity import processes
from immunity.checks import at_least, one_of
from immunity.concepts import Concept
from immunity.deltas import Delta, Provenance
from immunity.errors import ImmunityError
from immunity.models import Conditioning, DiffusionModel, PartialSample
from immunity.models.original import Original
from immunity.optimize import Journal, check_trainable, derived_seed, fit
from immunity.optimizers import AdamW

Variant = Literal["x", "x-strict", "u", "u-strict", "full"]

_GROUPS: Mapping[Variant, str] = {
    "x": "cross_attention",
    "x-strict": "text_kv",
    "u": "non_cross_attention",
    "u-strict": "non_cross_attention_strict",
    "full": "denoiser",
}


@dataclass(frozen=True, kw_only=True)
class Esd:
    """ESD (Gandikota et al., ICCV 2023, arXiv 2303.07345): guided away from a concept by the model's own knowledge.

    ε_θ(x_t, c, t) is trained towards ε_0(x_t, ∅, t) − η (ε_0(x_t, c, t) − ε_0(x_t, ∅, t)), with ε_0 the frozen model
    and x_t from the trained model's own sampler, stopped part of the way. No pictures are needed.
    """

    variant: Variant = "x"
    """What is trained: "x" cross-attention (for concepts bound to their name; in joint attention the text's own
    projections), "x-strict" its keys and values alone, "u" everything but cross-attention (whatever the prompt),
    "u-strict" the same without the time embedding and the output layer, "full" the whole denoiser."""
    eta: float = 1.0
    """η, the strength: 0 makes the prompt mean nothing, 1 its negative, −1 leaves the model as it is."""
    lr: float = 1e-5
    """Learning rate of Adam, constant."""
    steps: int = 1000
    """Training steps."""
    batch: int = 1
    """Noisy pictures a step, all at one noise level."""
    sampler_steps: int = 50
    """Steps of the sampler that makes the noisy pictures."""
    guidance: float = 3.0
    """Guidance of that sampler, towards the concept."""
    states_per_run: int = 1
    """Training steps that share one run of the sampler, each at a noise level of its own. 1 is the paper's method. With
    k the sampler costs about k/2 times less, and a noisy picture may come from a model k − 1 steps older."""

    def __post_init__(self) -> None:
        one_of(self, "variant", get_args(Variant))
        at_least(self, 0, "lr", "steps", "guidance")
        at_least(self, -1, "eta")
        at_least(self, 1, "batch", "sampler_steps", "states_per_run")
        if self.states_per_run > self.sampler_steps:
            raise ImmunityError(
                expected=f"at most as many states a run as the sampler has steps ({self.sampler_steps})",
                got=str(self.states_per_run),
                remedy="fewer states_per_run or more sampler_steps",
            )

    def trained(self, model: DiffusionModel) -> dict[str, nn.Parameter]:
        """The parameters that the variant trains."""
        return model.parameters(_GROUPS[self.variant])

    def __call__(
        self, model: DiffusionModel, concepts: Sequence[Concept], *, seed: int, journal: Journal | None = None
    ) -> Delta:
        """The trained parameters; `model` is left as it was found.

        With several concepts, each noisy picture is of one of them, drawn with equal chance.
        """
        if not concepts:
            raise ImmunityError(expected="at least one concept", got="none", remedy='[Concept(name="church")]')
        check_trainable(model)
        journal = journal or Journal()
        provenance = Provenance.of(
            self, model, seed=seed, inputs={"concepts": [dataclasses.asdict(concept) for concept in concepts]}
        )
        trained = self.trained(model)
        prompts = [model.encode_prompts(concept.prompts).detach() for concept in concepts]
        states = model.states_on_path(self.sampler_steps)
        own = processes.rows(self.batch)
        nothing = model.unconditional().detach().repeat(self.batch)[own]
        c: Conditioning
        run: list[PartialSample] = []

        with Original(trained, at_hand=True) as original:

            def loss(step: int, generator: torch.Generator) -> Tensor:
                nonlocal c, run
                turn = step % self.states_per_run
                if turn == 0:
                    c = self._draw(prompts, generator)
                    latents = torch.randn(self.batch, *model.latent_shape, generator=generator)
                    # A generator a picture, for samplers that add noise: whoever computes it draws the same.
                    each = [
                        torch.Generator().manual_seed(derived_seed(seed, "sampler", step, row))
                        for row in range(self.batch)
                    ]
                    c, latents = c[own], latents[own]
                    stops = torch.randperm(states, generator=generator)[: self.states_per_run].tolist()
                    run = model.sample_path(
                        c,
                        nothing,
                        latents=latents,
                        steps=self.sampler_steps,
                        stops=stops,  # x_t from the model as it is now, at noise levels drawn without replacement
                        guidance=self.guidance,
                        generator=each[own],
                    )
                x_t, t = run[turn]
                with original.swapped_in():  # ε_0
                    both = model.predict(x_t.repeat(2, 1, 1, 1), t.repeat(2), Conditioning.cat([nothing, c]))
                    unconditional, conditional = both.chunk(2)
                    target = guided_away(unconditional, conditional, self.eta)
                return F.mse_loss(model.predict(x_t, t, c), target)

            fit(
                loss,
                trained.values(),
                steps=self.steps,
                seed=seed,
                optimizer=AdamW(lr=self.lr, weight_decay=0.0),
                clip=None,
                # A run of the sampler is in memory only: resume where a new one begins.
                checkpoint=journal.checkpoint(provenance, multiple_of=self.states_per_run),
                label=journal.label,
                on_step=journal.on_step,
            )
            return Delta.capture(trained, provenance)

    def _draw(self, prompts: Sequence[Conditioning], generator: torch.Generator) -> Conditioning:
        """One prompt for each picture of a batch: a concept, then one of its prompts."""
        rows = []
        for _ in range(self.batch):
            concept = prompts[int(torch.randint(len(prompts), (), generator=generator))]
            rows.append(concept[int(torch.randint(len(concept), (), generator=generator))])
        return Conditioning.cat(rows)


def guided_away(unconditional: Tensor, conditional: Tensor, eta: float) -> Tensor:
    """ESD's target, ε_∅ − η (ε_c − ε_∅).

    Its coefficients (1 + η, −η) sum to one, and ε, v and velocity are affine in one another at a fixed (x_t, t):
    applied to any of these outputs it is the same statement about the denoised picture.
    """
    return unconditional - eta * (conditional - unconditional)
