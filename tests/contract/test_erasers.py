"""What every eraser promises, on every tiny family."""

import dataclasses
from typing import get_args

import diffusers
import pytest
import torch

from immunity import Concept, Conditioning, Delta, ImmunityError, processes
from immunity.deltas import hash_tensors
from immunity.erasers import AnyEraser, Esd, Uce
from immunity.erasers.esd import guided_away
from immunity.erasers.uce import _instead
from immunity.optimize import Journal

from tests import tiny
from tests.support import supports

CHURCH = Concept(name="church", prompts=("church", "image of church"), neighbours=("inn",))
CAT = Concept(name="cat", prompts=("cat",))

QUICK = {"lr": 1e-3, "steps": 2, "sampler_steps": 3}
ERASERS = {
    "esd-x": Esd(**QUICK, batch=2),
    "esd-x-strict": Esd(**QUICK, variant="x-strict"),
    "esd-u": Esd(**QUICK, variant="u", states_per_run=2),
    "esd-u-strict": Esd(**QUICK, variant="u-strict"),
    "esd-full": Esd(**QUICK, variant="full"),
    "uce": Uce(),
}
CHANGES = {
    "esd-x": "cross_attention",
    "esd-x-strict": "text_kv",
    "esd-u": "non_cross_attention",
    "esd-full": "denoiser",
    "uce": "text_kv",
}


@pytest.fixture(params=ERASERS)
def case(request) -> str:
    return request.param


def test_every_eraser_is_here():
    assert {type(eraser) for eraser in ERASERS.values()} == set(get_args(AnyEraser))


def test_it_changes_what_it_declares_and_leaves_the_model_as_it_was(model, family, case):
    if not supports(ERASERS[case], family):
        with pytest.raises(ImmunityError, match="unsupported"):
            ERASERS[case](model, [CHURCH, CAT], seed=0)
        return
    before = hash_tensors(model.parameters("all"))
    state = torch.random.get_rng_state()
    delta = ERASERS[case](model, [CHURCH, CAT], seed=0)
    assert torch.equal(torch.random.get_rng_state(), state), "the global generator is not touched"
    assert hash_tensors(model.parameters("all")) == before
    assert ERASERS[case](model, [CHURCH, CAT], seed=0).hash == delta.hash
    assert not any(value.requires_grad or value.grad is not None for value in model.parameters("all").values())
    assert all(value.isfinite().all() for value in delta.tensors.values())
    if case in CHANGES:
        assert set(delta.tensors) == set(model.parameters(CHANGES[case]))
    moved = [name for name, value in delta.tensors.items() if not torch.equal(value, model.parameters("all")[name])]
    assert moved
    assert delta.provenance.method == type(ERASERS[case]).__name__
    assert [concept["name"] for concept in delta.provenance.config["inputs"]["concepts"]] == ["church", "cat"]


@pytest.mark.parametrize("family", tiny.FAMILIES[:1])
def test_another_seed_another_delta(model, case):
    eraser = ERASERS[case]
    first, other = (eraser(model, [CHURCH, CAT], seed=seed).hash for seed in (0, 1))
    assert (first == other) == isinstance(eraser, Uce), "UCE is a formula"


@pytest.mark.parametrize("eraser", [Esd(lr=0, steps=1, sampler_steps=1), Esd(steps=0), Uce(anchor=("church",))])
def test_without_strength_it_is_the_identity(model, family, eraser):
    if not supports(eraser, family):
        pytest.skip("unsupported, which is tested above")
    delta = eraser(model, [CHURCH], seed=0)
    assert all(torch.equal(value, model.parameters("all")[name]) for name, value in delta.tensors.items())


@pytest.mark.parametrize("family", tiny.FAMILIES[:1])
def test_no_concept_is_refused(model, case):
    with pytest.raises(ImmunityError, match="at least one concept"):
        ERASERS[case](model, [], seed=0)


OUTER = {
    **{family: {"time_embedding", "conv_out"} for family in ("sd1", "sd2", "sd2v")},
    "sdxl": {"time_embedding", "add_embedding", "conv_out"},
    **{family: {"time_text_embed", "norm_out", "proj_out"} for family in tiny.FLOWS},
    "pixart": {"adaln_single", "scale_shift_table", "proj_out"},
}


def test_u_strict_is_u_without_the_time_embedding_and_the_output(model, family):
    strict, loose = (set(Esd(variant=variant).trained(model)) for variant in ("u-strict", "u"))
    assert {name.split(".")[1] for name in loose - strict} == OUTER[family]
    assert strict < loose


