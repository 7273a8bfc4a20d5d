import dataclasses

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from immunity import Examples, ImmunityError
from immunity.poisons import Advdm, Aspl, EncoderAttack, Poisoned
from immunity.poisons.base import Perturbation
from immunity.stepping import DivergedError


def pictures(count: int = 5) -> Examples:
    images = torch.randint(0, 256, (count, 3, 8, 8), generator=torch.Generator().manual_seed(0)).float() / 255
    return Examples(images, ("a church",) * count, tuple("abcdefghij"[:count]), name="church")


@given(budget=st.integers(0, 40), step_size=st.floats(0.1, 60), steps=st.integers(0, 5), batch=st.integers(1, 6))
def test_no_colour_leaves_its_budget_or_the_range(budget, step_size, steps, batch):
    images = pictures().images
    moving = Perturbation(images, budget=budget, step_size=step_size, batch=batch)
    towards = torch.rand(images.shape, generator=torch.Generator().manual_seed(1)) - 0.5
    for _ in range(steps):
        moving.ascend(lambda shown, numbers: (shown * towards[numbers]).mean())
    assert moving.images.min() >= 0
    assert moving.images.max() <= 1
    assert (moving.images - images).abs().max() <= budget / 255 + 1e-6
    if budget and steps:
        at_work = (moving.images - images) * towards.sign()
        assert at_work.min() >= 0, "each colour moves up the loss or stays"
        assert at_work.max() > 0


def test_the_batch_changes_nothing():
    found = []
    for batch in (1, 2, 5):
        moving = Perturbation(pictures().images, budget=8, step_size=1, batch=batch)
        results = [moving.ascend(lambda shown, _: shown.square().mean()) for _ in range(3)]
        found.append((moving.images, [result.loss for result in results]))
    for images, losses in found[1:]:
        assert torch.equal(images, found[0][0])
        assert losses == pytest.approx(found[0][1])


def test_a_loss_that_is_not_finite_is_said_and_changes_nothing():
    moving = Perturbation(pictures().images, budget=8, step_size=1, batch=2)
    with pytest.raises(DivergedError):
        moving.ascend(lambda shown, _: shown.mean() / 0)
    assert torch.equal(moving.images, pictures().images)


def test_a_share_of_the_pictures():
    method, examples = Poisoned(by=Advdm(), share=0.5), pictures(10)
    chosen = method.chosen(examples, seed=3)
    assert len(chosen) == 5
    assert chosen == sorted(set(chosen)) == method.chosen(examples, seed=3)
    assert chosen != method.chosen(examples, seed=4)
    black = torch.zeros_like(examples.images[chosen])
    found = method.among(examples, chosen, black)
    for number in range(10):
        expected = torch.zeros(3, 8, 8) if number in chosen else examples.images[number]
        assert torch.equal(found.images[number], expected)
    assert dataclasses.replace(found, images=examples.images).digest() == examples.digest()


@pytest.mark.parametrize(("count", "share", "poisoned"), [(1, 0.5, 1), (2, 0.25, 1), (3, 0.5, 2), (4, 0, 0), (4, 1, 4)])
def test_a_share_is_at_least_one_picture_unless_it_is_none(count, share, poisoned):
    assert len(Poisoned(by=Advdm(), share=share).chosen(pictures(count), seed=0)) == poisoned


def test_saving_as_jpeg_takes_fine_detail_from_all():
    examples = pictures()
    smooth = dataclasses.replace(examples, images=torch.full_like(examples.images, 0.5))
    fine = torch.randint(0, 2, smooth.images.shape, generator=torch.Generator().manual_seed(1)) * 16 - 8
    noisy = smooth.images + fine / 255
    for quality, left in ((10, 0.3), (95, 2.0)):
        found = Poisoned(by=Advdm(), jpeg=quality).among(smooth, list(range(5)), noisy)
        assert (found.images - smooth.images).std() < left * (noisy - smooth.images).std()
    assert (found.images - smooth.images).std() > 0.3 * (noisy - smooth.images).std()


def test_it_says_all_of_itself():
    described = Poisoned(by=Aspl(rounds=3), share=0.5, jpeg=75).described()
    assert (described["share"], described["jpeg"]) == (0.5, 75)
    assert described["by"]["method"] == "Aspl"
    assert described["by"]["surrogate"]["method"] == "Dreambooth"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Advdm(budget=-1), "budget of at least 0"),
        (lambda: Advdm(step_size=0), "step_size above 0"),
        (lambda: Advdm(batch=0), "batch of at least 1"),
        (lambda: EncoderAttack(steps=-1), "steps of at least 0"),
        (lambda: Aspl(rounds=-1), "rounds of at least 0"),
        (lambda: Poisoned(by=Advdm(), share=1.5), "share=1.5"),
        (lambda: Poisoned(by=Advdm(), share=-0.5), "share of at least 0"),
        (lambda: Poisoned(by=Advdm(), jpeg=0), "jpeg=0"),
    ],
)
def test_settings_that_make_no_sense(make, message):
    with pytest.raises(ImmunityError, match=message):
        make()
