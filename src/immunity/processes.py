"""Several processes at one training, as `accelerate launch` starts them: equal shares of every batch, the same steps.

Every process draws the whole batch, with the same seed, and computes its own rows of it; gradients are averaged. So the
number of processes is no hyper-parameter: a run gives the same, up to the order of a sum, on one device and on many.
"""

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from immunity.errors import ImmunityError

if TYPE_CHECKING:
    from torch import Tensor


def started() -> int:
    """How many processes the launcher started; 1 without one."""
    return int(os.environ.get("WORLD_SIZE", "1"))


@contextmanager
def together(device: str) -> Iterator[None]:
    """In this block the processes of the launcher work at one training; it begins and ends for all of them at once.

    `device` is where they compute. A process that fails leaves the group standing, and ends: the others wait for it
    somewhere else, so closing the group in order would wait for them, for ever. The launcher ends them.
    """
    if started() == 1:
        yield
        return
    from accelerate import PartialState

    # Joins the group by the backend that the device needs, and not the best that the machine has.
    state = PartialState(cpu=device == "cpu")
    yield
    wait()
    state.destroy_process_group()
    PartialState._reset_state()


def own_device(name: str) -> str:
    """Gives each process of several a GPU of its own: cuda becomes cuda:LOCAL_RANK."""
    local = os.environ.get("LOCAL_RANK")
    return f"{name}:{local}" if started() > 1 and local is not None and name == "cuda" else name


def count() -> int:
    """How many processes work at this training."""
    distributed = _group()
    return 1 if distributed is None else distributed.get_world_size()


def is_first() -> bool:
    """Whether this is the process that writes and reports."""
    distributed = _group()
    return distributed is None or distributed.get_rank() == 0


def wait() -> None:
    """Until every process has come here."""
    distributed = _group()
    if distributed is not None:
        distributed.barrier()


def rows(size: int) -> slice:
    """This process's share of a batch of `size`."""
    distributed = _group()
    if distributed is None:
        return slice(None)
    processes = distributed.get_world_size()
    if size % processes:
        raise ImmunityError(
            expected=f"batches that {processes} processes can share equally",
            got=f"{size} pictures",
            remedy=f"--batch {(size // processes + 1) * processes}",
        )
    share = size // processes
    return slice(distributed.get_rank() * share, (distributed.get_rank() + 1) * share)


def average(tensors: "Sequence[Tensor]") -> None:
    """Each tensor becomes its mean over the processes, in place."""
    distributed = _group()
    if distributed is None:
        return
    for under_way in [distributed.all_reduce(tensor, async_op=True) for tensor in tensors]:
        under_way.wait()
    for tensor in tensors:
        tensor /= distributed.get_world_size()


def _group():  # type: ignore[no-untyped-def]
    """`torch.distributed` while there is a group; PyTorch is imported by whoever opens one."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.distributed.is_available() or not torch.distributed.is_initialized():
        return None
    return torch.distributed