@pytest.mark.parametrize("family", tiny.KINDS)
def test_text_kv_is_the_way_of_the_words_into_the_picture(model, family):
    """Without all other keys and values of the denoiser they still arrive (the control), and without these not.

    A pooled embedding, where there is one, goes another way and is the same here.
    """
    conditioning = Conditioning.cat([model.encode_prompts([prompt]) for prompt in ("church", "castle")])
    if conditioning.pooled is not None:
        conditioning = dataclasses.replace(conditioning, pooled=conditioning.pooled[[0, 0]])
    noisy = torch.randn(1, *model.latent_shape, generator=torch.Generator().manual_seed(0)).repeat(2, 1, 1, 1)

    def difference(without) -> float:
        with torch.no_grad():
            for value in without.values():
                value.zero_()
            first, second = model.predict(noisy, torch.tensor([300, 300]), conditioning)
        return (first - second).abs().max().item()

    keys_and_values = {
        name: value
        for name, value in model.parameters("self_attention").items()
        if {"to_k", "to_v"} & set(name.split("."))
    }
    assert keys_and_values
    assert difference(keys_and_values) > 1e-6
    assert difference(model.parameters("text_kv")) == 0


def predictions(model, prompt: str) -> torch.Tensor:
    generator = torch.Generator().manual_seed(5)
    noisy = torch.randn(8, *model.latent_shape, generator=generator)
    with torch.no_grad():
        return model.predict(noisy, model.sample_times(8, generator), model.encode_prompts([prompt]).repeat(8))


# With one block of joint attention, the text's half of it alone cannot move FLUX far.
@pytest.mark.parametrize(("family", "variant"), [("sd1", "x"), ("sd2v", "x"), ("sd3", "x"), ("flux", "full")])
def test_esd_moves_the_concept_to_its_target(model, variant):
    """For each parametrization; the control is the distance before. η is large, as prompts mean little to it."""
    conditional, unconditional = predictions(model, "church"), predictions(model, "")
    target = guided_away(unconditional, conditional, 30.0)
    esd = Esd(variant=variant, eta=30.0, lr=1e-2, steps=20, batch=8, sampler_steps=2, guidance=1.0)
    delta = esd(model, [Concept(name="church", prompts=("church",))], seed=0)
    with delta.applied(model):
        after = (predictions(model, "church") - target).square().mean()
    assert after < 0.7 * (conditional - target).square().mean()


@pytest.mark.parametrize("family", tiny.U_NETS)
def test_several_concepts_are_all_erased(model):
    """The control is the erasure of one of them. A text feature of 16 numbers leaves no room for an exact edit."""
    prompts = model.encode_prompts(["church", "cat"]).embeddings
    nothing = model.encode_prompts([""]).embeddings
    targets = {name: nothing @ weight.detach().T for name, weight in model.parameters("text_kv").items()}

    def distances() -> torch.Tensor:
        """From each concept's keys and values to those of the empty prompt, before the edit."""
        weights = model.parameters("text_kv")
        return sum((prompts @ weights[name].T - targets[name]).square().mean(dim=(1, 2)) for name in weights).detach()

    before = distances()
    with Uce(lam=1e-4)(model, [CHURCH, CAT], seed=0).applied(model):
        both = distances()
    with Uce(lam=1e-4)(model, [CAT], seed=0).applied(model):
        one = distances()
    assert (both < 0.8 * before).all(), both / before
    assert both[0] < 0.9 * one[0], both / one


@pytest.mark.parametrize("family", tiny.U_NETS)
def test_uce_keeps_the_first_position_which_all_prompts_share(model):
    """Though Stable Diffusion XL's unconditional prompt is zeros there, too. The control is the concept itself."""
    features = model.encode_prompts(["church", "a tin"]).embeddings
    delta = Uce()(model, [Concept(name="church", prompts=("church",))], seed=0)

    def change(of: torch.Tensor) -> float:
        """Of keys and values, relative to what they were."""
        weights = {name: (old, delta.tensors[name]) for name, old in model.parameters("text_kv").items()}
        moved = sum((of @ (new - old).T).square().sum() for old, new in weights.values())
        return (moved / sum((of @ old.T).square().sum() for old, _ in weights.values())).sqrt().item()

    assert change(features[:, 0]) < 0.1
    assert change(features[0, 1:]) > 0.2


@pytest.mark.parametrize("family", tiny.U_NETS)
def test_uce_keeps_what_it_shall_keep(model):
    def change(eraser: Uce) -> torch.Tensor:
        """Of the keys and values of a prompt that is not erased, relative to those of one that is."""
        features = model.encode_prompts(["image of tin", "image of church"]).embeddings
        delta = eraser(model, [CHURCH], seed=0)
        moved = torch.stack(
            [
                (features @ (delta.tensors[name] - old).T).square().mean(dim=(1, 2))
                for name, old in model.parameters("text_kv").items()
            ]
        ).mean(0)
        return moved[0] / moved[1]

    assert change(Uce(lam=1e-6, preserve=("tin",))) < 0.75 * change(Uce(lam=1e-6))


@pytest.mark.parametrize("family", tiny.U_NETS[:1])
def test_anchors_are_one_or_as_many_as_concepts(model):
    with pytest.raises(ImmunityError, match="one anchor for all"):
        Uce(anchor=("a", "b"))(model, [CHURCH, CAT, Concept(name="x")], seed=0)
    two = Uce(anchor=("inn", "tin"))(model, [CHURCH, CAT], seed=0)
    one = Uce(anchor=("inn",))(model, [CHURCH, CAT], seed=0)
    assert two.hash != one.hash


