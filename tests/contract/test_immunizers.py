"""What every immunizer promises, on every tiny family; and that IMMA is Algorithm 1."""

import dataclasses
import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import get_args

import pytest
import torch

from immunity import Delta, Examples, ImmunityError, load
from immunity.adaptations import Attached, Batch, Batches, Lora, denoising_loss
from immunity.deltas import hash_tensors
from immunity.immunizers import AnyImmunizer, AscentOnly, Imma, RandomPerturbation
from immunity.immunizers.retention import RetentionKind
from immunity.optimize import Journal

from tests import tiny

ATTACK = Lora(lr=1e-2, batch=2)
IMMUNIZERS: dict[str, AnyImmunizer] = {
    "imma": Imma(outer_lr=1e-3, steps=4),
    "imma-text-kv": Imma(outer_lr=1e-3, steps=5, group="text_kv", inner=2, reinitialise_every=1),
    "imma-all": Imma(outer_lr=1e-3, steps=2, group="all", outer_batch=1),
    "imma-retention": Imma(
        outer_lr=1e-3, steps=2, retention="prediction", retention_prompts=("cat",), retention_pictures=2
    ),
    "ascent-only": AscentOnly(lr=1e-3, steps=2),
    "random-perturbation": RandomPerturbation(),
}
FIRST = tiny.FAMILIES[:1]


@pytest.fixture(params=IMMUNIZERS)
def immunizer(request) -> AnyImmunizer:
    return IMMUNIZERS[request.param]


@pytest.fixture
def examples(model) -> Examples:
    return pictures(model)


def pictures(model) -> Examples:
    images = torch.rand(6, 3, model.resolution, model.resolution, generator=torch.Generator().manual_seed(0))
    return Examples(images, ("image of church",) * 6, tuple("abcdef"))


def loss_of(model, examples) -> float:
    batches, generator = Batches.encode(model, examples), torch.Generator().manual_seed(9)
    with torch.no_grad():
        return denoising_loss(model, batches.draw(24, 0, seed=0, generator=generator), generator).item()


def test_every_immunizer_is_here():
    assert {type(immunizer) for immunizer in IMMUNIZERS.values()} == set(get_args(AnyImmunizer))


def test_it_changes_only_its_part_and_leaves_the_model_as_it_was(model, examples, immunizer):
    before, randomness = hash_tensors(model.parameters("all")), torch.random.get_rng_state()
    delta = immunizer(model, examples, ATTACK, seed=0)
    assert hash_tensors(model.parameters("all")) == before
    assert torch.equal(torch.random.get_rng_state(), randomness), "the global generator is not touched"
    assert not any(value.requires_grad or value.grad is not None for value in model.parameters("all").values())
    assert set(delta.tensors) == set(model.parameters(immunizer.group))
    assert all(value.isfinite().all() for value in delta.tensors.values())
    parameters = model.parameters("all")
    moved = [name for name, value in delta.tensors.items() if not torch.equal(value, parameters[name])]
    # Biases of keys have no effect, nor has the text encoder's last unused position: those get no gradient.
    assert len(moved) > 0.9 * len(delta.tensors)
    assert immunizer(model, examples, ATTACK, seed=0).hash == delta.hash
    assert delta.provenance.method == type(immunizer).__name__


@pytest.mark.parametrize("family", FIRST)
def test_another_seed_another_delta(model, examples, immunizer):
    assert immunizer(model, examples, ATTACK, seed=0).hash != immunizer(model, examples, ATTACK, seed=1).hash


@pytest.mark.parametrize("family", FIRST)
@pytest.mark.parametrize(
    "none",
    [
        Imma(outer_lr=0.0, steps=4),
        Imma(steps=0),
        AscentOnly(lr=0.0, steps=2),
        AscentOnly(steps=0),
        RandomPerturbation(norm=0.0),
    ],
)
def test_without_strength_it_is_the_identity(model, examples, none):
    delta = none(model, examples, ATTACK, seed=0)
    assert all(torch.equal(value, model.parameters("all")[name]) for name, value in delta.tensors.items())


@dataclass
class Call:
    """One evaluation of the adaptation's loss."""

    level: str
    batch: Batch
    generator: torch.Generator
    """As it was at the call."""
    phi: dict[str, torch.Tensor]


