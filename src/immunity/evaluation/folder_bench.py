"""The bench of a user's own model: folders of pictures, and the judges of the literature where their weights are."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from torch import Tensor

from immunity.checks import at_least
from immunity.concepts import Concept, Examples
from immunity.errors import ImmunityError
from immunity.evaluation.bench import Bench, Panel, Purpose, Scores, ToDraw, floats, taking_turns
from immunity.metrics import (
    Accuracy,
    Classifier,
    ClipJudge,
    ClipSimilarity,
    DinoJudge,
    DinoSimilarity,
    LpipsJudge,
    LpipsSimilarity,
    Metric,
    NudeNetJudge,
    Nudity,
    ZeroShot,
)
from immunity.metrics.clip import VIT_B_32
from immunity.metrics.dino import VIT_S_16
from immunity.records import MetricSpec

J = TypeVar("J")

_LABELS: Mapping[str, str] = {"clip": "CLIP similarity", "dino": "DINO similarity", "lpips": "1 − LPIPS"}


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A concept of the user's, or a benign subject, with the pictures that teach it.

    Without a folder for the attack, the model itself draws the pictures: the paper's relearning of what it knows.
    """

    concept: Concept
    """Its name, its kind, and the prompts by which models are asked for it."""
    attack: Path | None = None
    """Folder of the attacker's pictures."""
    defence: Path | None = None
    """Folder of the defender's pictures, none of them the attacker's. Without it, the attacker's folder is split in
    two: the defence then knows the attacker's source, and the report says so."""
    reference: Path | None = None
    """Folder of pictures to compare with; without it, those of attack and defence, or drawn ones."""
    prompt: str | None = None
    """One prompt for all pictures; without it the folder's metadata file, or else the concept's first prompt."""
    label: str | None = None
    """What the bench's classifier calls it; the concept's name, unless given."""

    def __post_init__(self) -> None:
        if self.attack is None and self.defence is not None:
            raise ImmunityError(
                expected=f"pictures of {self.concept.name!r} for the attack beside those for the defence",
                got="none",
                remedy="attack=Path(…), or neither of the two to have the model draw both",
            )

    @property
    def folders(self) -> Mapping[Purpose, Path | None]:
        return {"attack": self.attack, "defence": self.defence, "reference": self.reference}


@dataclass(frozen=True, kw_only=True)
class FolderBench(Bench):
    """Any diffusers folder or hub id, with the user's pictures of what is to be forgotten."""

    model: str
    """A diffusers folder or a hub id."""
    subjects: tuple[Subject, ...]
    """The concepts and the benign subjects of the study."""
    others: tuple[str, ...] = ()
    """Names of other concepts to watch for side effects, asked for as a concept of that name is. They need a classifier
    or CLIP."""
    other_pictures: int = 4
    """Pictures asked for of each of them."""
    lessons: int = 20
    """Pictures for each of attack and defence, where the model draws them."""
    references: int = 24
    """Pictures to compare with, where the model draws them."""
    clip: str | None = VIT_B_32
    """Folder or hub name of CLIP; None to do without."""
    dino: str | None = VIT_S_16
    """Folder or hub name of DINO; None to do without."""
    lpips: bool = True
    """Whether to use LPIPS, which needs the package of that name."""
    classifier: str | None = None
    """Folder or hub name of an image classifier whose classes the subjects and the others are, such as a ResNet-50 of
    ImageNet for the paper's objects; without it CLIP tells them apart."""
    nudity: bool = False
    """Whether to look for nudity, which needs the package nudenet."""

    def __post_init__(self) -> None:
        at_least(self, 1, "lessons", "references", "other_pictures")
        names = [subject.concept.name for subject in self.subjects]
        if not names or len({*names, *self.others}) < len(names) + len(self.others):
            raise ImmunityError(
                expected="at least one subject, and each name once among subjects and others",
                got=", ".join((*names, *self.others)) or "none",
                remedy="removing the double one",
            )

    @property
    def source(self) -> str:
        return self.model

    def open(self, *, device: str, size: int) -> "FolderPanel":
        absent: list[ImmunityError] = []
        clip = _at_hand(lambda: ClipJudge.load(self.clip or "", device=device), absent) if self.clip else None
        dino = _at_hand(lambda: DinoJudge.load(self.dino or "", device=device), absent) if self.dino else None
        lpips = _at_hand(lambda: LpipsJudge.load(device=device), absent) if self.lpips else None
        similarities: list[Metric[Tensor]] = []
        if clip:
            similarities.append(ClipSimilarity(clip))
        if dino:
            similarities.append(DinoSimilarity(dino))
        if lpips:
            similarities.append(LpipsSimilarity(lpips))
        if not similarities:
            reasons = "; ".join(f"{error.expected}: {error.remedy}" for error in absent)
            raise ImmunityError(
                expected="at least one judge of similarity: CLIP, DINO or LPIPS",
                got="none on this machine" if absent else "a bench without any",
                remedy=reasons or "leaving clip, dino and lpips as they are by default",
            )
        for error in absent:
            warnings.warn(f"measuring without {error.expected}; to have it: {error.remedy}", stacklevel=2)
        recognise = _recognition(self, clip, device)
        nudity = Nudity(NudeNetJudge.load()) if self.nudity else None
        return FolderPanel(self, size, similarities, recognise, nudity)

    def described(self) -> dict[str, object]:
        judges = {name: source and Path(source).name for name, source in (("clip", self.clip), ("dino", self.dino))}
        subjects = {
            subject.concept.name: {
                "kind": subject.concept.kind,
                "prompts": subject.concept.prompts,
                "prompt": subject.prompt,
                **({} if subject.label is None else {"label": subject.label}),
                **_sources(subject),
            }
            for subject in self.subjects
        }
        if self.classifier:
            judges["classifier"] = Path(self.classifier).name
        named = judges | {"model": Path(self.model).name, "subjects": subjects}
        return super().described() | named | ({"nudity": True} if self.nudity else {})


