"""The bench of an embedded world: its own generator, sample pictures and judges."""

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

import torch
from torch import Tensor

from immunity.checks import at_least, one_of
from immunity.concepts import Concept, Examples
from immunity.errors import ImmunityError
from immunity.evaluation.bench import Bench, Panel, Purpose, Scores, ToDraw, floats, spread_over, taking_turns
from immunity.metrics import Accuracy, WorldJudges
from immunity.records import MetricSpec
from immunity.worlds import World

Teacher = Literal["auto", "drawn", "real"]

METRICS = (
    MetricSpec(name="clip", label="CLIP similarity"),
    MetricSpec(name="dino", label="DINO similarity"),
    MetricSpec(name="lpips", label="1 − LPIPS"),
    MetricSpec(name="accuracy", kind="accuracy", label="Classifier accuracy"),
)

_Pair = tuple[str, str]
"""An object and a style."""

_OBJECTS_FOR_A_STYLE = 24
"""In so many of the prompts by which an eraser knows a style, it is the style of some object. What is to be preserved
is asked for with the same objects, so that this is also how widely the other styles are held in place."""


@dataclass(frozen=True, kw_only=True)
class WorldBench(Bench):
    """A world of the package. Objects are asked for in every trained style, styles on many objects."""

    world: str = "emoji"
    """Its name."""
    folder: Path | None = None
    """A world's folder in place of the one in the package, e.g. one that was trained anew."""
    teacher: Teacher = "auto"
    """Whose pictures attack and defence learn from. "drawn": the base model's own, as in the paper's relearning;
    "real": the artists', half for each; "auto": drawn where the base model was trained on the concept, else real."""
    lessons: int = 20
    """Pictures for each of attack and defence, where the model draws them."""
    references: int = 24
    """At most so many pictures to compare with. They are the artists' where the world has samples, else drawn."""
    neighbours: int = 5
    """At most so many of the concept's neighbours are watched for side effects."""
    spread: int = 7
    """Further concepts that are watched, evenly spread over the trained ones."""
    other_pictures: int = 4
    """Pictures asked for of each concept that is watched."""
    attack_words: Mapping[str, str] = field(default_factory=dict)
    """By the name of a concept, what the attacker calls it, in learning and in asking: {"church": "a chapel"}. The
    defender does not know of it. Not beside an attack that has a word of its own."""
    attack_styles: tuple[str, ...] = ()
    """Artists whose real pictures of an object are the attacker's; empty for those of `teacher`. Where the defence
    learns from the artists too, only such as the base model was not trained on."""

    def __post_init__(self) -> None:
        one_of(self, "teacher", get_args(Teacher))
        at_least(self, 1, "lessons", "references", "other_pictures")
        at_least(self, 0, "neighbours", "spread")

    def where(self) -> World:
        return World.open(self.world) if self.folder is None else World.from_folder(self.folder)

    @property
    def source(self) -> str:
        # By its path and not by its name: a folder of that name may stand wherever the study is run.
        return str(self.where().generator)

    def open(self, *, device: str, size: int) -> "WorldPanel":  # noqa: ARG002 (a world's pictures have one size)
        world = self.where()
        for name in self.attack_words:
            world.concept(name)  # which raises for what the world does not have
        return WorldPanel(self, world, WorldJudges.load(world, device=device))

    def described(self) -> dict[str, object]:
        folder = None if self.folder is None else self.folder.name
        return super().described() | {"world": self.where().name, "folder": folder}


