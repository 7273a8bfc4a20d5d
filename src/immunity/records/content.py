"""What a study writes down: its plan, and what was measured in each cell.

Records hold scores per picture and no aggregate, so a new statistic never needs the models again.
"""

import dataclasses
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Literal, NamedTuple

from immunity.errors import ImmunityError

Role = Literal["base", "erased", "control", "defended", "baseline"]
MetricKind = Literal["similarity", "accuracy", "detection", "quality"]


RECOGNISING: tuple[MetricKind, ...] = ("accuracy", "detection")
"""Those that say whether the concept is there, the finest first."""


@dataclass(frozen=True, kw_only=True)
class MetricSpec:
    """How to read one column of scores."""

    name: str
    kind: MetricKind = "similarity"
    """similarity to references of the concept; accuracy (1 where a classifier sees the concept, or its probability);
    detection (of unsafe content); quality (of the picture, whatever it shows)."""
    higher_is_better: bool = True
    label: str = ""
    """For people, e.g. 'CLIP similarity'; the name if empty."""

    @property
    def shows_concept(self) -> bool:
        """Whether more means more of the concept. Only such scores have a similarity gap ratio: record a distance d
        as 1 − d, as the paper does with LPIPS."""
        return self.kind != "quality" and self.higher_is_better

    @property
    def title(self) -> str:
        return self.label or self.name


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One of the things compared: a model or, for all but the first two roles, an attack on one."""

    name: str
    role: Role
    """base: before anything; erased: the concept removed; control: the attack on the erased model; defended: the same
    attack in spite of a defence; baseline: in spite of a change that is not expected to help."""
    label: str = ""
    config: Mapping[str, object] = field(default_factory=dict)
    """The method that made it and every one of its fields."""
    changes: Literal["model", "pictures"] = "model"
    """What a defence or a baseline changes: the model that is attacked, or the pictures that the attacker has of the
    concept, and of nothing else."""

    @property
    def title(self) -> str:
        return self.label or self.name


class CellKey(NamedTuple):
    concept: str
    seed: int
    arm: str
    subject: str
    """What the attack teaches and the scores look for: the concept, or in a benign cell something unrelated."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a study means to measure. Cells are refused that do not belong to it."""

    title: str
    concepts: tuple[str, ...]
    seeds: tuple[int, ...]
    arms: tuple[Arm, ...]
    metrics: tuple[MetricSpec, ...]
    """The first is the one that pictures are captioned with."""
    benign: tuple[str, ...] = ()
    """Unrelated subjects that the same attack is to teach, before and after the defence."""
    settings: Mapping[str, object] = field(default_factory=dict)
    """Everything else that was chosen: the attack's configuration, sampling, numbers of pictures."""

    def __post_init__(self) -> None:
        for what, names in (
            ("concepts", self.concepts),
            ("seeds", self.seeds),
            ("arms", [arm.name for arm in self.arms]),
            ("metrics", [metric.name for metric in self.metrics]),
        ):
            if not names or len(set(names)) < len(names):
                raise ImmunityError(
                    expected=f"at least one of {what}, each once", got=str(list(names)), remedy="mending the study"
                )
        if not any(metric.shows_concept for metric in self.metrics):
            raise ImmunityError(
                expected="a metric that is higher where there is more of the concept",
                got=", ".join(metric.name for metric in self.metrics),
                remedy="a similarity or an accuracy; a distance d as 1 − d",
            )

    def arm(self, name: str) -> Arm:
        return next(arm for arm in self.arms if arm.name == name)

    def with_role(self, *roles: Role) -> tuple[Arm, ...]:
        return tuple(arm for arm in self.arms if arm.role in roles)

    def cells(self) -> Iterator[CellKey]:
        """Every cell that a complete study has.

        Baselines need no benign cells, though they may have them; and who changes pictures of the concept leaves
        everything else as it is.
        """
        for concept in self.concepts:
            for seed in self.seeds:
                yield from (CellKey(concept, seed, arm.name, concept) for arm in self.arms)
                for subject in self.benign:
                    if subject != concept:
                        for arm in self.with_role("control", "defended"):
                            if arm.changes == "model":
                                yield CellKey(concept, seed, arm.name, subject)

    def extends(self, older: "Plan") -> bool:
        """Whether every cell measured for `older` is one of this plan's, measured in the same way."""
        widened = dataclasses.replace(
            older, title=self.title, concepts=self.concepts, seeds=self.seeds, arms=self.arms, benign=self.benign
        )
        # An erased model that comes later would be another control's, and the old control would stand beside it.
        attacked = older.with_role("base", "erased", "control") == self.with_role("base", "erased", "control")
        return attacked and widened == self and all(
            set(old) <= set(new)
            for old, new in ((older.concepts, self.concepts), (older.seeds, self.seeds), (older.benign, self.benign))
        ) and all(arm in self.arms for arm in older.arms)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Point:
    """What was sampled and scored after some steps of the attack."""

    step: int
    scores: Mapping[str, tuple[float, ...]]
    """For each metric, one score a picture, in the order of the cell's prompts."""
    others: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    """For each other concept asked for, one accuracy a picture: 1 where the classifier sees what was asked for."""
    pictures: tuple[str, ...] = ()
    """The first few pictures, as paths relative to the cell's file. `RecordFolder.write` fills them in."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """Where a cell comes from: enough to make it again, and to see what it cost."""

    base: str
    base_hash: str
    method: str
    """Name of the class of what this arm has and the control has not; empty for the base model."""
    config: Mapping[str, object] = field(default_factory=dict)
    attack: Mapping[str, object] = field(default_factory=dict)
    """Every field of the attack; empty where there is none."""
    deltas: Mapping[str, str] = field(default_factory=dict)
    """Hash of each delta on the model, in the order of application, by what it does: erase, immunize, attack."""
    examples: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Digests of the pictures used, by purpose: 'attack', 'defence', 'reference'; and 'poisoned', where the attacker's
    were changed before they learned from them."""
    sources: Mapping[str, str] = field(default_factory=dict)
    """Where they are from, in words, by the same purposes. Two halves of one folder are of one source."""
    versions: Mapping[str, str] = field(default_factory=dict)
    machine: str = ""
    wall_seconds: float = 0.0
    """Of the process that finished the cell: what another did before it was interrupted does not count."""
    peak_bytes: int = 0
    created: str = ""


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One arm for one concept and one seed."""

    concept: str
    seed: int
    arm: str
    subject: str
    prompts: tuple[str, ...]
    picture_seeds: tuple[int, ...]
    """Picture i of every point is made from prompts[i] and picture_seeds[i]: so arms are paired picture by picture."""
    points: tuple[Point, ...]
    run: Run
    losses: tuple[float, ...] = ()
    """The attack's training loss at every step; NaN where it was not finite."""

    def __post_init__(self) -> None:
        def refuse(expected: str, got: str) -> ImmunityError:
            return ImmunityError(
                expected=expected,
                got=f"{got} (cell {self.concept}, seed {self.seed}, {self.arm})",
                remedy="running the cell again",
            )

        if not self.prompts or len(self.prompts) != len(self.picture_seeds):
            raise refuse("one seed for each prompt", f"{len(self.prompts)} prompts, {len(self.picture_seeds)} seeds")
        steps = [point.step for point in self.points]
        if not steps or steps[0] < 0 or steps != sorted(set(steps)):
            raise refuse("points at rising steps from 0 or later", f"steps {steps}")
        for point in self.points:
            if point.scores.keys() != self.points[0].scores.keys():
                raise refuse("the same metrics at every step", f"{sorted(point.scores)} at step {point.step}")
            for name, scores in point.scores.items():
                if len(scores) != len(self.prompts):
                    raise refuse(f"{len(self.prompts)} scores", f"{len(scores)} of {name} at step {point.step}")
            for name, values in (*point.scores.items(), *point.others.items()):
                if not values or not all(map(math.isfinite, values)):
                    raise refuse("finite scores", f"{values[:4]} of {name} at step {point.step}")
            for picture in point.pictures:
                # A record may come from a stranger, and the report embeds what these paths point at.
                path = PurePosixPath(picture)
                if path.is_absolute() or ".." in path.parts or path.suffix != ".png":
                    raise refuse("pictures as relative paths to .png files", repr(picture))

    @property
    def key(self) -> CellKey:
        return CellKey(self.concept, self.seed, self.arm, self.subject)

    @property
    def steps(self) -> tuple[int, ...]:
        return tuple(point.step for point in self.points)


@dataclass(frozen=True, kw_only=True)
class Diverged:
    """A cell that has no figures, as its training did not stay finite: those that have are the survivors."""

    concept: str
    seed: int
    arm: str
    subject: str
    what: str
    """What was not finite, and when."""

    @property
    def key(self) -> CellKey:
        return CellKey(self.concept, self.seed, self.arm, self.subject)
