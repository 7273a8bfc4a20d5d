"""A study: what is erased, attacked, defended and measured, and how often. One Python object, one folder of records."""

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

from immunity.adaptations import AnyAdaptation, Foreseen
from immunity.adaptations.base import described
from immunity.checks import at_least
from immunity.erasers import AnyEraser, Esd
from immunity.errors import ImmunityError
from immunity.evaluation.bench import Bench, Panel
from immunity.evaluation.conduct import conduct
from immunity.evaluation.folder_bench import FolderBench
from immunity.evaluation.store import Store
from immunity.evaluation.world_bench import WorldBench
from immunity.immunizers import AnyImmunizer, RandomPerturbation
from immunity.models import DiffusionModel
from immunity.optimize import Journal
from immunity.poisons import Advdm, AnyPoison, Poison, Poisoned
from immunity.records import Arm, CellKey, Plan, Records, Role

AnyBench = WorldBench | FolderBench

RESERVED = ("base", "erased", "control")


@dataclass(frozen=True, kw_only=True)
class Sampler:
    """How pictures are drawn: those that are judged, and those that a model draws to teach."""

    steps: int = 25
    """Denoising steps."""
    guidance: float = 7.5
    """Weight of the prompt against no prompt."""
    batch: int = 8
    """Pictures at a time."""

    def __post_init__(self) -> None:
        at_least(self, 1, "steps", "batch")


