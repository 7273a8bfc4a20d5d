"""Named tensors that turn one model into another, with their full provenance."""

import dataclasses
import datetime
import hashlib
import importlib.metadata
import json
import platform
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor, nn

from immunity.atomic import load_tensors, save_tensors
from immunity.errors import ImmunityError
from immunity.filenames import DELTA_KEY

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

FORMAT = 1  # of the header of the file; raised when an older reader would misread a newer file

_PACKAGES = ("immunity", "torch", "diffusers", "transformers", "peft")
_KINDS: Mapping[str, type] = {
    **dict.fromkeys(("base", "base_hash", "method", "dtype", "created"), str),
    **dict.fromkeys(("config", "versions"), dict),
    **dict.fromkeys(("parents", "composed"), list),
    "seed": int,
}
"""What the fields of a provenance are in JSON."""
_EIGHT_BITS = frozenset({torch.float8_e4m3fn, torch.float8_e5m2})
REAL = frozenset({torch.float64, torch.float32, torch.bfloat16, torch.float16}) | _EIGHT_BITS
"""Types of the numbers that weights are made of."""


class Patchable(Protocol):
    """What a delta needs to know of a model. `parents` are the hashes of the deltas applied to it, in order."""

    name: str
    base_hash: str
    parents: tuple[str, ...]
    dtype: torch.dtype

    def parameters(self, group: str) -> Mapping[str, nn.Parameter]: ...


