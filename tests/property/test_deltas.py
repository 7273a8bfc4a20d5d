import tempfile
from pathlib import Path

import torch
from hypothesis import given
from hypothesis import strategies as st

from immunity import Delta, Provenance
from immunity.deltas import hash_tensors

json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
provenances = st.builds(
    Provenance,
    base=st.text(max_size=8),
    base_hash=st.text("0123456789abcdef", max_size=8),
    method=st.text(max_size=8),
    config=st.dictionaries(st.text(max_size=5), json_values, max_size=4),
    seed=st.integers(0, 2**63 - 1),
    parents=st.lists(st.text(max_size=4), max_size=3).map(tuple),
)
dtypes = st.sampled_from([torch.float32, torch.float16, torch.bfloat16, torch.float64])
shapes = st.lists(st.integers(1, 4), max_size=3)


@st.composite
def tensors(draw):
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    names = draw(st.lists(st.text("abc.", min_size=1, max_size=6), unique=True, max_size=4))
    return {name: torch.randn(draw(shapes), generator=generator).to(draw(dtypes)) for name in names}


@given(tensors=tensors(), provenance=provenances)
def test_save_and_load_are_inverse(tensors, provenance):
    saved = Delta(tensors, provenance)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "delta.safetensors"
        saved.save(path)
        loaded = Delta.load(path)
    assert loaded.provenance == provenance
    assert loaded.hash == saved.hash
    assert loaded.tensors.keys() == tensors.keys()
    assert all(torch.equal(loaded.tensors[name], value) for name, value in tensors.items())


@given(tensors=tensors())
def test_the_hash_ignores_order_and_layout_only(tensors):
    reordered = dict(reversed(tensors.items()))
    strided = {name: value.mT.contiguous().mT if value.ndim > 1 else value for name, value in reordered.items()}
    assert hash_tensors(strided) == hash_tensors(tensors)
    for name, value in tensors.items():
        assert hash_tensors(tensors | {name: value + 1}) != hash_tensors(tensors)
        assert hash_tensors(tensors | {name: value[None]}) != hash_tensors(tensors)
        assert hash_tensors({other: tensors[other] for other in tensors if other != name}) != hash_tensors(tensors)
