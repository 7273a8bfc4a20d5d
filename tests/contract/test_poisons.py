"""What every poison promises, on every tiny family; and that each climbs what its paper says."""

import dataclasses
from typing import get_args

import pytest
import torch

from immunity import Examples, ImmunityError, load
from immunity.adaptations import Lora, TextualInversion
from immunity.deltas import hash_tensors
from immunity.optimize import Journal
from immunity.poisons import Advdm, AnyPoison, Aspl, EncoderAttack, RandomNoise
from immunity.poisons import aspl as poisons_aspl

from tests import tiny

SURROGATE = Lora(lr=1e-2, batch=2)
POISONS: dict[str, AnyPoison] = {
    "advdm": Advdm(steps=3, step_size=2, batch=3),
    "aspl": Aspl(surrogate=SURROGATE, rounds=2, surrogate_steps=2, steps=2),
    "encoder-attack": EncoderAttack(steps=3, budget=8),
    "random-noise": RandomNoise(),
}
FIRST = tiny.FAMILIES[:1]


@pytest.fixture(params=POISONS)
def poison(request) -> AnyPoison:
    return POISONS[request.param]


def in_eight_bits(examples: Examples) -> Examples:
    return dataclasses.replace(examples, images=(examples.images * 255).round() / 255)


@pytest.fixture
def examples(examples) -> Examples:
    return in_eight_bits(examples)


def test_every_poison_is_here():
    assert {type(poison) for poison in POISONS.values()} == set(get_args(AnyPoison))


def test_pictures_stay_within_the_budget_and_the_model_as_it_was(model, examples, poison):
    before, randomness = hash_tensors(model.parameters("all")), torch.random.get_rng_state()
    made = poison(model, examples, seed=0)
    assert hash_tensors(model.parameters("all")) == before
    assert not model.adapted
    assert torch.equal(torch.random.get_rng_state(), randomness), "the global generator is not touched"
    assert not any(value.requires_grad or value.grad is not None for value in model.parameters("all").values())
    levels = (made.images - examples.images).abs() * 255
    assert 1 <= levels.max() <= poison.budget + 1e-3
    assert (levels > 0.5).float().mean() > 0.5
    assert torch.allclose(made.images * 255, (made.images * 255).round(), atol=1e-4), "as a file has them"
    assert (made.prompts, made.sources) == (examples.prompts, examples.sources)
    assert poison(model, examples, seed=0).digest() == made.digest()


@pytest.mark.parametrize("family", FIRST)
@pytest.mark.parametrize(
    "none",
    [Advdm(budget=0, steps=2), Advdm(steps=0), EncoderAttack(steps=0), Aspl(rounds=0), RandomNoise(budget=0)],
)
def test_without_strength_it_is_the_identity(model, examples, none):
    assert none(model, examples, seed=0).digest() == examples.digest()


@pytest.mark.parametrize("family", FIRST)
def test_the_encoder_attack_comes_nearer_to_grey(model, examples):
    made = EncoderAttack(budget=64, step_size=8, steps=10)(model, examples, seed=0)
    with torch.no_grad():
        grey = model.encode_images(torch.full_like(examples.images, 0.5))
        before, after = ((model.encode_images(each.images) - grey).square().sum().item() for each in (examples, made))
    assert after < 0.9 * before


@pytest.mark.parametrize("family", FIRST)
def test_aspl_teaches_its_surrogate_the_clean_and_then_the_poisoned_pictures(model, examples, monkeypatch):
    seen: list[tuple[str, torch.Tensor]] = []
    real = Lora.losses

    def losses(self, model, batches, step, *, seed, generator):
        seen.append((str(step), batches.latents.mean.clone()))
        return real(self, model, batches, step, seed=seed, generator=generator)

    monkeypatch.setattr(Lora, "losses", losses)
    Aspl(surrogate=SURROGATE, rounds=2, surrogate_steps=2, steps=2)(model, examples, seed=0)
    assert [step for step, _ in seen] == ["0", "1", "0", "1", "2", "3", "2", "3"]
    clean = [latents for _, latents in (*seen[0:2], *seen[4:6])]
    poisoned = [latents for _, latents in (*seen[2:4], *seen[6:8])]
    assert all(torch.equal(latents, clean[0]) for latents in clean)
    assert not any(torch.equal(latents, clean[0]) for latents in poisoned)
    assert torch.equal(poisoned[0], poisoned[1])
    assert not torch.equal(poisoned[1], poisoned[2]), "the second round's pictures are further on"


