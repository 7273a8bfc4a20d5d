import dataclasses
import json

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from immunity import Delta, ImmunityError, Provenance
from immunity.deltas import hash_tensors


class Stub:
    """The little that a delta sees of a model."""

    def __init__(self, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.theta = {name: nn.Parameter(torch.randn(2, 3, generator=generator)) for name in ("unet.a", "unet.b")}
        self.name = f"stub {seed}"
        self.parents: tuple[str, ...] = ()
        self.base_hash = hash_tensors(self.theta)
        self.dtype = torch.float32

    def parameters(self, group: str) -> dict[str, nn.Parameter]:
        assert group == "all"
        return self.theta


@dataclasses.dataclass(frozen=True, kw_only=True)
class Method:
    lr: float = 1e-4
    blocks: tuple[int, ...] = (1, 2)


def delta(model: Stub, name: str = "unet.a", value: float = 1.0) -> Delta:
    return Delta({name: torch.full((2, 3), value)}, Provenance.of(Method(), model, seed=3))


def test_provenance_holds_every_field_and_the_state_of_the_model():
    model = Stub()
    first = delta(model)
    first.apply(model)
    made = Provenance.of(Method(lr=0.5), model, seed=7, inputs={"concept": "church"})
    assert made.method == "Method"
    assert made.config == {"lr": 0.5, "blocks": [1, 2], "inputs": {"concept": "church"}}
    assert (made.base, made.base_hash, made.seed) == (model.name, model.base_hash, 7)
    assert made.parents == (first.hash,)
    assert made.dtype == "float32"
    assert "torch" in made.versions


def test_provenance_must_be_plain():
    with pytest.raises(ImmunityError, match="plain values"):
        Provenance(base="m", base_hash="0", method="M", config={"x": object()}, seed=0)


def test_revert_is_exact_and_restores_the_parents():
    model = Stub()
    before = {name: value.detach().clone() for name, value in model.theta.items()}
    with delta(model).applied(model):
        assert (model.theta["unet.a"] == 1).all()
        assert len(model.parents) == 1
    assert all(torch.equal(before[name], model.theta[name]) for name in before)
    assert model.parents == ()


def test_another_base_is_refused_unless_asked():
    foreign = delta(Stub(1))
    with pytest.raises(ImmunityError, match="made on: stub 1"):
        foreign.apply(Stub(0))
    foreign.apply(Stub(0), check=False)


def test_a_missing_parent_is_refused():
    model = Stub()
    with delta(model).applied(model):
        second = delta(model, "unet.b")
    with pytest.raises(ImmunityError, match="carries the deltas"):
        second.apply(model)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [({"unet.c": torch.zeros(2, 3)}, "parameter unet.c"), ({"unet.a": torch.zeros(3, 2)}, "shape")],
)
def test_a_delta_that_does_not_fit_changes_nothing(tensors, message):
    model = Stub()
    with pytest.raises(ImmunityError, match=message):
        Delta({"unet.b": torch.zeros(2, 3)} | tensors, Provenance.of(Method(), model, seed=0)).apply(model)
    assert hash_tensors(model.theta) == model.base_hash


def composed_and_applied(model: Stub, deltas: list[Delta]) -> str:
    with Delta.compose(deltas).applied(model):
        return hash_tensors(model.theta)


def test_composition_equals_application_in_order():
    model = Stub()
    first = delta(model, "unet.a", 1.0)
    with first.applied(model):
        second = Delta({"unet.a": torch.full((2, 3), 2.0), "unet.b": torch.zeros(2, 3)}, delta(model).provenance)
        with second.applied(model):
            third = delta(model, "unet.b", 3.0)
            with third.applied(model):
                in_order, parents = hash_tensors(model.theta), model.parents
    assert in_order == composed_and_applied(model, [first, second, third])
    with Delta.compose([Delta.compose([first, second]), third]).applied(model):
        assert hash_tensors(model.theta) == in_order
        assert model.parents == parents
    assert hash_tensors(model.theta) == model.base_hash


def test_a_composition_has_the_dtype_that_all_its_parts_have():
    model = Stub()
    first = delta(model)
    with first.applied(model):
        second = delta(model, "unet.b")
    assert Delta.compose([first, second]).provenance.dtype == "float32"
    half = dataclasses.replace(second, provenance=dataclasses.replace(second.provenance, dtype="bfloat16"))
    mixed = Delta.compose([first, half]).provenance
    assert mixed.dtype == "", "there is no one dtype"
    assert [part["dtype"] for part in mixed.config["deltas"]] == ["float32", "bfloat16"]


def test_composition_needs_deltas_of_one_base():
    with pytest.raises(ImmunityError, match="at least one"):
        Delta.compose([])
    with pytest.raises(ImmunityError, match="one base"):
        Delta.compose([delta(Stub(0)), delta(Stub(1))])


def test_composition_refuses_what_application_in_order_refuses():
    model = Stub()
    first, beside = delta(model), delta(model, "unet.b")
    with first.applied(model):
        upon = delta(model, "unet.b")
    Delta.compose([first, upon])
    for wrong in ([first, beside], [upon, first], [first, upon, upon]):
        with pytest.raises(ImmunityError, match="carries the deltas"):
            Delta.compose(wrong)