@dataclass(frozen=True, kw_only=True)
class Study:
    """The same attack on a model without and with each defence, for several concepts and seeds.

    For each concept and seed: the base model; the erased model; the attack on the erased model (the control); and the
    same attack – same pictures, same seeds, same prompts – in spite of each defence and baseline. Everything random is
    seeded from `seed`, the concept, the seed of the repetition and the purpose, so that arms are paired.
    """

    title: str
    """At the head of the report."""
    bench: AnyBench
    """The base model, who teaches its concepts and who judges them."""
    concepts: tuple[str, ...]
    """Their names, as the bench knows them."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Repetitions: each draws its own pictures and trains everything anew."""
    eraser: AnyEraser | None = field(default_factory=Esd)
    """None: the base model itself is attacked, as in personalization."""
    attack: AnyAdaptation
    """What everybody is attacked with."""
    defences: "Mapping[str, AnyImmunizer | Poisoned]"
    """By the name of the arm: what changes the model, or the attacker's pictures. The first is the one that the report
    is about."""
    baselines: Mapping[str, AnyImmunizer | Poisoned | AnyEraser] = field(default_factory=dict)
    """Changes that are not expected to help. A `RandomPerturbation` may be `like` a defence, by the name of its arm; an
    eraser erases once more, to see whether a defence is more than that."""
    against: Mapping[str, Foreseen] = field(default_factory=dict)
    """What a defence or a baseline expects, by the name of its arm, where that is not the attack itself."""
    benign: tuple[str, ...] = ()
    """Unrelated subjects that are taught without and with the defences, as an honest user would."""
    benign_attack: AnyAdaptation | None = None
    """What they are taught with; None for the attack. What the model never saw takes longer than what was erased."""
    at: tuple[int, ...] = ()
    """Steps of the attack after which pictures are drawn, the last step among them; empty for an eighth, a quarter, a
    half and all of them. Before the attack they always are."""
    pictures: int = 8
    """Pictures drawn each time."""
    sampler: Sampler = Sampler()
    """How they are drawn."""
    seed: int = 0
    """From which every other seed is derived."""
    dtype: str = "float32"
    """Of the denoiser and the text encoder."""
    labels: Mapping[str, str] = field(default_factory=dict)
    """Names of arms for people, in place of those made from their methods."""

    def __post_init__(self) -> None:
        bench: object = self.bench  # a study's file is written by hand, and nobody checks its types
        if not isinstance(bench, Bench):
            raise ImmunityError(
                expected="a bench, for the study's model and judges",
                got=repr(bench),
                remedy='WorldBench(world="emoji"), or FolderBench(model=…, subjects=…)',
            )
        if isinstance(bench, WorldBench) and bench.attack_words and self.attack.subject is not None:
            raise ImmunityError(
                expected=f"one word for what the attacker learns; {type(self.attack).__name__} has its own",
                got=f"{self.attack.subject!r} and the bench's {', '.join(bench.attack_words.values())}",
                remedy="a bench without attack_words",
            )
        at_least(self, 1, "pictures")
        at_least(self.attack, 1, "steps")
        if not self.at:
            steps = self.attack.steps
            object.__setattr__(self, "at", tuple(sorted({max(1, steps // part) for part in (8, 4, 2, 1)})))
        if list(self.at) != sorted(set(self.at)) or self.at[0] < 1 or self.at[-1] != self.attack.steps:
            raise ImmunityError(
                expected=f"steps of the attack that rise from 1 or later to its last, {self.attack.steps}",
                got=", ".join(map(str, self.at)),
                remedy="at=(), or the attack's own steps as the last",
            )
        self._check_arms()

    def _check_arms(self) -> None:
        names = [*RESERVED, *self.defences, *self.baselines]
        if not self.defences or len(set(names)) < len(names):
            raise ImmunityError(
                expected=f"at least one defence, and for each arm a name of its own, not {', '.join(RESERVED)}",
                got=", ".join((*self.defences, *self.baselines)) or "none",
                remedy='defences={"imma": Imma()}',
            )
        for name, method in {**self.defences, **self.baselines}.items():
            erasers = get_args(AnyEraser) if name in self.baselines else ()
            if not isinstance(method, (*get_args(AnyImmunizer), *erasers, Poisoned)):
                raise ImmunityError(
                    expected=f"a method that changes the model, or pictures, as {name}",
                    got=repr(method),
                    remedy="Poisoned(by=…)" if isinstance(method, Poison) else "Imma()",
                )
        for name, method in self.baselines.items():
            changes = [arm for arm, each in self.defences.items() if not isinstance(each, Poisoned)]
            if isinstance(method, RandomPerturbation) and method.like not in (None, *changes):
                raise ImmunityError(
                    expected=f"{name} like one of the defences that change the model: {', '.join(changes)}",
                    got=repr(method.like),
                    remedy="the name of a defence's arm",
                )
        expecting = [arm for arm in (*self.defences, *self.baselines) if not isinstance(self.method(arm), Poisoned)]
        if unknown := sorted(set(self.against) - set(expecting)):
            raise ImmunityError(
                expected=f"`against` for arms that change the model: {', '.join(expecting) or 'there are none'}",
                got=", ".join(unknown),
                remedy="the name of such a defence or a baseline",
            )
        if any(isinstance(method, RandomPerturbation) and method.like for method in self.defences.values()):
            raise ImmunityError(
                expected="a random change like a defence among the baselines",
                got="one among the defences",
                remedy='baselines={"noise": RandomPerturbation(like="imma")}',
            )

    def method(self, arm: str) -> AnyImmunizer | Poisoned | AnyEraser:
        """What a defence's or a baseline's arm has that the control has not."""
        return self.defences[arm] if arm in self.defences else self.baselines[arm]

    def attack_on(self, key: CellKey) -> AnyAdaptation:
        """What teaches the cell's subject."""
        return self.attack if key.subject == key.concept or self.benign_attack is None else self.benign_attack

    def looks(self, key: CellKey) -> tuple[int, ...]:
        """After how many steps of it pictures are drawn: at the same shares of it as of the attack."""
        steps = self.attack_on(key).steps
        return tuple(sorted({max(1, round(look * steps / self.attack.steps)) for look in self.at}))

    def foreseen(self, arm: str) -> Foreseen:
        """The attack against which a defence's or a baseline's arm is made."""
        return self.against.get(arm, self.attack)

    def plan(self, model: DiffusionModel, panel: Panel) -> Plan:
        """What the study's folder will hold when it is complete."""
        arms = [Arm(name="base", role="base", label=self.labels.get("base", "Base model"))]
        if self.eraser is not None:
            label = self.labels.get("erased", f"Erased ({_spoken(self.eraser)})")
            arms.append(Arm(name="erased", role="erased", label=label, config=_config(self.eraser)))
        arms.append(Arm(name="control", role="control", label=self.labels.get("control", "Control, undefended")))
        for name, method in self.defences.items():
            label = _said(method) if isinstance(method, Poisoned) else f"Immunized ({_spoken(method)})"
            arms.append(self._arm(name, "defended", label))
        for name, baseline in self.baselines.items():
            label = _said(baseline) if isinstance(baseline, Poisoned) else _spoken(baseline)
            label = f"Erased again ({label})" if isinstance(baseline, get_args(AnyEraser)) else label
            arms.append(self._arm(name, "baseline", label))
        return Plan(
            title=self.title,
            concepts=self.concepts,
            seeds=self.seeds,
            arms=tuple(arms),
            metrics=panel.metrics,
            benign=self.benign,
            settings={
                "model": model.name,
                "base_hash": model.base_hash,
                "dtype": self.dtype,
                "attack": described(self.attack),
                "at": list(self.at),
                "pictures": self.pictures,
                "sampler": dataclasses.asdict(self.sampler),
                "bench": self.bench.described(),
                "seed": self.seed,
                # Only where it is given: so that studies from before there was such a thing can be gone on with.
                **({} if self.benign_attack is None else {"benign_attack": described(self.benign_attack)}),
            },
        )

    def _arm(self, name: str, role: Role, label: str) -> Arm:
        method, config = self.method(name), _config(self.method(name))
        config |= {"against": described(self.against[name])} if name in self.against else {}
        changes: Literal["model", "pictures"] = "pictures" if isinstance(method, Poisoned) else "model"
        return Arm(name=name, role=role, label=self.labels.get(name, label), config=config, changes=changes)

    def run(
        self,
        folder: str | Path,
        *,
        device: str = "cpu",
        every: int = 50,
        progress: bool = True,
        shared: str | Path | None = None,
    ) -> Records:
        """Measures every cell that `folder` does not hold yet, each written as soon as it is done.

        Killed and called again it goes on where it was, in the middle of an attack too, and gives the same records as
        if it had not been killed, but for times. Several processes can run one study in one folder: each takes a
        concept and seed that no other has. `every`: steps of training between two checkpoints. `shared`: a folder for
        the deltas and pictures that several studies have in common.
        """
        Journal(every=every)  # refuses what no journal takes, before the first cell and not after it
        store = Store(Path(folder), None if shared is None else Path(shared))
        return conduct(self, store, device=device, every=every, progress=progress)


def _config(method: AnyEraser | AnyImmunizer | Poisoned) -> dict[str, object]:
    if isinstance(method, Poisoned):
        return method.described()
    return {"method": type(method).__name__, **dataclasses.asdict(method)}


def _spoken(method: AnyEraser | AnyImmunizer | AnyPoison) -> str:
    """ESD, UCE, IMMA: the short names of methods are acronyms; the long ones are words."""
    if isinstance(method, Advdm):
        return "AdvDM"
    name = type(method).__name__
    return name.upper() if len(name) <= 4 else " ".join(re.findall("[A-Z][a-z]*", name)).capitalize()


def _said(method: Poisoned) -> str:
    share = "" if method.share == 1 else f", {method.share:.0%} of the pictures"
    return f"Poisoned ({_spoken(method.by)}{share}{'' if method.jpeg is None else f', JPEG {method.jpeg}'})"
