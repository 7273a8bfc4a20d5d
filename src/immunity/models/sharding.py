"""A denoiser that is too large for one device, split over several processes (FSDP)."""

from typing import Any

import torch
from torch import Tensor, nn

from immunity import processes
from immunity.errors import ImmunityError
from immunity.models.base import DiffusionModel


def shard(model: DiffusionModel, *, whole: str, device: torch.device | str) -> None:
    """Leaves this process its share of the denoiser's weights, on its device; a block's are gathered while it runs.

    The group `whole` stays whole in every process: what is to be trained, merged or written must be in it. Call it once
    the deltas are applied, in all processes, and before anything is attached. Other components are moved as they are.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    if processes.count() == 1:
        raise ImmunityError(
            expected="several processes to share the weights", got="one", remedy="accelerate launch --num_processes 2 …"
        )
    device = torch.device(device)
    kept = set(model.parameters(whole).values())
    denoiser = model.components[model.denoiser]
    mesh = init_device_mesh(device.type, (processes.count(),))
    for part in [*_blocks(denoiser), denoiser]:
        settings: Any = {"mesh": mesh, "ignored_params": kept, "reshard_after_forward": True}
        fully_shard(part, **settings)
    for component in model.components.values():
        component.to(device)
    model.settle(device)


def is_shard(value: Tensor) -> bool:
    """Whether other processes have the rest of it."""
    if processes.count() == 1:
        return False
    from torch.distributed.tensor import DTensor

    return isinstance(value, DTensor)


def _blocks(denoiser: nn.Module) -> list[nn.Module]:
    return [block for child in denoiser.children() if isinstance(child, nn.ModuleList) for block in child]