@dataclass(frozen=True, kw_only=True)
class Watched(Lora):
    """LoRA that remembers who asked what of it, and has a prior term, as DreamBooth has."""

    calls: list[Call] = field(default_factory=list, compare=False)
    attached: list[Attached] = field(default_factory=list, compare=False)
    begun: list[str] = field(default_factory=list, compare=False)

    @contextmanager
    def attach(self, model, *, seed):
        with super().attach(model, seed=seed) as phi:
            self.attached.append(phi)
            self.begun.append(hash_tensors(phi.state_dict()))
            yield phi

    def draw(self, batches, number, *, seed, generator):
        batch = super().draw(batches, number, seed=seed, generator=generator)
        return dataclasses.replace(batch, prior=super().draw(batches, number, seed=seed + 1, generator=generator))

    def loss(self, model, batch, generator):
        phi = self.attached[-1]
        thawed = {value.requires_grad for value in phi.parameters()}
        theta = {name for name, value in model.parameters("all").items() if value.requires_grad}
        assert len(thawed) == 1
        assert thawed != {bool(theta)}, "one level at a time requires gradients"
        assert theta in (set(), set(model.parameters("attention")))
        copy = torch.Generator()
        copy.set_state(generator.get_state())
        self.calls.append(Call("outer" if theta else "inner", batch, copy, phi.state_dict()))
        return self.again(model, batch, generator)

    def again(self, model, batch, generator):
        prior = 0.0 if batch.prior is None else denoising_loss(model, batch.prior, generator)
        return denoising_loss(model, batch, generator) + prior


