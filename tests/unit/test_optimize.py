import pytest
import torch
from torch import nn

from immunity import ImmunityError
from immunity.models import thawed
from immunity.optimize import Checkpoint, Journal, Loop, fit, identity
from immunity.optimizers import AdamW, Sgd
from immunity.stepping import DivergedError, Stepper, StepResult


def weights(seed: int = 0, **options) -> nn.Parameter:
    return nn.Parameter(torch.randn(5, generator=torch.Generator().manual_seed(seed)).to(**options))


def noisy_square(parameter: nn.Parameter):
    def loss(step: int, generator: torch.Generator) -> torch.Tensor:
        return (parameter - torch.randn(5, generator=generator)).square().mean()

    return loss


def test_fit_descends_and_records_every_step():
    parameter = weights()
    results = fit(lambda step, _: parameter.square().sum(), [parameter], steps=200, seed=0, optimizer=AdamW(lr=0.05))
    assert len(results) == 200
    assert results[-1].loss < 1e-2 * results[0].loss


def test_fit_equals_torch_written_out():
    parameter, other = weights(), weights()
    fit(noisy_square(parameter), [parameter], steps=10, seed=3, optimizer=AdamW(lr=0.1), clip=0.5)
    optimizer = torch.optim.AdamW([other], lr=0.1, weight_decay=1e-2, fused=True)
    generator = torch.Generator().manual_seed(3)
    for step in range(10):
        optimizer.zero_grad()
        noisy_square(other)(step, generator).backward()
        nn.utils.clip_grad_norm_([other], 0.5)
        optimizer.step()
    assert torch.equal(parameter, other)


def test_the_seed_decides():
    runs = []
    for seed in (0, 0, 1):
        parameter = weights()
        fit(noisy_square(parameter), [parameter], steps=3, seed=seed, optimizer=Sgd(lr=0.1))
        runs.append(parameter.detach().clone())
    assert torch.equal(runs[0], runs[1])
    assert not torch.equal(runs[0], runs[2])


class KilledError(Exception):
    pass


@pytest.mark.parametrize("optimizer", [AdamW(lr=0.1), Sgd(lr=0.1, momentum=0.9), Sgd(lr=0.1)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_killed_run_resumes_to_the_same_bits(tmp_path, optimizer, dtype):
    def run(parameter, checkpoint=None, kill_at=None):
        def on_step(done: int, result: StepResult) -> None:
            if done == kill_at:
                raise KilledError

        return fit(
            noisy_square(parameter),
            [parameter],
            steps=20,
            seed=1,
            optimizer=optimizer,
            checkpoint=checkpoint,
            on_step=on_step,
        )

    whole = weights(dtype=dtype)
    expected = run(whole)
    checkpoint = Checkpoint(path=tmp_path / "state.safetensors", identity="run", every=4)
    killed = weights(dtype=dtype)
    with pytest.raises(KilledError):
        run(killed, checkpoint, kill_at=11)  # after the saving at 8
    resumed = weights(dtype=dtype)
    assert run(resumed, checkpoint) == expected
    assert torch.equal(resumed, whole)
    again = weights(dtype=dtype)
    assert run(again, checkpoint) == expected, "a finished run repeats no step"
    assert torch.equal(again, whole)


def test_two_levels_resume_together(tmp_path):
    def run(checkpoint=None, stop=12):
        low, high = weights(0), weights(1)
        down, up = Stepper([low], AdamW(lr=0.1)), Stepper([high], AdamW(lr=0.05), clip=1.0, maximize=True)
        loop = Loop({"down": down, "up": up}, steps=stop, seed=0, checkpoint=checkpoint)

        def body(step, generator):
            loss = (low * high + torch.randn(5, generator=generator)).square().mean()
            return (up if step % 3 == 2 else down).step(loss)

        results = loop.run(body)
        assert low.grad is None
        assert high.grad is None
        return results, low.detach(), high.detach()

    results, low, high = run()
    checkpoint = Checkpoint(path=tmp_path / "state.safetensors", identity=identity({"seed": 0}), every=5)
    run(checkpoint, stop=7)
    again = run(checkpoint)
    assert again[0] == results
    assert torch.equal(again[1], low)
    assert torch.equal(again[2], high)


def test_maximize_climbs_and_touches_only_its_own():
    mine, other = weights(0), weights(1)
    before = other.detach().clone()
    stepper = Stepper([mine], Sgd(lr=0.01), maximize=True)
    losses = [stepper.step(((mine - 3) * other).square().mean()).loss for _ in range(5)]
    assert losses == sorted(losses)
    assert torch.equal(other, before)
    assert other.grad is None


def test_small_steps_are_not_lost_in_half_precision():
    parameter = nn.Parameter(torch.ones(1, dtype=torch.bfloat16))
    stepper = Stepper([parameter], Sgd(lr=1e-4))
    for _ in range(100):
        stepper.step(parameter.sum())
    # One step of 1e-4 is far below bfloat16's spacing at 1; a hundred of them are above it.
    assert parameter.item() == torch.tensor(0.99).bfloat16().item()


def test_reset_forgets_the_moments():
    parameter, fresh = weights(), weights()
    stepper = Stepper([parameter], AdamW(lr=0.1))
    for _ in range(3):
        stepper.step(parameter.square().sum())
    with torch.no_grad():
        parameter.copy_(fresh)
    stepper.reset()
    stepper.step(parameter.square().sum())
    Stepper([fresh], AdamW(lr=0.1)).step(fresh.square().sum())
    assert torch.equal(parameter, fresh)


def test_divergence_is_named_and_changes_nothing():
    parameter = weights()
    before = parameter.detach().clone()

    def loss(step, generator):
        return parameter.sum() * (torch.inf if step == 2 else 0.0)

    with pytest.raises(DivergedError, match="after 2 steps") as caught:
        fit(loss, [parameter], steps=5, seed=0, optimizer=Sgd())
    assert caught.value.step == 2
    assert torch.equal(parameter, before)


def test_thawed_restores():
    frozen, free = weights().requires_grad_(False), weights()
    with thawed([frozen, free]):
        assert frozen.requires_grad
    assert not frozen.requires_grad
    assert free.requires_grad


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: AdamW(lr=-1.0), "not negative"),
        (lambda: Sgd(lr=float("nan")), "not negative"),
        (lambda: Stepper([], AdamW()), "parameters to train"),
        (lambda: Stepper([weights()], AdamW(), clip=0.0), "clip above zero"),
        (lambda: Loop({}, steps=-1, seed=0), "number of steps"),
        (lambda: Journal(every=0), "every one or more"),
    ],
)
def test_bad_settings(build, message):
    with pytest.raises(ImmunityError, match=message):
        build()


