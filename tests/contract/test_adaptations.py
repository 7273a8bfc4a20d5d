"""What every adaptation promises, on every tiny family."""

import dataclasses
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from typing import get_args

import pytest
import torch

from immunity import Concept, Esd, Examples, Imma, ImmunityError, load, processes
from immunity.adaptations import (
    Adaptation,
    AnyAdaptation,
    CustomDiffusion,
    Dreambooth,
    DreamboothLora,
    FullFinetuning,
    Lora,
    PeftAdapter,
    PivotalTuning,
    TextualInversion,
    adapt,
    denoising_loss,
    prior,
)
from immunity.adaptations.new_token import NewToken
from immunity.atomic import save_tensors
from immunity.deltas import hash_tensors
from immunity.filenames import LORA_FILE
from immunity.models import thawed
from immunity.models.vocabulary import LearnedToken
from immunity.optimize import Journal

from tests import tiny

SHORT = {"steps": 3, "batch": 2}
NAMED = {"captions": ("image of {}",), **SHORT}
PRIOR = {"class_prompt": "image of church", "prior_pictures": 2, "prior_steps": 2}
ADAPTATIONS: dict[str, Adaptation] = {
    "lora": Lora(lr=1e-2, **SHORT),
    "lora-scaled": Lora(lr=1e-2, rank=2, alpha=3.0, mirror=True, balance=True, **SHORT),
    "dreambooth": Dreambooth(lr=1e-2, **NAMED),
    "dreambooth-prior": Dreambooth(lr=1e-2, text_encoder=True, **PRIOR, **NAMED),
    "dreambooth-lora": DreamboothLora(lr=1e-2, **PRIOR, **NAMED),
    "textual-inversion": TextualInversion(lr=1e-2, vectors=2, **NAMED),
    "custom-diffusion": CustomDiffusion(lr=1e-2, noun="church", **PRIOR, **NAMED),
    "pivotal-tuning": PivotalTuning(lr=1e-2, token_lr=5e-2, **NAMED),
    "full-finetuning": FullFinetuning(lr=1e-2, group="attention", optimizer="adafactor", **SHORT),
    **{kind: PeftAdapter(kind=kind, lr=1e-2, **SHORT) for kind in ("dora", "loha", "lokr", "oft", "boft")},
    "dora-convolutions": PeftAdapter(kind="dora", lr=1e-2, convolutions=True, **SHORT),
}
BEGINS_AT_ZERO = {"dreambooth", "dreambooth-prior", "full-finetuning", "oft", "boft"}
"""Nothing of their φ is drawn."""
FIRST = tiny.FAMILIES[:1]


@pytest.fixture(params=tiny.KINDS)
def family(request) -> str:
    return request.param


@pytest.fixture(params=ADAPTATIONS)
def name(request) -> str:
    return request.param


@pytest.fixture
def adaptation(name) -> Adaptation:
    return ADAPTATIONS[name]


def test_every_adaptation_is_here():
    assert {type(adaptation) for adaptation in ADAPTATIONS.values()} == set(get_args(AnyAdaptation))


def randomise(phi, scale: float = 0.1) -> None:
    generator = torch.Generator().manual_seed(1)
    phi.load_state_dict(
        {name: scale * torch.randn(value.shape, generator=generator) for name, value in phi.state_dict().items()}
    )


def asked(adaptation) -> str:
    return f"image of {adaptation.subject or 'church'}"


def prediction(model, prompt: str = "church") -> torch.Tensor:
    generator = torch.Generator().manual_seed(2)
    noisy = torch.randn(4, *model.latent_shape, generator=generator).to(model.dtype)
    with torch.no_grad():
        return model.predict(noisy, model.sample_times(4, generator), model.encode_prompts([prompt] * 4))


def state(model) -> tuple:
    modules = [
        (part, name, type(module)) for part, whole in model.components.items() for name, module in whole.named_modules()
    ]
    names = [(part, name) for part, whole in model.components.items() for name, _ in whole.named_parameters()]
    marks = [value.requires_grad or value.grad is not None for value in model.parameters("all").values()]
    return (
        modules,
        names,
        marks,
        [module.training for module in model.components.values()],
        [entry.tokenizer.tokenize("image of <new> sks") for entry in model.vocabularies()],
        [id(value) for value in model.parameters("all").values()],
        hash_tensors(model.parameters("all")),
    )