def package_versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """Where a delta comes from: enough to make it again."""

    base: str
    """Name of the base model."""
    base_hash: str
    """SHA-256 of the base model's tensors, before any delta."""
    method: str
    """Name of the class that made it."""
    config: Mapping[str, object]
    """Every field of that class, and what else the method was given, as plain JSON values."""
    seed: int
    dtype: str = ""
    """Of the numbers that the model computed in, such as "bfloat16"; empty where there is no one such type."""
    parents: tuple[str, ...] = ()
    """Hashes of the deltas that the base model carried when this one was made, in order."""
    composed: tuple[str, ...] = ()
    """Hashes of the deltas that were composed into this one, in order; empty for all others."""
    versions: Mapping[str, str] = field(default_factory=package_versions)
    created: str = field(default_factory=now)

    def __post_init__(self) -> None:
        try:
            # JSON turns tuples into lists: normalised here, so that what is loaded equals what was saved.
            plain = json.loads(json.dumps(dict(self.config)))
        except (TypeError, ValueError) as error:
            raise ImmunityError(
                expected="a configuration of plain values",
                got=str(error),
                remedy="dataclasses.asdict(method), paths as strings",
            ) from error
        object.__setattr__(self, "config", plain)

    @classmethod
    def of(
        cls, method: "DataclassInstance", model: Patchable, *, seed: int, inputs: Mapping[str, object] | None = None
    ) -> "Provenance":
        """The provenance of what `method` makes of `model` as it stands.

        `inputs` are what else it was given: concepts, digests of examples, the attack that it defends against.
        """
        config = dataclasses.asdict(method) | ({"inputs": dict(inputs)} if inputs else {})
        return cls.upon(model, method=type(method).__name__, config=config, seed=seed)

    @classmethod
    def upon(cls, model: Patchable, *, method: str, config: Mapping[str, object], seed: int = 0) -> "Provenance":
        """Of what is made of `model` as it stands, by what has other fields than its configuration."""
        return cls(
            base=model.name,
            base_hash=model.base_hash,
            method=method,
            config=config,
            seed=seed,
            dtype=str(model.dtype).removeprefix("torch."),
            parents=model.parents,
        )

    def to_json(self) -> str:
        return json.dumps({"format": FORMAT, **dataclasses.asdict(self)}, sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> "Provenance":
        try:
            values = json.loads(text)
            version = values.pop("format")
            if version != FORMAT:
                raise ImmunityError(
                    expected=f"a delta of format {FORMAT}",
                    got=f"format {version}",
                    remedy="the version of immunity that wrote it",
                )
            values.setdefault("dtype", "")  # older files do not have it
            _check_kinds(values)
            values |= {"parents": tuple(values["parents"]), "composed": tuple(values["composed"])}
            return cls(**values)
        except (AttributeError, KeyError, TypeError, ValueError, RecursionError) as error:
            raise ImmunityError(
                expected="the provenance of a delta", got=f"a damaged header ({error})", remedy="making the delta again"
            ) from error


@dataclass(frozen=True, eq=False)
class Delta:
    """New values of some of a model's parameters.

    `tensors` maps "<component>.<parameter>", e.g. "unet.mid_block.….weight", to the *new value*, not to a difference:
    sums round, replacement does not, so applying and reverting are exact to the bit.
    """

    tensors: Mapping[str, Tensor]
    provenance: Provenance

    @classmethod
    def capture(cls, parameters: Mapping[str, Tensor], provenance: Provenance) -> "Delta":
        """A delta of the parameters' present values (copied to the CPU)."""
        return cls(
            {name: value.detach().to("cpu", copy=True).contiguous() for name, value in parameters.items()}, provenance
        )

    @classmethod
    def compose(cls, deltas: "Sequence[Delta]") -> "Delta":
        """One delta that does what `deltas` do when they are applied in order."""
        if not deltas:
            raise ImmunityError(expected="at least one delta", got="none", remedy="leaving compose out")
        bases = {delta.provenance.base_hash for delta in deltas}
        if len(bases) > 1:
            raise ImmunityError(
                expected="deltas of one base model",
                got=", ".join(f"{delta.provenance.base} ({delta.provenance.base_hash[:12]})" for delta in deltas),
                remedy="making them on the same base",
            )
        tensors: dict[str, Tensor] = {}
        parents = deltas[0].provenance.parents
        for delta in deltas:
            delta._check_parents(parents)
            tensors |= delta.tensors
            parents += delta.lineage
        history = [{"hash": delta.hash, **dataclasses.asdict(delta.provenance)} for delta in deltas]
        first = deltas[0].provenance
        dtypes = {delta.provenance.dtype for delta in deltas}
        provenance = Provenance(
            base=first.base,
            base_hash=first.base_hash,
            method="compose",
            config={"deltas": history},
            seed=first.seed,
            dtype=dtypes.pop() if len(dtypes) == 1 else "",
            parents=first.parents,
            composed=tuple(parent for delta in deltas for parent in delta.lineage),
        )
        return cls(tensors, provenance)

    @cached_property
    def hash(self) -> str:
        """SHA-256 of the tensors alone: the same method run twice gives the same hash."""
        return hash_tensors(self.tensors)

    @property
    def lineage(self) -> tuple[str, ...]:
        """What a model's `parents` grow by when this is applied."""
        return self.provenance.composed or (self.hash,)

    def on(self, model: Patchable) -> "Delta":  # noqa: ARG002 (same signature as `Adapter.on`)
        """Itself, whatever the model."""
        return self

    def apply(self, model: Patchable, *, check: bool = True) -> "Undo":
        """Writes the new values into `model` in place; the answer's `revert()` puts the old ones back, bit for bit.

        Several deltas apply in order and revert in the opposite order. With `check`, a model other than the one that
        the delta was made on (another base, or other deltas already applied) is refused.
        """
        if check:
            self._check_made_for(model)
        parameters = model.parameters("all")
        for name, value in self.tensors.items():
            if name not in parameters:
                raise ImmunityError(
                    expected=f"a model with the parameter {name}",
                    got=model.name,
                    remedy="the model that the delta was made on",
                )
            if parameters[name].shape != value.shape:
                raise ImmunityError(
                    expected=f"{name} of shape {list(value.shape)}",
                    got=f"{list(parameters[name].shape)} in {model.name}",
                    remedy="the model that the delta was made on",
                )
        # In the main memory: on the device they would lie beside whatever is trained in the meantime.
        before = {name: parameters[name].detach().to("cpu", copy=True) for name in self.tensors}
        undo = Undo(model, before, parents=model.parents)
        with torch.no_grad():
            for name, value in self.tensors.items():
                parameters[name].copy_(value)
        model.parents = (*model.parents, *self.lineage)
        return undo

    @contextmanager
    def applied(self, model: Patchable, *, check: bool = True) -> Iterator[None]:
        """`apply` for the length of a block."""
        undo = self.apply(model, check=check)
        try:
            yield
        finally:
            undo.revert()

    def save(self, path: str | Path, *, force: bool = False) -> None:
        """Writes one safetensors file, with the provenance in its header. Raises `ImmunityError` where `load` would."""
        _check_weights(self.tensors, path, remedy="smaller settings, such as a lower learning rate or norm")
        save_tensors(path, self.tensors, {DELTA_KEY: self.provenance.to_json()}, force=force)

    @classmethod
    def load(cls, path: str | Path) -> "Delta":
        """Reads what `save` wrote. Raises `ImmunityError` on anything else; nothing in the file is ever executed."""
        path = Path(path)
        if not path.is_file():
            raise ImmunityError(
                expected="the safetensors file of a delta",
                got=f"{path} ({'a folder' if path.is_dir() else 'which does not exist'})",
                remedy="the file that erase, adapt or immunize wrote",
            )
        tensors, header = load_tensors(
            path,
            expected="the safetensors file of a delta",
            remedy="a file that is complete; pickles (.ckpt, .pt, .bin) are never read",
        )
        if DELTA_KEY not in header:
            raise ImmunityError(
                expected="a delta written by immunity",
                got=f"{path}, a safetensors file without its provenance",
                remedy="the file that erase, adapt or immunize wrote",
            )
        delta = cls(tensors, Provenance.from_json(header[DELTA_KEY]))
        _check_weights(delta.tensors, path, remedy="making the delta again")
        return delta

    def _check_made_for(self, model: Patchable) -> None:
        made = self.provenance
        if made.base_hash != model.base_hash:
            raise ImmunityError(
                expected=f"the model that the delta was made on: {made.base} ({made.base_hash[:12]})",
                got=f"{model.name} ({model.base_hash[:12]})",
                remedy="that model, or check=False if you know that the two are alike",
            )
        self._check_parents(model.parents)

    def _check_parents(self, carried: tuple[str, ...]) -> None:
        made = self.provenance.parents
        if made != carried:
            raise ImmunityError(
                expected=f"a model that carries the deltas {_short(made)}, as when this one was made",
                got=_short(carried),
                remedy="load(…, deltas=[…]) with those deltas in that order",
            )


@dataclass(frozen=True, eq=False)
class Undo:
    """The values that a delta replaced."""

    model: Patchable
    values: Mapping[str, Tensor]
    parents: tuple[str, ...]

    def revert(self) -> None:
        """Puts the old values back, whatever has happened to the parameters since."""
        parameters = self.model.parameters("all")
        with torch.no_grad():
            for name, value in self.values.items():
                parameters[name].copy_(value)
        self.model.parents = self.parents


def hash_tensors(tensors: Mapping[str, Tensor], *, dtype: torch.dtype | None = None) -> str:
    """SHA-256 over names, types, shapes and bytes, in the order of the names. Device and memory layout do not count.

    With a `dtype`, of the values in that type, made one tensor after the other.
    """
    digest = hashlib.sha256()
    for name in sorted(tensors):
        value = tensors[name].detach().to("cpu", dtype).contiguous()
        digest.update(f"{name}|{value.dtype}|{list(value.shape)}|".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def is_finite(value: Tensor) -> bool:
    """Of a tensor of `REAL` numbers: whether none is NaN or infinite."""
    if not value.numel():
        return True
    # One pass, which NaN survives, and no second tensor of that size. PyTorch does not compare eight-bit floats.
    low, high = torch.aminmax(value.float() if value.dtype in _EIGHT_BITS else value)
    return bool(low.isfinite() and high.isfinite())


def _check_kinds(values: Mapping[str, object]) -> None:
    for name, kind in _KINDS.items():
        value = values[name]
        words = value if isinstance(value, list) else ()
        if name == "versions" and isinstance(value, dict):
            words = list(value.values())
        if not isinstance(value, kind) or not all(isinstance(word, str) for word in words):
            raise TypeError(f"{name} is {str(value)[:40]}")


def _check_weights(tensors: Mapping[str, Tensor], path: str | Path, *, remedy: str) -> None:
    for name, value in tensors.items():
        if value.dtype not in REAL or not is_finite(value):
            raise ImmunityError(
                expected="weights that are finite real numbers",
                got=f"others in {name} ({str(value.dtype).removeprefix('torch.')}) in {path}",
                remedy=remedy,
            )


def _short(hashes: Sequence[str]) -> str:
    return "[" + ", ".join(value[:12] for value in hashes) + "]"
