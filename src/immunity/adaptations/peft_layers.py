"""φ as layers of peft inside the denoiser: LoRA and its relatives."""

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from immunity.adaptations.attached import AdapterFiles, Attached
from immunity.adaptations.base import Adaptation
from immunity.checks import at_least, positive
from immunity.errors import ImmunityError
from immunity.models import DiffusionModel
from immunity.models.sharding import is_shard

ADAPTER = "immunity"
"""peft's name for φ in a module; files do not have it."""
USUAL = ("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")
"""Ends of the names of attention's projections."""
CONVOLUTIONS = ("conv1", "conv2", "conv_shortcut", "downsamplers.0.conv", "upsamplers.0.conv")
"""Ends of the names of a U-Net's convolutions, but for the first and the last."""


@dataclass(frozen=True, kw_only=True)
class LayerAdaptation(Adaptation, ABC):
    """An adaptation whose φ, or a part of it, is beside some layers of the denoiser."""

    rank: int = 4
    """Rank of the addition B A."""
    alpha: float | None = None
    """Scale of the addition, times the rank; None for the rank itself, a scale of one."""
    targets: tuple[str, ...] = USUAL
    """Ends of the names of the layers that get one. The last four of the default are the text's own projections in
    joint attention (Stable Diffusion 3, FLUX.1); a denoiser without such layers is none the worse."""

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self, 1, "rank")
        if self.alpha is not None:
            positive(self, "alpha")
        if not self.targets:
            raise ImmunityError(expected="layers to adapt", got="no targets", remedy="the default targets")


class PeftLayers(Attached):
    """The layers of one peft tuner, inside the denoiser of a model."""

    in_float32: ClassVar[bool] = True
    """Whether φ is float32 beside weights in half precision too. The kinds that rotate or decompose matrices need it;
    to the others it is a detour of every activation, as training updates half precision through float32 copies."""

    def __init__(self, model: DiffusionModel, component: str, tuner: Any) -> None:
        from peft.tuners.tuners_utils import BaseTunerLayer

        self._tuner, self.component = tuner, component
        self.layers: dict[str, Any] = {
            path: module
            for path, module in model.components[component].named_modules()
            if isinstance(module, BaseTunerLayer)
        }
        for path, layer in self.layers.items():
            if is_shard(layer.get_base_layer().weight):
                raise ImmunityError(
                    expected="adapters beside weights that every process has whole",
                    got=f"{path}, which is split over the processes",
                    remedy="other targets, or --whole with a group of parameters that holds them",
                )
        theta = {id(value) for value in model.parameters("all").values()}
        self._phi: dict[str, nn.Parameter] = {}
        self._layer_of: dict[str, Any] = {}
        for path, layer in self.layers.items():
            for name, value in layer.named_parameters():
                if id(value) in theta or ADAPTER not in name.split("."):
                    continue
                if self.in_float32 and value.dtype.itemsize < 4:
                    value.data = value.data.float()
                value.requires_grad_(False)
                self._phi[f"{path}.{_without_adapter(name)}"] = value
                self._layer_of[f"{path}.{_without_adapter(name)}"] = layer

    @abstractmethod
    def initialise(self, name: str, value: Tensor, base: Tensor, generator: torch.Generator) -> None:
        """Fills one parameter of φ in place; `base` is the weight of θ that it is beside."""

    def named_parameters(self) -> Mapping[str, nn.Parameter]:
        return self._phi

    def reset(self, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for name, value in self._phi.items():
                self.initialise(name, value, self._layer_of[name].get_base_layer().weight, generator)

    @contextmanager
    def disabled(self) -> Iterator[None]:
        marks = [value.requires_grad for value in self._phi.values()]
        self._tuner.disable_adapter_layers()
        try:
            yield
        finally:
            self._tuner.enable_adapter_layers()  # which thaws φ
            for value, mark in zip(self._phi.values(), marks, strict=True):
                value.requires_grad_(mark)

    @torch.no_grad()
    def merged(self) -> dict[str, Tensor]:
        values = {}
        for path, layer in self.layers.items():
            weight = layer.get_base_layer().weight
            place, before = weight.data, weight.detach().clone()
            layer.merge()
            values[f"{self.component}.{path}.weight"] = weight.detach().clone()
            layer.unmerge()
            # Taking away what was put in does not give the same bits; and kernels round by where in memory a tensor is,
            # which rotations change.
            weight.data = place
            weight.copy_(before)
        return values

    def files(self) -> AdapterFiles:
        """In peft's names, after that of the denoiser."""
        return {"adapter.safetensors": {f"{self.component}.{name}": value for name, value in self.state_dict().items()}}


@contextmanager
def inside_denoiser(
    model: DiffusionModel, layers: type[PeftLayers], tuner: Any, config: Any, *, seed: int
) -> Iterator[PeftLayers]:
    """Puts the layers of a peft tuner class, with its config, into the model's denoiser for the length of a block."""
    component = model.denoiser
    denoiser = model.components[component]
    widest = max(max(value.shape) for value in denoiser.parameters() if value.ndim > 1)
    if getattr(config, "r", 0) > widest:
        raise ImmunityError(
            expected=f"a rank of at most {widest}, the widest layer's", got=str(config.r), remedy="--rank 4"
        )
    training = denoiser.training
    marks = {value: value.requires_grad for value in denoiser.parameters()}
    try:
        # peft's own initialisers draw from the global generator: its state is kept, and their values replaced.
        with torch.random.fork_rng(devices=[]):
            injected = tuner(denoiser, {ADAPTER: config}, ADAPTER)
    except ValueError as error:
        _take_out(denoiser)  # what was put in before the layer that failed
        _mark(marks)
        raise ImmunityError(
            expected="layers that the denoiser has, of sizes that the adapter can take",
            got=str(error).splitlines()[0],
            remedy="the default targets and rank",
        ) from error
    try:
        denoiser.train(training)
        _mark(marks)  # peft freezes θ, also what somebody trains of it
        phi = layers(model, component, injected)
        _check_all_found(phi.layers, config.target_modules)
        phi.reset(seed)
        yield phi
    finally:
        injected.unload()


def _take_out(denoiser: nn.Module) -> None:
    from peft.tuners.tuners_utils import BaseTunerLayer

    for path, module in list(denoiser.named_modules()):
        if isinstance(module, BaseTunerLayer):
            owner, _, name = path.rpartition(".")
            setattr(denoiser.get_submodule(owner), name, module.get_base_layer())


def _mark(marks: Mapping[nn.Parameter, bool]) -> None:
    for value, mark in marks.items():
        value.requires_grad_(mark)


def _without_adapter(name: str) -> str:
    return ".".join(part for part in name.split(".") if part != ADAPTER)


def is_target(path: str, targets: Collection[str]) -> bool:
    """Whether peft adapts the layer: its name, or the end of it, is among them."""
    return any(path == one or path.endswith(f".{one}") for one in targets)


def _check_all_found(paths: Collection[str], targets: Collection[str]) -> None:
    """Raises for targets that no layer has: the adaptation would be less than it says. Of the default ones and of
    convolutions, not every denoiser has all."""
    named = [one for one in targets if one not in (*USUAL, *CONVOLUTIONS)]
    lost = [one for one in named if not any(is_target(path, [one]) for path in paths)]
    if lost:
        raise ImmunityError(
            expected="layers that the denoiser has", got=f"no {', '.join(sorted(lost))} in it", remedy="other targets"
        )
