import pytest
import torch

from immunity import Examples, ImmunityError, load
from immunity.adaptations import Batches

PROMPTS = ("a church", "a church", "a church", "a cat")


@pytest.fixture(scope="module")
def model(tiny_folders):
    return load(tiny_folders["sd1"])


@pytest.fixture(scope="module")
def examples() -> Examples:
    images = torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    return Examples(images, PROMPTS, ("a", "b", "c", "d"))


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def pictures(batches: Batches, size: int, count: int, seed: int = 0) -> list[int]:
    """Which pictures the first `count` batches hold, found by their latents' means."""
    seen = []
    for number in range(count):
        batch = batches.draw(size, number, seed=seed, generator=generator())
        distances = (batch.latents[:, None] - batches.latents.mean[None]).flatten(2).norm(dim=2)
        seen += distances.argmin(dim=1).tolist()
    return seen


def narrow(batches: Batches) -> Batches:
    """The same pictures with no spread, so that a sample tells which it is of."""
    batches.latents.spread.zero_()
    return batches


def test_an_epoch_shows_every_picture_once_in_an_order_of_its_own(model, examples):
    batches = narrow(Batches.encode(model, examples))
    seen = pictures(batches, 1, 12)
    epochs = [seen[i : i + 4] for i in (0, 4, 8)]
    assert all(sorted(epoch) == [0, 1, 2, 3] for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 1
    assert pictures(batches, 3, 4) == seen, "the size of a batch changes no order"
    assert pictures(batches, 1, 12) == seen
    assert pictures(batches, 1, 12, seed=1) != seen


def test_mirror_images_are_pictures_too(model, examples):
    plain, mirrored = Batches.encode(model, examples), narrow(Batches.encode(model, examples, mirror=True))
    flipped = model.encode_images(examples.images.flip(-1))
    torch.testing.assert_close(mirrored.latents.mean, torch.cat([plain.latents.mean, flipped]), rtol=1e-5, atol=1e-6)
    assert mirrored.prompts == PROMPTS * 2
    assert sorted(pictures(mirrored, 1, 8)) == list(range(8))


def test_balance_shows_every_prompt_equally_often(model, examples):
    batches = narrow(Batches.encode(model, examples, balance=True))
    shown = [PROMPTS[i] for i in pictures(batches, 1, 6)]
    assert shown.count("a church") == shown.count("a cat") == 3
    assert set(pictures(batches, 1, 6)) == {0, 1, 2, 3}


def test_latents_are_sampled_anew_as_if_encoded_anew(model, examples):
    batches = Batches.encode(model, examples)
    one = examples.take([0])
    single = Batches.encode(model, one)
    drawn = single.draw(1, 0, seed=0, generator=generator(5)).latents
    torch.testing.assert_close(drawn, model.encode_images(one.images, generator(5)), rtol=1e-5, atol=1e-6)
    first, second = (batches.draw(4, 0, seed=0, generator=generator(seed)).latents for seed in (0, 1))
    assert not torch.equal(first, second)


def test_the_conditioning_is_that_of_the_prompts_of_the_batch(model, examples):
    batches = Batches.encode(model, examples)
    batch = batches.draw(3, 0, seed=0, generator=generator())
    assert batch.cached is not None
    expected = model.encode_prompts(batch.prompts).embeddings
    torch.testing.assert_close(batch.conditioning(model).embeddings, expected, rtol=1e-5, atol=1e-6)
    fresh = Batches.encode(model, examples, cache_prompts=False).draw(3, 0, seed=0, generator=generator())
    assert fresh.cached is None
    assert torch.equal(fresh.conditioning(model).embeddings, expected)


def test_no_pictures_are_refused(model, examples):
    with pytest.raises(ImmunityError, match="at least one picture"):
        Batches.encode(model, examples.take([]))
