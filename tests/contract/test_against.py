"""IMMA against every adaptation and against a mixture of them, on the first tiny family."""

import dataclasses
import json
from collections import Counter

import pytest
import torch

from immunity import Dreambooth, DreamboothLora, Imma, ImmunityError, Lora, Mixture, TextualInversion
from immunity.adaptations.base import Adaptation, described
from immunity.deltas import hash_tensors
from immunity.immunizers import AscentOnly
from immunity.immunizers.opponents import Opponents
from immunity.optimize import Journal

from tests.contract.test_adaptations import ADAPTATIONS, NAMED
from tests.contract.test_immunizers import pictures

MIXTURE = Mixture(
    of=(Lora(lr=1e-2, batch=2), Dreambooth(lr=1e-2, **NAMED), TextualInversion(lr=1e-2, **NAMED)),
    lr_factors=(0.3, 1.0, 3.0),
    ranks=(2, 4),
)


@pytest.fixture(params=["sd1"])
def family(request) -> str:
    return request.param


@pytest.fixture
def examples(model):
    return pictures(model)


@pytest.mark.parametrize("name", [*ADAPTATIONS, "mixture"])
def test_imma_changes_its_part_alone_whoever_it_plays_against(model, examples, name):
    against = ADAPTATIONS.get(name, MIXTURE)
    method = Imma(outer_lr=1e-3, steps=6, retention="denoising", retention_prompts=("cat",), retention_pictures=1)
    before, randomness = hash_tensors(model.parameters("all")), torch.random.get_rng_state()
    delta = method(model, examples, against, seed=0)
    assert hash_tensors(model.parameters("all")) == before
    assert not model.adapted
    assert torch.equal(torch.random.get_rng_state(), randomness)
    assert not any(value.requires_grad or value.grad is not None for value in model.parameters("all").values())
    assert set(delta.tensors) == set(model.parameters("attention"))
    parameters = model.parameters("all")
    moved = [name for name, value in delta.tensors.items() if not torch.equal(value, parameters[name])]
    assert len(moved) == len(delta.tensors)
    assert method(model, examples, against, seed=0).hash == delta.hash
    json.dumps(delta.provenance.config)


class KilledError(Exception):
    pass


@pytest.mark.parametrize("method", [Imma(outer_lr=1e-3, steps=12), Imma(outer_lr=1e-3, steps=12, reinitialise_every=4)])
def test_a_mixture_resumes_to_the_same_bits(model, examples, tmp_path, method):
    def kill(done, _):
        if done == 9:
            raise KilledError

    whole = method(model, examples, MIXTURE, seed=0)
    with pytest.raises(KilledError):
        method(model, examples, MIXTURE, seed=0, journal=Journal(folder=tmp_path, every=5, on_step=kill))
    assert not model.adapted
    assert method(model, examples, MIXTURE, seed=0, journal=Journal(folder=tmp_path, every=5)).hash == whole.hash


def test_a_mixture_of_one_is_that_one(model, examples):
    attack = Lora(lr=1e-2, batch=2)
    for method in (Imma(outer_lr=1e-3, steps=4), AscentOnly(lr=1e-3, steps=2)):
        alone = method(model, examples, attack, seed=0)
        assert method(model, examples, Mixture(of=(attack,)), seed=0).hash == alone.hash


def test_every_member_keeps_its_own_phi(model, examples):
    opponents = Opponents(model, examples, MIXTURE, changing=model.parameters("attention"), seed=0)
    seen: dict[int, str] = {}
    with opponents:
        for turn in range(16):
            opponent = opponents.choose(turn)
            number = MIXTURE.members().index(opponent.adaptation)
            now = hash_tensors(opponent.phi.state_dict())
            assert seen.get(number, now) == now, "as its last turn left it"
            with torch.no_grad():
                for value in opponent.phi.parameters():
                    value.add_(0.01)
            seen[number] = hash_tensors(opponent.phi.state_dict())
    assert len(seen) == len(MIXTURE.members()) == 4
    assert not model.adapted