@contextmanager
def holding(model, merged: dict[str, torch.Tensor], tokens: tuple[LearnedToken, ...]):
    """θ as it is without φ, and the words that φ taught."""
    parameters = model.parameters("all")
    before = {name: parameters[name].detach().clone() for name in merged}
    with torch.no_grad(), ExitStack() as stack:
        for name, value in merged.items():
            parameters[name].copy_(value)
        for token in tokens:
            stack.enter_context(token.known_to(model))
        yield
    with torch.no_grad():
        for name, value in before.items():
            parameters[name].copy_(value)


def test_an_attack_leaves_the_model_as_it_was(model, examples, adaptation):
    before, prior, randomness = state(model), prediction(model), torch.random.get_rng_state()
    first = adapt(model, examples, adaptation, seed=0)
    assert state(model) == before
    assert torch.equal(prediction(model), prior)
    assert torch.equal(torch.random.get_rng_state(), randomness), "the global generator is not touched"
    assert adapt(model, examples, adaptation, seed=0).hash == first.hash
    assert len(first.losses) == adaptation.steps
    assert first.provenance.config["inputs"] == {"examples": examples.digest()}
    with adaptation.attach(model, seed=0) as phi:
        assert bool(phi.tokens()) == isinstance(adaptation, NewToken)
        assert (first.delta is None) == (phi.merged() == {})
        for value in phi.state_dict().values():
            assert value.isfinite().all()
    if first.delta is not None:
        assert all(value.isfinite().all() for value in first.delta.tensors.values())
        assert set(first.delta.tensors) <= set(model.parameters("all"))


def test_phi_is_disjoint_from_theta_and_does_nothing_at_first(model, adaptation, tmp_path):
    base = prediction(model)
    with adaptation.attach(model, seed=0) as phi:
        theta = {id(value) for value in model.parameters("all").values()}
        storage = {value.data_ptr() for value in model.parameters("all").values()}
        assert phi.parameters()
        assert not any(id(value) in theta or value.data_ptr() in storage for value in phi.parameters())
        assert not any(value.requires_grad for value in phi.parameters())
        torch.testing.assert_close(prediction(model), base, rtol=0, atol=1e-5)
        first = prediction(model, asked(adaptation))
        randomise(phi)
        changed = prediction(model, asked(adaptation))
        assert (changed - first).abs().max() > 1e-4, "the control: φ is part of the forward pass"
        with phi.disabled():
            torch.testing.assert_close(prediction(model), base, rtol=0, atol=1e-6)
        assert torch.equal(prediction(model, asked(adaptation)), changed)
        with pytest.raises(ImmunityError, match="without adapters"):
            model.export(tmp_path / "model")


def test_the_loss_reaches_phi_and_nothing_else(model, examples, adaptation):
    batches = adaptation.prepare(model, examples)
    with adaptation.attach(model, seed=0) as phi, thawed(phi.parameters()):
        randomise(phi)
        generator = torch.Generator().manual_seed(0)
        batch = adaptation.draw(batches, 0, seed=0, generator=generator)
        adaptation.loss(model, batch, generator).backward()
        reached = [value.grad is not None and value.grad.abs().max() > 0 for value in phi.parameters()]
        # Biases of keys have no effect, nor has a text encoder's last layer where only the one before is read.
        assert sum(reached) >= (0.8 if adaptation.trains_text(model) and len(reached) > 2 else 0.9) * len(reached)
        assert all(value.grad is None for value in model.parameters("all").values())


def test_a_merged_delta_equals_the_attached_forward(folder, adaptation):
    model = load(folder, dtype="float64")
    before = hash_tensors(model.parameters("all"))
    with adaptation.attach(model, seed=0) as phi:
        first = prediction(model, asked(adaptation))
        randomise(phi)
        attached, merged, tokens = prediction(model, asked(adaptation)), phi.merged(), phi.tokens()
        assert hash_tensors(model.parameters("all")) == before, "merging is a question, not a change"
    with holding(model, merged, tokens):
        torch.testing.assert_close(prediction(model, asked(adaptation)), attached, rtol=1e-9, atol=1e-9)
    assert (attached - first).abs().max() > 1e-4
    assert hash_tensors(model.parameters("all")) == before


def test_the_model_is_whole_again_when_the_block_fails(model, adaptation):
    before = state(model)
    with pytest.raises(RuntimeError, match="on purpose"), adaptation.attach(model, seed=0):
        raise RuntimeError("on purpose")
    assert state(model) == before