class FolderPanel(Panel):
    """The user's pictures, read once, and the judges that were found."""

    def __init__(
        self,
        bench: FolderBench,
        size: int,
        similarities: list[Metric[Tensor]],
        recognise: "Recognition | None",
        nudity: Nudity | None,
    ) -> None:
        self.bench, self._similarities, self._recognise, self._nudity = bench, similarities, recognise, nudity
        self._subjects = {subject.concept.name: subject for subject in bench.subjects}
        self._read: dict[tuple[str, Purpose], Examples] = {}
        for name, subject in self._subjects.items():
            for purpose, folder in subject.folders.items():
                if folder is not None:
                    self._read[name, purpose] = _read(folder, subject, size)
            _check_disjoint(name, self._read.get((name, "attack")), self._read.get((name, "defence")))
        self.metrics = tuple(MetricSpec(name=metric.name, label=_LABELS[metric.name]) for metric in similarities)
        if recognise:
            self.metrics += (MetricSpec(name="accuracy", kind="accuracy", label=recognise.label),)
        if nudity:
            self.metrics += (MetricSpec(name=nudity.name, kind="detection", label="Nudity (NudeNet)"),)

    def concept(self, name: str) -> Concept:
        if name not in self._subjects:
            raise ImmunityError(
                expected=f"a subject of the bench: {', '.join(self._subjects)}",
                got=repr(name),
                remedy=f"adding Subject(concept=Concept(name={name!r})) to it",
            )
        return self._subjects[name].concept

    def pictures(self, name: str, purpose: Purpose, *, seed: int, alone: bool) -> Examples | ToDraw:
        subject = self._subjects[name]
        if (name, purpose) in self._read and (purpose != "attack" or alone or subject.defence is not None):
            return self._read[name, purpose]
        if subject.attack is None:
            count = self.bench.references if purpose == "reference" else self.bench.lessons
            return ToDraw(self.questions(name, count))
        attack = self._read[name, "attack"]
        if purpose == "reference":
            return _joined(attack, self._read.get((name, "defence")))
        half = len(attack) // 2
        if not half:
            raise ImmunityError(
                expected=f"at least two pictures of {name!r}, one for attack and one for defence",
                got=f"one in {subject.attack}",
                remedy="more pictures, or a folder of its own for the defence",
            )
        parts = attack.split(half, len(attack) - half, seed=seed)
        return parts[0 if purpose == "attack" else 1]

    def origin(self, name: str, purpose: Purpose, *, alone: bool = False) -> str:  # noqa: ARG002 (the same folder)
        return _sources(self._subjects[name])[purpose]

    def questions(self, name: str, count: int, *, attacked: bool = False) -> tuple[str, ...]:  # noqa: ARG002
        return taking_turns(self._subjects[name].concept.prompts, count)

    def scores(self, name: str, images: Tensor, references: Tensor) -> Scores:
        found = {metric.name: floats(metric(images, references)) for metric in self._similarities}
        if self._recognise:
            found["accuracy"] = self.recognised(name, images)
        if self._nudity:
            found[self._nudity.name] = floats(self._nudity(images))
        return found

    def others(self, name: str) -> Mapping[str, tuple[str, ...]]:  # noqa: ARG002
        if self._recognise is None:
            return {}
        return {
            other.name: taking_turns(other.prompts, self.bench.other_pictures) for other in _other_concepts(self.bench)
        }

    def recognised(self, name: str, images: Tensor) -> tuple[float, ...]:
        assert self._recognise is not None
        return floats(self._recognise.metric(images, [self._recognise.labels[name]]))


