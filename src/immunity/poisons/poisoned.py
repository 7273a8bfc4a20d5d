"""Pictures as an attacker comes by them: some poisoned, some not, perhaps saved again."""

import dataclasses
import io
from dataclasses import dataclass

import torch
from torch import Tensor

from immunity.checks import at_least
from immunity.concepts import Examples
from immunity.errors import ImmunityError
from immunity.pictures import to_bytes
from immunity.poisons.advdm import Advdm
from immunity.poisons.aspl import Aspl
from immunity.poisons.encoder import EncoderAttack
from immunity.poisons.noise import RandomNoise

AnyPoison = Advdm | Aspl | EncoderAttack | RandomNoise


@dataclass(frozen=True, kw_only=True)
class Poisoned:
    """The attacker's pictures, poisoned by who published them: what a study sets beside immunized models."""

    by: AnyPoison
    """How they are poisoned. Who does it knows the attacked model."""
    share: float = 1.0
    """Of the pictures, at least one of them unless it is 0. The others were published before there was a poison, or by
    somebody else."""
    jpeg: int | None = None
    """Quality at which the attacker saves all of them as JPEG, against what is too fine to see; None for not at all."""

    def __post_init__(self) -> None:
        at_least(self, 0, "share")
        if not self.share <= 1 or not (self.jpeg is None or 1 <= self.jpeg <= 95):
            raise ImmunityError(
                expected="a share of the pictures up to 1, and a quality of JPEG from 1 to 95",
                got=f"share={self.share}, jpeg={self.jpeg}",
                remedy="share=0.5, jpeg=75",
            )

    def described(self) -> dict[str, object]:
        return {"method": "Poisoned", "by": self.by.described(), "share": self.share, "jpeg": self.jpeg}

    def chosen(self, examples: Examples, *, seed: int) -> list[int]:
        """The numbers of those that are poisoned, in order."""
        order = torch.randperm(len(examples), generator=torch.Generator().manual_seed(seed))
        count = max(1, round(self.share * len(examples))) if self.share else 0
        return sorted(order[:count].tolist())

    def among(self, examples: Examples, chosen: list[int], poisoned: Tensor) -> Examples:
        """What the attacker learns from, given the chosen pictures in their poisoned form."""
        images = examples.images.clone()
        images[chosen] = poisoned
        if self.jpeg is not None:
            images = torch.stack([_saved(image, self.jpeg) for image in images])
        return dataclasses.replace(examples, images=images)


def _saved(image: Tensor, quality: int) -> Tensor:
    """[3, h, w] in [0, 1], once through a JPEG file."""
    import numpy as np
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(to_bytes(image).permute(1, 2, 0).numpy()).save(file, format="JPEG", quality=quality)
    return torch.from_numpy(np.array(Image.open(file).convert("RGB"))).permute(2, 0, 1).float() / 255