@pytest.mark.parametrize("family", FIRST)
def test_phi_is_drawn_from_the_seed_alone(model, name, adaptation):
    states = []
    for seed in (0, 0, 1):
        with adaptation.attach(model, seed=seed) as phi:
            states.append(hash_tensors(phi.state_dict()))
            randomise(phi)
            phi.reset(seed)
            assert hash_tensors(phi.state_dict()) == states[-1]
    assert states[0] == states[1]
    assert (states[1] == states[2]) == (name in BEGINS_AT_ZERO)


@pytest.mark.parametrize("family", FIRST)
def test_it_learns(model, examples, adaptation):
    """The positive control of every claim that a defence holds: on a bare model the attack works."""

    def loss() -> float:
        batches, generator = adaptation.prepare(model, examples), torch.Generator().manual_seed(9)
        with torch.no_grad():
            drawn = [batches.draw(16, number, seed=0, generator=generator) for number in range(2)]
            return sum(denoising_loss(model, batch, generator).item() for batch in drawn) / 2

    alone = isinstance(adaptation, TextualInversion)
    with adaptation.attach(model, seed=0):
        before = loss()
    longer = dataclasses.replace(adaptation, lr=0.03 if alone else 1e-2, steps=40, batch=8)
    with adapt(model, examples, longer, seed=0).applied(model):
        # Two vectors can say next to nothing to a text encoder that was never trained.
        assert loss() < (0.9998 if alone else 0.99) * before


@pytest.mark.parametrize("family", FIRST)
def test_the_callback_sees_the_attack_on_its_way(model, examples, adaptation):
    pictures = {}

    def draw():
        return model.sample([asked(adaptation)], seeds=[0], steps=1)

    def look(step, phi):
        pictures[step] = (hash_tensors(phi.state_dict()), draw())

    plain = adapt(model, examples, adaptation, seed=0)
    watched = adapt(model, examples, adaptation, seed=0, at=(0, 2, 3), callback=look)
    assert watched.hash == plain.hash, "looking changes nothing"
    assert sorted(pictures) == [0, 2, 3]
    assert not torch.equal(pictures[0][1], pictures[3][1])
    assert pictures[2][0] != pictures[3][0]
    with watched.applied(model):
        torch.testing.assert_close(draw(), pictures[3][1], rtol=0, atol=1e-3)


@pytest.mark.parametrize("family", [family for family in tiny.FAMILIES if family not in tiny.KINDS])
@pytest.mark.parametrize("name", {type(adaptation): name for name, adaptation in ADAPTATIONS.items()}.values())
def test_every_class_of_adaptation_takes_a_step_on_the_families_that_are_left(model, examples, adaptation):
    """The rest of docs/families.md: models of a class that has been through everything above."""
    before = state(model)
    result = adapt(model, examples, dataclasses.replace(adaptation, steps=1), seed=0)
    assert torch.tensor(result.losses).isfinite().all()
    assert state(model) == before
    with result.applied(model):
        assert prediction(model, asked(adaptation)).isfinite().all()


class KilledError(Exception):
    pass


@pytest.mark.parametrize("family", FIRST)
def test_an_attack_resumes_to_the_same_bits(model, examples, adaptation, tmp_path):
    def kill(done, _result):
        if done == 2:
            raise KilledError

    whole, before = adapt(model, examples, adaptation, seed=0), state(model)
    with pytest.raises(KilledError):
        adapt(model, examples, adaptation, seed=0, journal=Journal(folder=tmp_path, every=1, on_step=kill))
    assert state(model) == before
    resumed = adapt(model, examples, adaptation, seed=0, journal=Journal(folder=tmp_path, every=1))
    assert resumed.hash == whole.hash
    assert resumed.losses == whole.losses
    with pytest.raises(ImmunityError, match="the checkpoint of this run"):
        adapt(model, examples, adaptation, seed=1, journal=Journal(folder=tmp_path))


@pytest.mark.parametrize("family", FIRST)
def test_half_precision_weights_are_left_as_they_were(folder, adaptation):
    model = load(folder, dtype="bfloat16")
    images = torch.rand(2, 3, model.resolution, model.resolution, generator=torch.Generator().manual_seed(0))
    before = hash_tensors(model.parameters("all"))
    with adaptation.attach(model, seed=0) as phi:
        decomposed = any("magnitude" in name for name in phi.named_parameters())
        low_rank = {value for name, value in phi.named_parameters().items() if "lora_" in name and not decomposed}
        assert {value.dtype for value in low_rank} <= {torch.bfloat16}
        assert {value.dtype for value in phi.parameters() if value not in low_rank} <= {torch.float32}
    result = adapt(model, Examples(images, ("church",) * 2, ("a", "b")), adaptation, seed=0)
    if result.delta is not None:
        assert all(value.dtype == torch.bfloat16 for value in result.delta.tensors.values())
    assert hash_tensors(model.parameters("all")) == before