@pytest.mark.parametrize("every", [0, 8])
def test_a_falling_rate_lasts_as_long_as_the_turns_of_its_own(model, examples, monkeypatch, every):
    mixture = Mixture(of=(Lora(schedule="cosine"), Dreambooth(schedule="cosine", **NAMED)), ranks=(2, 4))
    descent, planned, turns = Adaptation.descent, {}, Counter()

    def plan(self, steps):
        planned[generation, self] = steps
        return descent(self, steps)

    monkeypatch.setattr(Adaptation, "descent", plan)
    settings = {"turns": every or 24, "steps": 3, "reinitialise_every": every}
    with Opponents(model, examples, mixture, changing=(), seed=0, **settings) as opponents:
        for turn in range(24):
            generation = turn // every if every else 0
            turns[generation, opponents.choose(turn).adaptation] += 1
    assert planned == {who: 3 * number for who, number in turns.items()}


def test_draws_are_even_and_follow_from_the_seed():
    drawn = [MIXTURE.draw(number, seed=1) for number in range(300)]
    assert drawn == [MIXTURE.draw(number, seed=1) for number in range(300)]
    assert drawn != [MIXTURE.draw(number, seed=2) for number in range(300)]
    assert all(MIXTURE.members()[each.number] == each.adaptation for each in drawn)
    for kind in (Lora, Dreambooth, TextualInversion):
        assert 70 < sum(isinstance(each.adaptation, kind) for each in drawn) < 130
    assert {each.lr_factor for each in drawn} == {0.3, 1.0, 3.0}
    assert {each.adaptation.rank for each in drawn if isinstance(each.adaptation, Lora)} == {2, 4}
    assert described(MIXTURE)["of"][1]["method"] == "Dreambooth"


def test_the_prior_is_the_lower_levels_alone(model, examples, monkeypatch):
    seen = []
    original = DreamboothLora.loss

    def watch(self, model, batch, generator):
        outer = any(value.requires_grad for value in model.parameters("all").values())
        seen.append((outer, batch.prior is not None))
        return original(self, model, batch, generator)

    monkeypatch.setattr(DreamboothLora, "loss", watch)
    Imma(outer_lr=1e-3, steps=4)(model, examples, ADAPTATIONS["dreambooth-lora"], seed=0)
    assert seen == [(False, True), (True, False)] * 2


def test_accumulation_leaves_the_turns_alone(model, examples):
    seen = []
    attack = dataclasses.replace(ADAPTATIONS["lora"], accumulate=3)
    done = Journal(on_step=lambda number, _: seen.append(number))
    one = Imma(outer_lr=1e-3, steps=4)(model, examples, attack, seed=0, journal=done)
    assert seen == [1, 2, 3, 4]
    assert one.hash != Imma(outer_lr=1e-3, steps=4)(model, examples, ADAPTATIONS["lora"], seed=0).hash


def test_recomputing_does_not_disturb_the_upper_level(model, examples):
    """Also where θ pays for other prompts, which is computed with φ out of the way."""
    attack = Lora(lr=1e-2, batch=2)
    method = Imma(outer_lr=1e-3, steps=4, retention="denoising", retention_prompts=("cat",), retention_pictures=1)
    plain = method(model, examples, attack, seed=0)
    again = method(model, examples, dataclasses.replace(attack, checkpointing=True), seed=0)
    for name, value in plain.tensors.items():
        torch.testing.assert_close(again.tensors[name], value, rtol=1e-4, atol=1e-5)


def test_a_text_encoder_that_changes_is_asked_anew(model, examples):
    """S in the text encoder, against an attack whose prompts are otherwise encoded once."""
    delta = Imma(group="text_encoder", outer_lr=1e-3, steps=2)(model, examples, ADAPTATIONS["dreambooth"], seed=0)
    parameters = model.parameters("all")
    moved = [name for name, value in delta.tensors.items() if not torch.equal(value, parameters[name])]
    assert len(moved) > 0.8 * len(delta.tensors)


@pytest.mark.parametrize(
    ("make", "complaint"),
    [
        (lambda: Mixture(of=()), "adaptations to draw from"),
        (lambda: Mixture(of=(Lora(),), lr_factors=(0.0,)), "factors of the learning rate above 0"),
        (lambda: Mixture(of=(Lora(),), ranks=(0,)), "rank of at least 1"),
    ],
)
def test_bad_mixtures_are_refused(make, complaint):
    with pytest.raises(ImmunityError, match=complaint):
        make()