def watch(model, examples, imma: Imma, **journal) -> Watched:
    """Runs `imma` against LoRA that remembers. Its memory must stay out of the provenance."""
    attack = Watched(lr=1e-2, batch=2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("immunity.immunizers.imma.described", lambda _: {})
        imma(model, examples, attack, seed=0, journal=Journal(**journal))
    return attack


@pytest.mark.parametrize("family", FIRST)
def test_levels_take_turns_over_the_whole_run(model, examples):
    attack = watch(model, examples, Imma(steps=8, inner=2, outer=1))
    assert [call.level for call in attack.calls] == ["inner", "inner", "outer"] * 2 + ["inner", "inner"]
    # Six pictures in batches of two: an alternation counted anew each epoch would begin again after three.
    attack = watch(model, examples, Imma(steps=8))
    assert [call.level for call in attack.calls] == ["inner", "outer"] * 4


@pytest.mark.parametrize("family", FIRST)
def test_levels_see_their_own_pictures_noise_and_times_and_the_prior_is_the_attackers(model, examples):
    attack = watch(model, examples, Imma(steps=12))
    calls = {level: [call for call in attack.calls if call.level == level] for level in ("inner", "outer")}
    assert all(call.batch.prior is not None for call in calls["inner"])
    assert all(call.batch.prior is None for call in calls["outer"])
    states = {bytes(call.generator.get_state().numpy()) for call in attack.calls}
    assert len(states) == 12
    pairs = zip(calls["inner"], calls["outer"], strict=True)
    assert not all(torch.allclose(a.batch.latents, b.batch.latents, atol=0.05) for a, b in pairs)


@pytest.mark.parametrize("family", FIRST)
def test_phi_carries_over_and_only_the_inner_level_moves_it(model, examples):
    attack = watch(model, examples, Imma(steps=6))
    assert len(attack.attached) == 1
    states = [hash_tensors(call.phi) for call in attack.calls]
    for inner, outer, following in zip(states[0::2], states[1::2], states[2::2], strict=False):
        assert inner != outer, "the inner step moved φ"
        assert outer == following, "the outer step did not"


@pytest.mark.parametrize("family", FIRST)
def test_reinitialisation_begins_phi_and_its_moments_anew(model, examples):
    attack = watch(model, examples, Imma(steps=8, reinitialise_every=2))
    assert len(attack.attached) == 2
    assert attack.begun[0] != attack.begun[1], "drawn anew, not the same again"
    states = [hash_tensors(call.phi) for call in attack.calls]
    assert states[0] == attack.begun[0]
    assert states[4] == attack.begun[1]
    # Adam's first step is the sign of the gradient times the learning rate; with old moments it would not be.
    for first, second in ((0, 1), (4, 5)):
        up = [name for name in attack.calls[0].phi if "lora_B" in name]
        steps = torch.cat([(attack.calls[second].phi[name] - attack.calls[first].phi[name]).flatten() for name in up])
        steps = steps[steps != 0].abs()
        assert len(steps) > 100
        assert (steps.median() - 1e-2).abs() < 1e-4


@pytest.mark.parametrize("family", FIRST)
def test_an_inner_step_descends_and_an_outer_step_ascends(model, examples):
    """Each on its own loss: same pictures, noise and times, before and after the step."""
    found = []

    def look(_done, result):
        call = attack.calls[-1]
        generator = torch.Generator()
        generator.set_state(call.generator.get_state())
        with torch.no_grad():
            after = attack.again(model, call.batch, generator).item()
        found.append((call.level, after - result.loss))

    attack = Watched(lr=1e-4, batch=2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("immunity.immunizers.imma.described", lambda _: {})
        Imma(outer_lr=1e-4, steps=6)(model, examples, attack, seed=0, journal=Journal(on_step=look))
    assert [level for level, _ in found] == ["inner", "outer"] * 3
    assert all(change < 0 for level, change in found if level == "inner")
    assert all(change > 0 for level, change in found if level == "outer")


@pytest.mark.parametrize("family", FIRST)
@pytest.mark.parametrize(
    "method", [Imma(group="denoiser", outer_lr=3e-3, steps=20), AscentOnly(group="denoiser", lr=3e-3, steps=10)]
)
def test_it_raises_the_loss_that_the_attack_must_lower(model, examples, tmp_path, method):
    """The control: a random change, of the same norm in every tensor, does not."""
    before = loss_of(model, examples)
    delta = method(model, examples, ATTACK, seed=0)
    delta.save(tmp_path / "delta.safetensors")
    random = RandomPerturbation(like=str(tmp_path / "delta.safetensors"))(model, examples, ATTACK, seed=0)
    with delta.applied(model):
        assert loss_of(model, examples) > 1.5 * before
    with random.applied(model):
        assert loss_of(model, examples) < 1.1 * before


@pytest.mark.parametrize("family", FIRST)
def test_a_price_on_other_prompts_keeps_them_nearer(model, examples):
    generator = torch.Generator().manual_seed(3)
    noisy = torch.randn(8, *model.latent_shape, generator=generator)
    times, others = model.sample_times(8, generator), model.encode_prompts(["cat"] * 8)

    def predicted() -> torch.Tensor:
        with torch.no_grad():
            return model.predict(noisy, times, others)

    before, drift = predicted(), {}
    for kind in get_args(RetentionKind):
        price = {"retention_weight": 20.0, "retention_prompts": ("cat",), "retention_pictures": 4}
        imma = Imma(outer_lr=3e-3, steps=20, retention=kind, **({} if kind == "none" else price))
        with imma(model, examples, ATTACK, seed=0).applied(model):
            drift[kind] = (predicted() - before).square().mean().item()
    assert drift["prediction"] < 0.5 * drift["none"]
    assert drift["denoising"] != drift["none"]


@pytest.mark.parametrize("family", FIRST)
def test_a_random_perturbation_has_the_norm_that_was_asked(model, examples, tmp_path):
    def norms(delta: Delta) -> dict[str, float]:
        parameters = model.parameters("all")
        return {
            name: (value.double() - parameters[name].double()).norm().item() for name, value in delta.tensors.items()
        }

    whole = norms(RandomPerturbation(norm=0.7)(model, examples, ATTACK, seed=0))
    assert sum(value**2 for value in whole.values()) ** 0.5 == pytest.approx(0.7, rel=1e-4)

    pattern = IMMUNIZERS["imma"](model, examples, ATTACK, seed=0)
    pattern.save(tmp_path / "imma.safetensors")
    alike = RandomPerturbation(like=str(tmp_path / "imma.safetensors"))(model, examples, ATTACK, seed=0)
    assert norms(alike) == pytest.approx(norms(pattern), rel=1e-3, abs=1e-6)
    assert alike.provenance.config["like"] == "imma.safetensors"
    assert alike.provenance.config["inputs"]["like"] == pattern.hash
    with pattern.applied(model), pytest.raises(ImmunityError, match="carries the deltas"):
        RandomPerturbation(like=str(tmp_path / "imma.safetensors"))(model, examples, ATTACK, seed=0)


class KilledError(Exception):
    pass


@pytest.mark.parametrize("family", FIRST)
@pytest.mark.parametrize("method", [Imma(outer_lr=1e-3, steps=9, inner=2, reinitialise_every=2), AscentOnly(steps=9)])
def test_an_interrupted_run_resumes_to_the_same_bits(model, examples, tmp_path, method):
    def kill(done, _result):
        if done == 8:
            raise KilledError

    whole, before = method(model, examples, ATTACK, seed=0), hash_tensors(model.parameters("all"))
    with pytest.raises(KilledError):
        method(model, examples, ATTACK, seed=0, journal=Journal(folder=tmp_path, every=7, on_step=kill))
    assert hash_tensors(model.parameters("all")) == before
    steps: list[int] = []
    journal = Journal(folder=tmp_path, every=7, on_step=lambda done, _: steps.append(done))
    assert method(model, examples, ATTACK, seed=0, journal=journal).hash == whole.hash
    assert steps == [8, 9]
    with pytest.raises(ImmunityError, match="the checkpoint of this run"):
        method(model, examples, ATTACK, seed=1, journal=journal)


RUN = """
import sys, time
from pathlib import Path
from immunity import load
from immunity.optimize import Journal
from tests.contract.test_immunizers import KILLABLE, ATTACK, pictures

folder, work, out = map(Path, sys.argv[1:])
model = load(folder)
hurry = out.with_name("hurry")


def pause(done, result):
    if not hurry.exists():  # slow enough to be killed in the middle
        time.sleep(0.05)


journal = Journal(folder=work, every=2, on_step=pause)
KILLABLE(model, pictures(model), ATTACK, seed=0, journal=journal).save(out, force=True)
"""
KILLABLE = Imma(outer_lr=1e-3, steps=40, reinitialise_every=7)


@pytest.mark.parametrize("family", FIRST)
def test_a_run_that_is_killed_resumes_to_the_same_bits(model, examples, folder, tmp_path):
    """kill -9, from outside, at whatever step it happens to be."""
    root = Path(__file__).parents[2]
    command = [sys.executable, "-c", RUN, str(folder), str(tmp_path / "work"), str(tmp_path / "out.safetensors")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(root), str(root / "src")])}
    checkpoint = tmp_path / "work" / "Imma.safetensors"
    running = subprocess.Popen(command, env=environment)
    try:
        deadline = time.monotonic() + 240
        while not checkpoint.exists():
            assert running.poll() is None, "it ended before its first checkpoint"
            assert time.monotonic() < deadline
            time.sleep(0.02)
    finally:
        running.send_signal(signal.SIGKILL)
        assert running.wait() == -signal.SIGKILL
    assert not (tmp_path / "out.safetensors").exists()
    (tmp_path / "hurry").touch()
    subprocess.run(command, env=environment, check=True, timeout=240)
    resumed = Delta.load(tmp_path / "out.safetensors")
    assert resumed.hash == KILLABLE(model, examples, ATTACK, seed=0).hash