@pytest.mark.parametrize("family", FIRST)
def test_small_steps_of_a_half_precision_phi_add_up(folder):
    model = load(folder, dtype="bfloat16")
    images = torch.rand(2, 3, model.resolution, model.resolution, generator=torch.Generator().manual_seed(0))
    # A's numbers are about 0.25, where bfloat16 has steps of a thousandth: ten of these steps make one.
    attack = Lora(lr=1e-4, steps=40, batch=2)
    with attack.attach(model, seed=0) as phi:
        assert {value.dtype for value in phi.parameters()} == {torch.bfloat16}
    before, after = (
        adapt(
            model, Examples(images, ("church",) * 2, ("a", "b")), dataclasses.replace(attack, steps=steps), seed=0
        ).files
        for steps in (1, 40)
    )
    down = [name for name in before[LORA_FILE] if "lora_A" in name]
    moved = [(before[LORA_FILE][name] != after[LORA_FILE][name]).float().mean() for name in down]
    assert torch.stack(moved).mean() > 0.5


@pytest.mark.parametrize("family", FIRST)
def test_nothing_is_trained_in_float16(folder):
    model = load(folder, dtype="float16")
    images = torch.rand(1, 3, model.resolution, model.resolution, generator=torch.Generator().manual_seed(0))
    pictures = Examples(images, ("church",), ("a",))
    for method in (
        lambda: adapt(model, pictures, Lora(steps=1), seed=0),
        lambda: Imma(steps=2)(model, pictures, Lora(), seed=0),
        lambda: Esd(steps=1)(model, [Concept(name="church")], seed=0),
    ):
        with pytest.raises(ImmunityError, match="bfloat16 or float32 to train; got float16"):
            method()


@pytest.mark.parametrize("family", FIRST)
def test_lora_begins_as_the_paper_has_it(model):
    with Lora(rank=4).attach(model, seed=0) as phi:
        down = torch.cat([value.flatten() for name, value in phi.named_parameters().items() if "lora_A" in name])
        up = torch.cat([value.flatten() for name, value in phi.named_parameters().items() if "lora_B" in name])
        assert (
            len(phi.named_parameters())
            == 2 * sum(name.endswith("to_q.weight") for name in model.parameters("attention")) * 4
        )
    assert abs(down.mean()) < 0.02
    assert abs(down.std() - 1 / 4) < 0.02
    assert not up.any()


@pytest.mark.parametrize("family", FIRST)
def test_targets_that_the_denoiser_lacks_are_refused(model):
    before = state(model)
    with (
        pytest.raises(ImmunityError, match="layers that the denoiser has"),
        Lora(targets=("to_x",)).attach(model, seed=0),
    ):
        pass
    assert state(model) == before


@pytest.mark.parametrize("family", FIRST)
def test_a_token_of_two_vectors_is_written_out_in_prompts(model):
    with ADAPTATIONS["textual-inversion"].attach(model, seed=0):
        (vocabulary,) = model.vocabularies()
        short, full = model.encode_prompts(["a <new>", "a <new>"]), model.encode_prompts(["a <new> x"])
        assert "<new>_1" in vocabulary.tokenizer.tokenize("<new>_1 church")
        assert torch.equal(short.embeddings[0], short.embeddings[1])
        assert not torch.equal(short.embeddings[0], full.embeddings[0])
    assert "<new>_1" not in vocabulary.tokenizer.tokenize("<new>_1 church")


@pytest.mark.parametrize("family", FIRST)
def test_only_the_rows_of_a_new_token_are_trained_and_kept(model, examples):
    attack = ADAPTATIONS["textual-inversion"]
    with attack.attach(model, seed=0) as phi:
        assert sum(value.numel() for value in phi.parameters()) == 2 * 16
    begun = dataclasses.replace(attack, initialiser="church")
    with begun.attach(model, seed=0) as phi:
        (rows,) = phi.parameters()
        (name,) = [name for name in model.parameters("text_encoder") if name.endswith("token_embedding.weight")]
        table = model.parameters("text_encoder")[name]
        assert torch.equal(rows[0], rows[1])
        assert (table == rows[0]).all(dim=1).any()


