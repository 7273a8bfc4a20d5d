"""Scores of one model's pictures, outside a study: what `immunity measure` writes."""

import statistics
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from immunity import typed_json
from immunity.atomic import replacing
from immunity.concepts import Examples
from immunity.evaluation.bench import Panel, Scores, ToDraw
from immunity.records import MetricSpec

VERSION = 1

Draw = Callable[[tuple[str, ...]], Examples]
"""Draws one picture a prompt."""


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """One score a picture for each metric."""

    concept: str
    pictures: tuple[str, ...]
    """File names, or how each was drawn."""
    metrics: tuple[MetricSpec, ...]
    scores: Scores
    references: tuple[str, ...]
    """Where the pictures are from that these were compared with."""
    model: str = ""
    base_hash: str = ""
    deltas: tuple[str, ...] = ()
    """Of the model that drew the pictures; empty for pictures from a folder."""

    def save(self, path: Path, *, force: bool = False) -> None:
        with replacing(path, force=force) as temporary:
            temporary.write_text(
                typed_json.dumps(self, format="immunity.measurement", version=VERSION), encoding="utf-8"
            )

    @classmethod
    def load(cls, path: Path) -> "Measurement":
        return typed_json.read(cls, path, format="immunity.measurement", version=VERSION)

    def means(self) -> dict[str, float]:
        """Over the pictures, by the metric's title."""
        return {metric.title: statistics.fmean(self.scores[metric.name]) for metric in self.metrics}

    def table(self) -> str:
        """One row a picture, then mean and standard deviation."""
        width = max(map(len, (*self.pictures, "standard deviation")))
        columns = [self.scores[metric.name] for metric in self.metrics]
        rows = [(name, values) for name, *values in zip(self.pictures, *columns, strict=True)]
        rows.append(("mean", [statistics.fmean(column) for column in columns]))
        rows.append(("standard deviation", [statistics.pstdev(column) for column in columns]))
        titles = "".join(f"  {metric.title:>19}" for metric in self.metrics)
        lines = [name.ljust(width) + "".join(f"  {value:19.3f}" for value in values) for name, values in rows]
        return "\n".join([" " * width + titles, *lines])


def references(panel: Panel, concept: str, *, draw: Draw, seed: int) -> Examples:
    """What pictures of the concept are compared with; `draw` is for where the bench has no pictures of it."""
    panel.concept(concept)
    source = panel.pictures(concept, "reference", seed=seed, alone=True)
    return draw(source.prompts) if isinstance(source, ToDraw) else source


def measure(panel: Panel, concept: str, pictures: Examples, compared_with: Examples) -> Measurement:
    """Scores `pictures` as pictures of the concept."""
    return Measurement(
        concept=concept,
        pictures=pictures.sources,
        metrics=panel.metrics,
        scores=panel.scores(concept, pictures.images, compared_with.images),
        references=compared_with.sources,
    )