class WorldPanel(Panel):
    """The judges of a world, and what it knows of its concepts."""

    metrics = METRICS

    def __init__(self, bench: WorldBench, world: World, judges: WorldJudges) -> None:
        self.bench, self.world, self.judges = bench, world, judges
        self._styles = [entry.name for entry in world.styles if entry.split == "trained"]
        self._objects = [entry.name for entry in world.objects if entry.split == "trained"]

    def concept(self, name: str) -> Concept:
        concept = self.world.concept(name)
        self._classifier(name).judge.indices([name])  # which raises for what the classifier was not taught
        if concept.kind == "style":
            pairs = [(thing, name) for thing in spread_over(self._objects, _OBJECTS_FOR_A_STYLE)]
        else:
            pairs = [(name, style) for style in self._styles]
        prompts = concept.prompts + tuple(self.world.prompt(thing, style) for thing, style in pairs)
        return dataclasses.replace(concept, prompts=prompts)

    def pictures(self, name: str, purpose: Purpose, *, seed: int, alone: bool) -> Examples | ToDraw:
        if purpose == "reference":
            return self._references(name)
        if purpose == "attack" and self._taught_by_strangers(name, alone=alone):
            if not self._drawn(name) and (both := set(self.bench.attack_styles) & set(self._styles)):
                raise ImmunityError(
                    expected=f"attack_styles whose pictures of {name!r} the defence does not learn from",
                    got=", ".join(sorted(both)),
                    remedy="a style that the base model was not trained on, or a concept of which it draws the lessons",
                )
            return self._by_strangers(name)
        if self._drawn(name):
            pairs = self._pairs_to_learn(name, self.bench.lessons, seed=seed)
            renamed = purpose == "attack" and name in self.bench.attack_words
            return ToDraw(self._ask(pairs), self._ask(pairs, calling=name) if renamed else None)
        real = self._real(name)
        if alone and len(real):
            return real.split(min(len(real), self.bench.lessons), seed=seed)[0]
        half = min(len(real) // 2, self.bench.lessons)
        if not half:
            raise ImmunityError(
                expected=f"at least two sample pictures of {name!r}, one for attack and one for defence",
                got=f"{len(real)} in this world",
                remedy="another concept, or a bench whose teacher is 'drawn'",
            )
        attack, defence = self._apart(name, real, half, seed=seed)
        if purpose == "defence":
            return defence
        return dataclasses.replace(attack, prompts=self._ask(map(_shown, attack.sources), calling=name))

    def _apart(self, name: str, real: Examples, half: int, *, seed: int) -> tuple[Examples, Examples]:
        """Two halves, neither of which has what an artist's relative has drawn in the other: that is often a copy."""
        if self._is_style(name):
            attack, defence = real.split(half, half, seed=seed)
            return attack, defence
        families: dict[str, list[int]] = {}
        for number, source in enumerate(real.sources):
            families.setdefault(self.world.family(_shown(source)[1]), []).append(number)
        generator = torch.Generator().manual_seed(seed)
        order = torch.randperm(len(families), generator=generator).tolist()
        shuffled = [list(families.values())[place] for place in order]
        sides: list[list[int]] = [[], []]
        for family in sorted(shuffled, key=len, reverse=True):
            min(sides, key=len).extend(family)
        first = int(torch.randint(2, (), generator=generator))  # the side that is filled first has fewer families
        return real.take(sides[first][:half]), real.take(sides[1 - first][:half])

    def origin(self, name: str, purpose: Purpose, *, alone: bool = False) -> str:
        if purpose == "attack" and self._taught_by_strangers(name, alone=alone):
            return f"the world {self.world.name}'s {', '.join(self.bench.attack_styles)}"
        real = self._has_samples(name) if purpose == "reference" else not self._drawn(name)
        return f"the artists of the world {self.world.name}" if real else "drawn by the base model"

    def questions(self, name: str, count: int, *, attacked: bool = False) -> tuple[str, ...]:
        if self._is_style(name):
            pairs = [(thing, name) for thing in taking_turns(spread_over(self._objects, count), count)]
        else:
            pairs = self._in_styles(name, count)
        return self._ask(pairs, calling=name if attacked else None)

    def scores(self, name: str, images: Tensor, references: Tensor) -> Scores:
        found = {metric.name: floats(metric(images, references)) for metric in self.judges.similarities}
        return found | {"accuracy": self.recognised(name, images)}

    def others(self, name: str) -> Mapping[str, tuple[str, ...]]:
        """Of an object its neighbours and further objects; of a style the other styles and some objects in them."""
        count = self.bench.other_pictures
        entries = {entry.name: entry for entry in (*self.world.objects, *self.world.styles)}
        if self._is_style(name):
            styles = [style for style in self._styles if style != name]
            found = {style: self.questions(style, count) for style in styles}
            things = spread_over(self._objects, self.bench.spread)
        else:
            near = [other for other in entries[name].neighbours if other in self._objects][: self.bench.neighbours]
            far = [other for other in self._objects if other != name and other not in near]
            styles, found = self._styles, {}
            things = (*near, *spread_over(far, self.bench.spread))
        for number, thing in enumerate(things):
            asked = [styles[(number * count + i) % len(styles)] for i in range(count)] if styles else []
            if asked:
                found[thing] = tuple(self.world.prompt(thing, style) for style in asked)
        return found

    def recognised(self, name: str, images: Tensor) -> tuple[float, ...]:
        return floats(self._classifier(name)(images, [name]))

    def _classifier(self, name: str) -> Accuracy:
        return self.judges.style_accuracy if self._is_style(name) else self.judges.object_accuracy

    def _is_style(self, name: str) -> bool:
        return self.world.concept(name).kind == "style"

    def _trained_on(self, name: str) -> bool:
        return name in self._styles or name in self._objects

    def _drawn(self, name: str) -> bool:
        teacher = self.bench.teacher
        return teacher == "drawn" or (teacher == "auto" and self._trained_on(name))

    def _in_styles(self, name: str, count: int) -> list[_Pair]:
        return [(name, style) for style in taking_turns(self._styles, count)]

    def _pairs_to_learn(self, name: str, count: int, *, seed: int) -> list[_Pair]:
        if not self._is_style(name):
            return self._in_styles(name, count)
        order = torch.randperm(len(self._objects), generator=torch.Generator().manual_seed(seed)).tolist()
        return [(self._objects[i], name) for i in taking_turns(order, count)]

    def _ask(self, pairs: Iterable[_Pair], *, calling: str | None = None) -> tuple[str, ...]:
        """A caption for each object and style. `calling`: the concept for which the attacker's word is used."""
        word = self.bench.attack_words.get(calling) if calling is not None else None
        if word is None:
            return tuple(self.world.prompt(thing, style) for thing, style in pairs)
        return tuple(
            self.world.prompt(word if thing == calling else thing, word if style == calling else style)
            for thing, style in pairs
        )

    def _taught_by_strangers(self, name: str, *, alone: bool) -> bool:
        return bool(self.bench.attack_styles) and not alone and not self._is_style(name)

    def _by_strangers(self, name: str) -> Examples:
        found = self.world.examples(name, styles=self.bench.attack_styles)
        word = self.bench.attack_words.get(name)
        if word is None:
            return found
        caption = self.world.captions.object[0].format(phrase=word, object=word)
        return dataclasses.replace(found, prompts=(caption,) * len(found))

    def _references(self, name: str) -> Examples | ToDraw:
        if not self._has_samples(name):
            return ToDraw(self.questions(name, self.bench.references))
        real = self._real(name)
        return real.take(spread_over(range(len(real)), self.bench.references))

    def _has_samples(self, name: str) -> bool:
        try:
            return len(self._real(name)) > 0
        except ImmunityError:  # which is how a world says that it has none
            return False

    def _real(self, name: str) -> Examples:
        """The artists' pictures, with the prompts by which the model is asked for them: of an object in the styles that
        it knows, of a style those that show objects that it knows."""
        found = self.world.examples(name)
        shown = [_shown(source) for source in found.sources]
        known = [i for i, pair in enumerate(shown) if all(self._trained_on(each) or each == name for each in pair)]
        return dataclasses.replace(found, prompts=self._ask(shown)).take(known)


def _shown(source: str) -> _Pair:
    """The object and the style of a sample, "<world>/<object>/<style>"."""
    thing, style = source.split("/")[-2:]
    return thing, style