@pytest.mark.parametrize("family", FIRST)
def test_half_precision_weights_move(folder):
    model = load(folder, dtype="bfloat16")
    delta = Imma(outer_lr=1e-4, steps=8)(model, pictures(model), ATTACK, seed=0)
    assert all(value.dtype == torch.bfloat16 for value in delta.tensors.values())
    assert any(not torch.equal(value, model.parameters("all")[name]) for name, value in delta.tensors.items())


@pytest.mark.parametrize("family", FIRST)
@pytest.mark.parametrize("norm", [0.0, 0.02, 0.5])
def test_random_noise_has_its_norm_in_half_precision_too(folder, norm):
    model = load(folder, dtype="bfloat16")
    delta = RandomPerturbation(norm=norm)(model, pictures(model), ATTACK, seed=0)
    moved = [(value.double() - model.parameters("all")[name].double()).norm() for name, value in delta.tensors.items()]
    assert torch.stack(moved).norm() == pytest.approx(norm, rel=0.05)


@pytest.mark.parametrize("family", FIRST)
def test_a_group_that_the_model_lacks_is_refused(model, examples):
    for method in (Imma(group="biases"), AscentOnly(group="biases"), RandomPerturbation(group="biases")):
        with pytest.raises(ImmunityError, match="attention, cross_attention"):
            method(model, examples, ATTACK, seed=0)


@pytest.mark.parametrize(
    ("make", "complaint"),
    [
        (lambda: Imma(inner=0), "inner of at least 1"),
        (lambda: Imma(outer=0), "outer of at least 1"),
        (lambda: Imma(outer_lr=-1.0), "outer_lr of at least 0"),
        (lambda: Imma(inner_lr=-1.0), "inner_lr of at least 0"),
        (lambda: Imma(outer_batch=0), "outer_batch of at least 1"),
        (lambda: Imma(clip=-1.0), "clip above 0"),
        (lambda: Imma(retention="prediction"), "prompts to retain"),
        (lambda: Imma(retention_prompts=("cat",)), "a kind of retention for the prompts to retain"),
        (lambda: Imma(retention="memory"), "retention among none, denoising, prediction"),
        (lambda: AscentOnly(steps=-1), "steps of at least 0"),
        (lambda: AscentOnly(batch=0), "batch of at least 1"),
        (lambda: RandomPerturbation(norm=-1.0), "norm of at least 0"),
    ],
)
def test_bad_settings_are_refused(make, complaint):
    with pytest.raises(ImmunityError, match=complaint):
        make()
