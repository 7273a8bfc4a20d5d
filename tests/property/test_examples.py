import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from immunity import Examples, ImmunityError


def examples(count: int) -> Examples:
    images = torch.rand(count, 3, 2, 2, generator=torch.Generator().manual_seed(0))
    return Examples(images, tuple(f"p{i}" for i in range(count)), tuple(f"s{i}" for i in range(count)))


@given(sizes=st.lists(st.integers(0, 4), max_size=4), spare=st.integers(0, 3), seed=st.integers(0, 1000))
def test_parts_are_disjoint_and_repeatable(sizes, spare, seed):
    whole = examples(sum(sizes) + spare)
    parts = whole.split(*sizes, seed=seed)
    assert [len(part) for part in parts] == sizes
    sources = [source for part in parts for source in part.sources]
    assert len(set(sources)) == len(sources)
    for part in parts:
        for image, source in zip(part.images, part.sources, strict=True):
            assert torch.equal(image, whole.images[int(source[1:])])
    assert [part.digest() for part in parts] == [part.digest() for part in whole.split(*sizes, seed=seed)]


def test_more_than_there_is():
    with pytest.raises(ImmunityError, match="sum to at most 3"):
        examples(3).split(2, 2, seed=0)


@given(index=st.integers(0, 3), pixel=st.integers(0, 3))
def test_the_digest_sees_pixels_prompts_and_order_but_not_sources(index, pixel):
    one = examples(4)
    renamed = Examples(one.images, one.prompts, ("x",) * 4)
    assert renamed.digest() == one.digest()
    changed = one.images.clone()
    changed[index, 0, pixel // 2, pixel % 2] = 1 - changed[index, 0, pixel // 2, pixel % 2]
    assert Examples(changed, one.prompts, one.sources).digest() != one.digest()
    assert Examples(one.images, ("x", *one.prompts[1:]), one.sources).digest() != one.digest()
    assert one.take([3, 2, 1, 0]).digest() != one.digest()
    assert sorted(one.take([3, 2, 1, 0]).image_digests()) == sorted(one.image_digests())