@pytest.mark.parametrize(
    ("make", "complaint"),
    [
        (lambda: Esd(lr=-1e-5), "lr of at least 0"),
        (lambda: Esd(lr=float("nan")), "lr of at least 0"),
        (lambda: Esd(variant="y"), "variant among x, x-strict, u"),
        (lambda: Esd(batch=0), "batch of at least 1"),
        (lambda: Esd(states_per_run=51), "at most as many states"),
        (lambda: Uce(lam=0), "lam above 0"),
        (lambda: Uce(anchor=()), "an anchor"),
    ],
)
def test_bad_settings_are_refused(make, complaint):
    with pytest.raises(ImmunityError, match=complaint):
        make()


class KilledError(Exception):
    pass


@pytest.mark.parametrize("family", tiny.FAMILIES[:1])
def test_esd_resumes_to_the_same_bits(model, tmp_path):
    esd = dataclasses.replace(ERASERS["esd-u"], steps=9)

    def kill(done, _result):
        if done == 7:
            raise KilledError

    whole = esd(model, [CHURCH, CAT], seed=0)
    before = hash_tensors(model.parameters("all"))
    with pytest.raises(KilledError):
        esd(model, [CHURCH, CAT], seed=0, journal=Journal(folder=tmp_path, every=3, on_step=kill))
    assert hash_tensors(model.parameters("all")) == before, "an interruption leaves the model as it was, too"
    steps: list[int] = []
    journal = Journal(folder=tmp_path, every=3, on_step=lambda done, _: steps.append(done))
    resumed = esd(model, [CHURCH, CAT], seed=0, journal=journal)
    assert steps[0] == 5, "from the end of a whole run of the sampler"
    assert isinstance(resumed, Delta)
    assert resumed.hash == whole.hash


@pytest.mark.parametrize(
    ("prompt", "asked"),
    [
        ("a category of cat, cat", "a category of dog, dog"),
        ("an image of a Cat", "an image of a dog"),
        ("image of a church", "dog"),
        ("", "dog"),
    ],
)
def test_a_name_is_replaced_where_it_is_a_word(prompt, asked):
    assert _instead(prompt, "cat", "dog") == asked


def test_a_name_may_end_in_punctuation():
    assert (
        _instead("a poster of Monsters, Inc. in a frame", "Monsters, Inc.", "a car") == "a poster of a car in a frame"
    )
    assert _instead("Monsters, Inc.orporated", "Monsters, Inc.", "a car") == "a car"


@pytest.mark.parametrize("family", ["sd1"])
@pytest.mark.parametrize(
    ("scheduler", "states"),
    [
        ("DDIMScheduler", 6),
        ("DPMSolverMultistepScheduler", 6),
        ("EulerDiscreteScheduler", 6),
        ("PNDMScheduler", 7),
        ("HeunDiscreteScheduler", 11),
        ("KDPM2DiscreteScheduler", 11),
    ],
)
def test_esd_trains_at_all_noise_levels_of_the_sampler(model, monkeypatch, scheduler, states):
    """Not at as many of its states as it has steps, which are the noisier half of those of a second-order sampler."""
    model._scheduler = getattr(diffusers, scheduler).from_config(model._scheduler.config)
    sample_path, trained = type(model).sample_path, []

    def stopped(self, *arguments, stops, **settings):
        trained.append((stops, sample_path(self, *arguments, stops=stops, **settings)))
        return trained[-1][1]

    monkeypatch.setattr(type(model), "sample_path", stopped)
    assert model.states_on_path(6) == states
    Esd(steps=40, sampler_steps=6, guidance=1.0)(model, [Concept(name="church")], seed=1)
    assert {stop for stops, _ in trained for stop in stops} == set(range(states))
    least = min(state.times[0].item() for _, run in trained for state in run)
    assert least == round(model._scheduler_of(6).timesteps[-1].item())


@pytest.mark.parametrize("family", ["sd1"])
def test_a_sampler_that_adds_noise_adds_the_same_in_each_process(model, monkeypatch):
    from diffusers import EulerAncestralDiscreteScheduler

    model._scheduler = EulerAncestralDiscreteScheduler.from_config(model._scheduler.config)
    drawn = []
    sample_path = type(model).sample_path

    def watch(self, *arguments, **settings):
        drawn.append(sample_path(self, *arguments, **settings))
        return drawn[-1]

    monkeypatch.setattr(type(model), "sample_path", watch)
    for rows in (slice(None), slice(0, 1), slice(1, 2)):
        monkeypatch.setattr(processes, "rows", lambda _, rows=rows: rows)
        Esd(steps=1, batch=2, sampler_steps=6)(model, [Concept(name="church")], seed=4)
    (whole,), *parts = drawn
    assert whole.times[0] < 900, "after steps that add noise"
    torch.testing.assert_close(torch.cat([part.latents for (part,) in parts]), whole.latents, rtol=1e-3, atol=1e-4)