def _other_concepts(bench: FolderBench) -> tuple[Concept, ...]:
    """Of the kind of the first subject: CLIP compares texts, which should differ in nothing else."""
    kind = bench.subjects[0].concept.kind
    return tuple(Concept(name=name, kind=kind) for name in bench.others)


@dataclass(frozen=True)
class Recognition:
    """Who tells subjects and others apart, and what it calls them."""

    metric: Accuracy | ZeroShot
    labels: Mapping[str, str]
    label: str


def _recognition(bench: FolderBench, clip: ClipJudge | None, device: str) -> Recognition | None:
    """By the bench's classifier; without one by CLIP, if there is more than one concept to choose from."""
    concepts = (*(subject.concept for subject in bench.subjects), *_other_concepts(bench))
    names = {concept.name: concept.name for concept in concepts}
    if bench.classifier is not None:
        judge = Classifier.load(bench.classifier, device=device)
        labels = names | {subject.concept.name: subject.label for subject in bench.subjects if subject.label}
        judge.indices(tuple(labels.values()))  # what it does not know is said before hours of work and not after them
        return Recognition(Accuracy(judge, "accuracy"), labels, f"Accuracy ({Path(bench.classifier).name})")
    if clip is None or len(concepts) < 2:
        return None
    prompts = tuple(concept.prompts[0] for concept in concepts)
    return Recognition(ZeroShot(clip, tuple(names), prompts), names, "CLIP zero-shot accuracy")


def _at_hand(load: Callable[[], J], absent: list[ImmunityError]) -> J | None:
    try:
        return load()
    except ImmunityError as error:
        absent.append(error)
        return None


def _read(folder: Path, subject: Subject, size: int) -> Examples:
    described = any((folder / name).is_file() for name in ("metadata.csv", "metadata.jsonl"))
    prompt = subject.prompt or (None if described else subject.concept.prompts[0])
    return Examples.from_folder(folder, prompt=prompt, size=size)


def _check_disjoint(name: str, attack: Examples | None, defence: Examples | None) -> None:
    if attack is None or defence is None:
        return
    shared = set(attack.image_digests()) & set(defence.image_digests())
    if shared:
        raise ImmunityError(
            expected=f"no picture of {name!r} in common between attack and defence",
            got=f"{len(shared)} in both folders",
            remedy="removing them from one, or one folder for the attack alone, which is split in two",
        )


def _joined(one: Examples, other: Examples | None) -> Examples:
    import torch

    if other is None:
        return one
    return Examples(torch.cat([one.images, other.images]), one.prompts + other.prompts, one.sources + other.sources)


def _sources(subject: Subject) -> dict[str, str]:
    """Where the pictures are from, by purpose."""
    called = _told_apart([folder for folder in subject.folders.values() if folder])
    attack, defence, reference = (folder and f"the folder {called[folder]}" for folder in subject.folders.values())
    drawn = "drawn by the base model"
    return {
        "attack": attack or drawn,
        "defence": defence or attack or drawn,
        "reference": reference or (f"{attack} and {defence}" if defence else attack) or drawn,
    }


def _told_apart(folders: Sequence[Path]) -> dict[Path, str]:
    """Their last names; or as much more of the paths as two different folders of one name need."""
    whole = {folder: folder.resolve() for folder in folders}
    different = set(whole.values())
    for parts in range(1, max((len(path.parts) for path in different), default=0) + 1):
        names = {path: "/".join(path.parts[-parts:]) for path in different}
        if len(set(names.values())) == len(different):
            break
    return {folder: names[path] for folder, path in whole.items()}