def test_a_checkpoint_of_another_run_or_a_broken_one_is_refused(tmp_path):
    path = tmp_path / "state.safetensors"
    Checkpoint(path=path, identity="one").write({"a": torch.zeros(1)})
    with pytest.raises(ImmunityError, match="of another run"):
        Checkpoint(path=path, identity="two").read()
    path.write_bytes(b"broken")
    with pytest.raises(ImmunityError, match="can be read"):
        Checkpoint(path=path, identity="one").read()


def channels_last(seed: int) -> torch.Tensor:
    drawn = torch.randn(4, 3, 3, 3, generator=torch.Generator().manual_seed(seed))
    return drawn.contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("laid_out", [torch.contiguous_format, torch.channels_last])
def test_a_gradient_may_lie_otherwise_in_memory_than_its_parameter(laid_out, tmp_path):
    towards = channels_last(1)

    def trained(steps, path=None):
        parameter = nn.Parameter(channels_last(0).contiguous(memory_format=laid_out))
        # The gradient is laid out as `towards` is, whatever the parameter's own order.
        checkpoint = path and Checkpoint(path=path, identity="it", every=2)
        fit(
            lambda *_: _Towards.apply(parameter, towards),
            [parameter],
            steps=steps,
            seed=0,
            optimizer=AdamW(lr=0.1, weight_decay=0.1),
            clip=None,
            checkpoint=checkpoint,
        )
        return parameter.detach().contiguous()

    plain = channels_last(0).contiguous().requires_grad_()
    reference = torch.optim.AdamW([plain], lr=0.1, weight_decay=0.1, foreach=False, fused=False)
    for _ in range(4):
        plain.grad = (plain.detach() - towards).contiguous()
        reference.step()
    assert torch.allclose(trained(4), plain.detach(), atol=1e-6)
    trained(2, tmp_path / "state.safetensors")
    assert torch.equal(trained(4, tmp_path / "state.safetensors"), trained(4))


class _Towards(torch.autograd.Function):
    """Half the squared distance, with a gradient in the order of `towards`."""

    @staticmethod
    def forward(ctx, parameter, towards):
        ctx.save_for_backward(parameter, towards)
        return (parameter - towards).square().sum() / 2

    @staticmethod
    def backward(ctx, outer):
        parameter, towards = ctx.saved_tensors
        return (outer * torch.empty_like(towards).copy_(parameter - towards), None)
