"""Groups of flags that several verbs share."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from immunity.models import DiffusionModel


@dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """Which model, and where it runs."""

    model: str
    """A diffusers folder, a world (emoji), or a hub id (owner/name)."""
    deltas: tuple[Path, ...] = ()
    """Deltas to apply to it, in order."""
    device: str = "cpu"
    """cpu, cuda, cuda:1, …"""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Of the denoiser and the text encoder."""

    def load(self) -> "DiffusionModel":
        from immunity.loading import load

        return load(self.model, deltas=self.deltas, device=self.device, dtype=self.dtype)


@dataclass(frozen=True, kw_only=True)
class OutputOptions:
    """Where the result goes."""

    out: Path
    """The file or folder to write."""
    force: bool = False
    """Replace what is there."""

    def check(self) -> None:
        """Refuses an existing result before the work and not after it."""
        from immunity.atomic import refuse_existing

        refuse_existing(self.out, force=self.force)