@pytest.mark.parametrize("family", FIRST)
def test_what_the_surrogate_learned_from_clean_pictures_is_forgotten(model, examples, monkeypatch):
    """Without steps on the pictures, both times it learns from the same: from where it was, to the same place."""
    states: list[str] = []
    real = Lora.losses

    def losses(self, model, batches, step, *, seed, generator):
        denoiser = model.components[model.denoiser]
        named = {name: value for name, value in denoiser.named_parameters() if "lora_" in name}
        states.append(hash_tensors(named))
        return real(self, model, batches, step, seed=seed, generator=generator)

    monkeypatch.setattr(Lora, "losses", losses)
    Aspl(surrogate=SURROGATE, rounds=1, surrogate_steps=2, steps=0)(model, examples, seed=0)
    assert states[0] == states[2]
    assert states[1] != states[0]


@pytest.mark.parametrize("family", FIRST)
def test_a_surrogate_with_a_word_of_its_own(model, examples):
    attack = TextualInversion(lr=1e-2, batch=2, initialiser="church")
    made = Aspl(surrogate=attack, rounds=1, surrogate_steps=1, steps=1)(model, examples, seed=0)
    assert made.digest() != examples.digest()


@pytest.mark.parametrize("family", FIRST)
def test_it_climbs_on_every_caption_and_on_mirrored_pictures_too(model, examples, monkeypatch):
    asked: set[str] = set()
    real = Lora.loss

    def loss(self, model, batch, generator):
        asked.update(batch.prompts if batch.latents.requires_grad else ())
        return real(self, model, batch, generator)

    monkeypatch.setattr(Lora, "loss", loss)
    attack = Lora(lr=1e-2, captions=("a cat", "my cat"), mirror=True)
    Aspl(surrogate=attack, rounds=1, surrogate_steps=1, steps=6)(model, examples, seed=0)
    assert asked == {"a cat", "my cat"}


@pytest.mark.parametrize("family", FIRST)
def test_the_surrogates_optimizer_begins_anew(model, examples, monkeypatch):
    made: list[int] = []
    real = poisons_aspl.Stepper

    def stepper(*arguments, **options):
        made.append(1)
        return real(*arguments, **options)

    monkeypatch.setattr(poisons_aspl, "Stepper", stepper)
    Aspl(surrogate=SURROGATE, rounds=3, surrogate_steps=1, steps=1)(model, examples, seed=0)
    assert len(made) == 6


@pytest.mark.parametrize("family", FIRST)
def test_a_long_round_is_kept_often(model, examples, tmp_path):
    kept: list[bool] = []
    file = tmp_path / "Aspl.safetensors"
    journal = Journal(folder=tmp_path, every=10, on_step=lambda done, _: kept.append(file.exists()))
    Aspl(surrogate=SURROGATE, rounds=4, surrogate_steps=1, steps=3)(model, examples, seed=0, journal=journal)
    assert kept == [False, False, True, True], "two rounds are ten steps"


@pytest.mark.parametrize("family", FIRST)
def test_no_pictures_are_refused(model, examples, poison):
    with pytest.raises(ImmunityError, match="at least one picture"):
        poison(model, examples.take([]), seed=0)


@pytest.mark.parametrize("family", FIRST)
def test_resumed_it_gives_the_same_pictures(model, examples, poison, tmp_path):
    if isinstance(poison, RandomNoise):
        return  # it has no steps
    whole = poison(model, examples, seed=0)

    class Killed(Exception):
        pass

    def stop(done, _):
        if done == 1:
            raise Killed

    journal = Journal(folder=tmp_path, every=1)
    with pytest.raises(Killed):
        # The callback comes before the checkpoint of its step: one more step is kept by the second attempt.
        poison(model, examples, seed=0, journal=dataclasses.replace(journal, on_step=stop))
    with pytest.raises(Killed):
        poison(model, examples, seed=0, journal=dataclasses.replace(journal, on_step=lambda n, r: stop(n - 1, r)))
    assert list(tmp_path.glob("*.safetensors"))
    assert poison(model, examples, seed=0, journal=journal).digest() == whole.digest()


@pytest.mark.parametrize("family", FIRST)
def test_half_precision_is_refused_where_gradients_vanish(tiny_folders, examples, family):
    model = load(tiny_folders["sd1"], dtype="float16")
    with pytest.raises(ImmunityError, match="bfloat16"):
        Advdm(steps=1)(model, examples, seed=0)