@pytest.mark.parametrize("family", FIRST)
def test_class_pictures_are_made_once_and_kept(model, examples, tmp_path, monkeypatch):
    drawn = []
    sample = type(model).sample
    monkeypatch.setattr(
        type(model), "sample", lambda self, prompts, **rest: drawn.append(prompts) or sample(self, prompts, **rest)
    )
    attack = ADAPTATIONS["dreambooth-prior"]
    plain = adapt(model, examples, attack, seed=0)
    kept = [adapt(model, examples, attack, seed=seed, journal=Journal(folder=tmp_path / str(seed))) for seed in (0, 1)]
    assert kept[0].hash == plain.hash != kept[1].hash
    assert drawn == [("image of church",) * 2] * 3
    adapt(model, examples, attack, seed=0, journal=Journal(folder=tmp_path / "0"))
    assert len(drawn) == 3


@pytest.mark.parametrize("family", FIRST)
def test_processes_that_draw_class_pictures_together_all_find_the_same(model, tmp_path, monkeypatch):
    """Two threads in place of them: drawing takes both, the first alone writes, and is slow at it."""
    attack, journal = ADAPTATIONS["dreambooth-prior"], Journal(folder=tmp_path)
    meeting, drawing = threading.Barrier(2, timeout=10), threading.Barrier(2, timeout=10)
    drawn, first = [], "the first_0"

    def draw(_model, prompts, seeds, **_settings):
        drawing.wait()
        drawn.append(seeds)
        return torch.zeros(len(prompts), 3, 8, 8)

    def save(*arguments, **settings):
        if threading.current_thread().name == first:
            time.sleep(0.5)
            save_tensors(*arguments, **settings)

    monkeypatch.setattr(processes, "wait", meeting.wait)
    monkeypatch.setattr(prior, "draw", draw)
    monkeypatch.setattr(prior, "save_tensors", save)

    def twice() -> list[int]:  # as a mixture of two members with one class prompt does
        return [len(attack._class_pictures(model, journal)) for _ in range(2)]

    with ThreadPoolExecutor(1, "the first") as one, ThreadPoolExecutor(1, "the second") as other:
        results = [pool.submit(twice) for pool in (one, other)]
    assert [result.result() for result in results] == [[2, 2], [2, 2]]
    assert len(drawn) == 2, "by each, once"


@pytest.mark.parametrize("family", FIRST)
def test_class_pictures_that_were_made_before_a_kill_are_not_made_again(model, examples, tmp_path, monkeypatch):
    attack = dataclasses.replace(ADAPTATIONS["dreambooth-prior"], prior_pictures=18, prior_steps=1)
    plain = attack.prepare(model, examples).prior
    sample, asked = type(model).sample, []

    def killed(self, prompts, **rest):
        asked.append(len(prompts))
        if len(asked) == 2:
            raise KeyboardInterrupt
        return sample(self, prompts, **rest)

    monkeypatch.setattr(type(model), "sample", killed)
    journal = Journal(folder=tmp_path)
    with pytest.raises(KeyboardInterrupt):
        attack.prepare(model, examples, journal=journal)
    resumed = attack.prepare(model, examples, journal=journal).prior
    assert asked == [8, 8, 8, 2]
    assert torch.equal(resumed.latents.mean, plain.latents.mean)


@pytest.mark.parametrize("family", FIRST)
@pytest.mark.parametrize(
    ("attack", "complaint"),
    [
        (TextualInversion(initialiser="a church"), "an initialiser of one token; got 'a church', of 2"),
        (TextualInversion(token="church"), "no word of the model yet; got 'church'; try <church-1>"),
        (TextualInversion(captions=()), "have the new token <new> in them; got 'image of church'"),
        (TextualInversion(captions=("a {}", "church")), "have the new token <new> in them; got 'church'"),
        (Dreambooth(group="biases"), "a group of parameters that UNetModel has"),
        (PeftAdapter(kind="boft", rank=5), "of sizes that the adapter can take"),
    ],
)
def test_what_does_not_fit_the_model_or_the_pictures_is_refused(model, examples, attack, complaint):
    before = state(model)
    with pytest.raises(ImmunityError, match=complaint):
        adapt(model, examples, attack, seed=0)
    assert state(model) == before