def test_capture_copies():
    model = Stub()
    captured = Delta.capture(model.theta, delta(model).provenance)
    with torch.no_grad():
        model.theta["unet.a"].zero_()
    assert not (captured.tensors["unet.a"] == 0).any()
    assert not captured.tensors["unet.a"].requires_grad


def test_files_that_are_not_deltas(tmp_path):
    with pytest.raises(ImmunityError, match="does not exist"):
        Delta.load(tmp_path / "missing.safetensors")
    with pytest.raises(ImmunityError, match="a folder"):
        Delta.load(tmp_path)
    pickle = tmp_path / "model.ckpt"
    torch.save({"a": torch.zeros(1)}, pickle)
    with pytest.raises(ImmunityError, match="pickles"):
        Delta.load(pickle)
    lora = tmp_path / "lora.safetensors"
    save_file({"a": torch.zeros(1)}, lora)
    with pytest.raises(ImmunityError, match="without its provenance"):
        Delta.load(lora)
    for header, message in [("{}", "damaged header"), ('{"format": 99}', "format 99"), ("[]", "damaged header")]:
        save_file({"a": torch.zeros(1)}, lora, metadata={"immunity": header})
        with pytest.raises(ImmunityError, match=message):
            Delta.load(lora)


def test_a_truncated_file(tmp_path):
    path = tmp_path / "delta.safetensors"
    delta(Stub()).save(path)
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(ImmunityError, match="a file that is complete"):
        Delta.load(path)


def test_save_refuses_other_suffixes_and_existing_files(tmp_path):
    with pytest.raises(ImmunityError, match="ends in"):
        delta(Stub()).save(tmp_path / "delta.pt")
    path = tmp_path / "delta.safetensors"
    delta(Stub()).save(path)
    with pytest.raises(ImmunityError, match="does not exist yet"):
        delta(Stub()).save(path)
    delta(Stub(), value=2.0).save(path, force=True)
    assert (Delta.load(path).tensors["unet.a"] == 2).all()


def test_a_header_from_before_dtypes_were_kept(tmp_path):
    header = json.loads(delta(Stub()).provenance.to_json())
    del header["dtype"]
    save_file({"a": torch.zeros(1)}, tmp_path / "delta.safetensors", metadata={"immunity": json.dumps(header)})
    assert Delta.load(tmp_path / "delta.safetensors").provenance.dtype == ""


@pytest.mark.parametrize(
    "changes",
    [
        {"base_hash": 5},
        {"base": None},
        {"parents": [5]},
        {"parents": "abc"},
        {"composed": {}},
        {"versions": 3},
        {"versions": {"torch": 2}},
        {"config": []},
        {"seed": "x"},
        {"dtype": 16},
        {"created": None},
        {"more": 1},
    ],
)
def test_headers_of_the_wrong_types(tmp_path, changes):
    header = json.dumps(json.loads(delta(Stub()).provenance.to_json()) | changes)
    save_file({"a": torch.zeros(1)}, tmp_path / "delta.safetensors", metadata={"immunity": header})
    with pytest.raises(ImmunityError, match="damaged header"):
        Delta.load(tmp_path / "delta.safetensors")


@pytest.mark.parametrize("header", ["[" * 100_000, '{"format":' * 100_000, "9" * 5000])
def test_headers_that_no_reader_gets_through(tmp_path, header):
    save_file({"a": torch.zeros(1)}, tmp_path / "delta.safetensors", metadata={"immunity": header})
    with pytest.raises(ImmunityError, match="damaged header"):
        Delta.load(tmp_path / "delta.safetensors")


@pytest.mark.parametrize("dtype", [torch.int8, torch.bool, torch.complex64])
def test_tensors_that_are_no_weights(tmp_path, dtype):
    refused_by_both_ways(tmp_path, {"unet.a": torch.zeros(2, 3, dtype=dtype)})


def refused_by_both_ways(folder, tensors):
    """What is never written is not read either, should somebody else write it."""
    made = delta(Stub()).provenance
    message = r"finite real numbers; got others in unet\.a"
    with pytest.raises(ImmunityError, match=message):
        Delta(tensors, made).save(folder / "ours.safetensors")
    assert not (folder / "ours.safetensors").exists()
    save_file(tensors, folder / "theirs.safetensors", metadata={"immunity": made.to_json()})
    with pytest.raises(ImmunityError, match=message):
        Delta.load(folder / "theirs.safetensors")


TYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.float8_e4m3fn, torch.float8_e5m2]


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_numbers_that_are_not_finite(tmp_path, dtype, bad):
    values = torch.linspace(-1, 1, 10_000)
    made = delta(Stub()).provenance
    Delta({"unet.a": values.to(dtype), "unet.b": torch.zeros(0)}, made).save(tmp_path / "good.safetensors")
    assert Delta.load(tmp_path / "good.safetensors").tensors["unet.a"].dtype == dtype
    values[7777] = torch.nan if dtype == torch.float8_e4m3fn else bad  # which has no infinities
    refused_by_both_ways(tmp_path, {"unet.a": values.to(dtype)})
