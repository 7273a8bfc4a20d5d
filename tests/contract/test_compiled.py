"""A compiled denoiser is attacked, immunized and asked as any other."""

import pytest
import torch

from immunity import Imma, Lora, adapt, load

from tests import tiny

ATTACK = Lora(rank=2, lr=1e-3, steps=2, batch=2)


@pytest.fixture
def family() -> tiny.Family:
    return "sd1"


def traced(folder):
    """Compiled, but for the last stage, which needs a C++ compiler and minutes."""
    model = load(folder)
    model.components[model.denoiser].compile(backend="aot_eager")
    return model


@pytest.mark.slow
def test_attack_and_defence_are_the_same_but_for_rounding(folder, examples):
    eager, compiled = load(folder), traced(folder)
    for model in (eager, compiled):
        model.losses = adapt(model, examples, ATTACK, seed=0).losses
        model.immune = Imma(steps=4, outer_lr=1e-3)(model, examples, ATTACK, seed=0)
    assert compiled.losses == pytest.approx(eager.losses, rel=1e-3)
    moved, apart = 0.0, 0.0
    for name, before in eager.parameters("attention").items():
        moved += (eager.immune.tensors[name] - before).abs().sum().item()
        apart += (eager.immune.tensors[name] - compiled.immune.tensors[name]).abs().sum().item()
    assert apart < 0.02 * moved
    assert compiled.base_hash == eager.base_hash
    pictures = [model.sample(["image of church"], seeds=[0], steps=2) for model in (eager, compiled)]
    assert torch.allclose(*pictures, atol=1e-2)


def test_it_is_asked_for_when_the_model_is_loaded(folder):
    for wanted in (False, True):
        model = load(folder, compiled=wanted)
        assert (model.components[model.denoiser]._compiled_call_impl is not None) == wanted
