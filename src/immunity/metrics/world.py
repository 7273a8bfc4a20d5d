"""All judges of an embedded world, opened together."""

import json
from dataclasses import dataclass
from pathlib import Path

from immunity.errors import ImmunityError
from immunity.metrics.classification import Accuracy, Classifier, Probability
from immunity.metrics.clip import ClipJudge, ClipScore, ClipSimilarity
from immunity.metrics.dino import DinoJudge, DinoSimilarity
from immunity.metrics.perceptual import PerceptualJudge, PerceptualSimilarity
from immunity.worlds import World


@dataclass(frozen=True, eq=False, kw_only=True)
class WorldJudges:
    """The five judges of a world, and the metrics that they make."""

    clip: ClipJudge
    dino: DinoJudge
    lpips: PerceptualJudge
    object: Classifier
    style: Classifier

    @classmethod
    def load(cls, world: World, *, device: str = "cpu") -> "WorldJudges":
        """Raises `ImmunityError` if a judge is missing."""
        temperatures = _temperatures(world.judge("object").parent / "judges.json")
        return cls(
            clip=ClipJudge.load(world.judge("clip"), device=device),
            dino=DinoJudge.load(world.judge("dino"), device=device),
            lpips=PerceptualJudge.load(world.judge("lpips"), device=device),
            object=Classifier.load(world.judge("object"), temperature=temperatures["object"], device=device),
            style=Classifier.load(world.judge("style"), temperature=temperatures["style"], device=device),
        )

    @property
    def similarities(self) -> "tuple[ClipSimilarity, DinoSimilarity, PerceptualSimilarity]":
        """Against reference pictures: the parts of the paper's CLIP, DINO and LPIPS."""
        return ClipSimilarity(self.clip), DinoSimilarity(self.dino), PerceptualSimilarity(self.lpips)

    @property
    def object_accuracy(self) -> Accuracy:
        return Accuracy(self.object, "object_accuracy")

    @property
    def object_probability(self) -> Probability:
        return Probability(self.object, "object_probability")

    @property
    def style_accuracy(self) -> Accuracy:
        return Accuracy(self.style, "style_accuracy")

    @property
    def style_probability(self) -> Probability:
        return Probability(self.style, "style_probability")

    @property
    def clip_score(self) -> ClipScore:
        """Against prompts."""
        return ClipScore(self.clip)


def _temperatures(path: Path) -> dict[str, float]:
    try:
        judges = json.loads(path.read_text(encoding="utf-8"))
        return {part: float(judges[part]["temperature"]) for part in ("object", "style")}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ImmunityError(
            expected=f"the classifiers' temperatures in {path}",
            got=f"{type(error).__name__}: {error}",
            remedy="a complete copy of the world's folder",
        ) from error
