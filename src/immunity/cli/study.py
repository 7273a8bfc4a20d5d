"""Verbs of the protocol: demo, run, measure, report."""

import dataclasses
import functools
import importlib.util
import re
import sys
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from immunity.checks import at_least, generator_seed
from immunity.cli.options import ModelOptions, OutputOptions
from immunity.cli.partial import Interrupted
from immunity.concepts import Concept, Examples, Kind
from immunity.drawing import draw
from immunity.errors import ImmunityError
from immunity.evaluation.demo import demo_study
from immunity.evaluation.folder_bench import FolderBench, Subject
from immunity.evaluation.measure import measure as take
from immunity.evaluation.measure import references
from immunity.evaluation.study import Study
from immunity.evaluation.world_bench import WorldBench
from immunity.metrics.clip import VIT_B_32
from immunity.metrics.dino import VIT_S_16
from immunity.optimize import derived_seed
from immunity.pictures import in_eight_bits
from immunity.records import Records
from immunity.report.markdown import write_tables
from immunity.report.outcome import outcome
from immunity.report.page import write_report

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

    from immunity.models import DiffusionModel

_READ_AT = 512
"""Pixels at which a folder of pictures is read that neither model nor world says the size of; judges see fewer."""


def demo(*, concept: str = "church", out: Path | None = None, device: str = "cpu") -> None:
    """Show the whole story on the embedded world: erased, relearned, immunized, relearned less, reported.

    Takes a few minutes. Writes the folder of a small study, and report.html in it. Interrupted, the same command goes
    on.

    Args:
        concept: An object or a style of the world.
        out: The folder to write; runs/demo unless given, and of another concept runs/demo-<concept>.
        device: Where the model runs.
    """
    if out is None:
        out = Path("runs", "demo" if concept == "church" else f"demo-{concept.replace(' ', '-')}")
    records = _run(demo_study(concept), out, device=device, save_every=50)
    page = out / "report.html"
    write_report(out, page, force=True)
    print(outcome(records))
    print(page)


def run(study: Path, /, *, out: Path, only: str | None = None, device: str = "cpu", save_every: int = 50) -> None:
    """Carry out a study: a Python file that defines `study = Study(…)`, or `studies = {"name": Study(…), …}`.

    The file is executed, as `python` would. Every cell is written to the folder as soon as it is measured. Interrupted
    or killed, the same command goes on where it was and repeats nothing that is finished. The same command in several
    processes at once shares the work. Several studies have a folder each, and share what they have in common.

    For example: immunity run studies/relearning.py --out runs/relearning

    Args:
        study: The Python file.
        out: The folder of its records; one where the same study was begun is gone on with.
        only: Of several studies, the one to run.
        device: Where the model runs.
        save_every: Steps of training between two checkpoints.
    """
    found = _studies_of(study)
    several = list(found) != [""]
    for name, each in _chosen(found, only, study).items():
        folder = out / name if several else out
        shared = out / "shared" if several else None
        records = _run(each, folder, device=device, save_every=save_every, shared=shared)
        print(outcome(records))
        print(f"now: immunity report {folder} --out {folder / 'report.html'}")


def _chosen(studies: Mapping[str, Study], only: str | None, file: Path) -> Mapping[str, Study]:
    if only is None:
        return studies
    if only not in studies:
        raise ImmunityError(
            expected=f"the name of a study in {file}",
            got=repr(only),
            remedy="leaving out --only" if list(studies) == [""] else f"one of {', '.join(studies)}",
        )
    return {only: studies[only]}


def report(records: Path, /, output: OutputOptions) -> None:
    """Make one self-contained page of a study's records, finished or not; or its tables alone, as Markdown (.md).

    For example: immunity report runs/relearning --out relearning.html

    Args:
        records: The folder of records.
        output: The result.
    """
    output.check_file(".html", ".md", inputs=(records,))
    write = write_tables if output.out.suffix == ".md" else write_report
    write(records, output.out, force=output.force)
    print(output.out)


@dataclass(frozen=True, kw_only=True)
class SubjectOptions:
    """What is measured."""

    concept: str
    """Its name; a world has its own, for other models any word will do."""
    kind: Kind = "object"
    """What it is, for a model without a world."""
    pictures: Path | None = None
    """Folder of pictures to measure, without --deltas and --count; without it the model draws them."""
    count: int = 8
    """Pictures to draw."""
    seed: int = 0
    """Of the first picture; the next ones take the next seeds."""
    steps: int = 25
    """Denoising steps."""
    guidance: float | None = None
    """Weight of the prompt against no prompt; 7.5 unless given, of a world its own."""

    def draw(
        self, model: "DiffusionModel", prompts: Sequence[str], seeds: Sequence[int], label: str, *, guidance: float
    ) -> Examples:
        images = draw(model, prompts, seeds, label=label, steps=self.steps, guidance=guidance)
        sources = tuple(f"{prompt} (seed {seed})" for prompt, seed in zip(prompts, seeds, strict=True))
        return Examples(in_eight_bits(images), tuple(prompts), sources)


@dataclass(frozen=True, kw_only=True)
class JudgeOptions:
    """Who judges: a world's judges, or for other models those of the literature where their weights are at hand."""

    world: str | None = None
    """Whose judges; the model's own if it is a world."""
    reference: Path | None = None
    """Folder of pictures to compare with, for a model without a world; else the model without its deltas draws them."""
    clip: str | None = VIT_B_32
    """Folder or hub name of CLIP, for a model without a world."""
    dino: str | None = VIT_S_16
    """Folder or hub name of DINO, for a model without a world."""
    lpips: bool = True
    """Whether LPIPS is measured as well, for a model without a world."""
    classifier: str | None = None
    """Folder or hub name of an image classifier that knows the concept, for a model without a world."""
    label: str | None = None
    """What the classifier calls the concept; its name unless given."""
    nudity: bool = False
    """Whether NudeNet looks for nudity as well, for a model without a world; it needs the package nudenet."""

    def bench(self, model: ModelOptions, subject: SubjectOptions) -> WorldBench | FolderBench:
        world = self.world or (None if model.world() is None else model.model)
        if self.label is not None and self.classifier is None:
            raise ImmunityError(
                expected="--label beside --classifier", got=f"--label {self.label!r} alone", remedy="leaving it out"
            )
        if world is None:
            concept = Concept(name=subject.concept, kind=subject.kind)
            return FolderBench(
                model=model.model,
                subjects=(Subject(concept=concept, reference=self.reference, label=self.label),),
                clip=self.clip,
                dino=self.dino,
                lpips=self.lpips,
                classifier=self.classifier,
                nudity=self.nudity,
            )
        where, got = "for a model without a world", f"the world {world}"
        _refuse_unused(self, "reference", "clip", "dino", "lpips", "classifier", "nudity", where=where, got=got)
        _refuse_unused(subject, "kind", where=where, got=got)
        return WorldBench(world=world)


def _refuse_unused(options: "DataclassInstance", *names: str, where: str, got: str) -> None:
    """Raises for flags of these names that were given; `where` says what they are for, and `got` why not here."""
    for field in dataclasses.fields(options):
        value = getattr(options, field.name)
        if field.name in names and value != field.default:
            flag = f"--no-{field.name}" if value is False else f"--{field.name}"
            raise ImmunityError(expected=f"{flag} {where}", got=got, remedy="leaving it out")


def measure(model: ModelOptions, output: OutputOptions, subject: SubjectOptions, judges: JudgeOptions) -> None:
    """Score pictures of a concept one by one: a table, and the same as one .json file.

    For example: immunity measure --model emoji --deltas erased.safetensors --concept church --out scores.json

    Args:
        model: The model.
        output: The result.
        subject: What is measured.
        judges: Who judges.
    """
    given = [] if subject.pictures is None else [subject.pictures]
    output.check_file(".json", inputs=(*model.inputs, *given))
    at_least(subject, 1, "count", "steps")
    generator_seed(subject.seed, count=subject.count)
    if subject.pictures is not None:
        where, got = "without --pictures", f"{subject.pictures}, which is measured as it is"
        _refuse_unused(subject, "count", where=where, got=got)
        _refuse_unused(model, "deltas", where=where, got=got)
    bench = judges.bench(model, subject)
    # A folder of pictures can be measured without the model, unless it must draw what they are compared with.
    base = functools.cache(model.load_base)
    if subject.pictures is None:
        size = base().model.resolution
    else:
        size = bench.where().resolution if isinstance(bench, WorldBench) else _READ_AT
    panel, guidance = bench.open(device=model.device, size=size), model.guidance(subject.guidance)

    def draw_references(prompts: tuple[str, ...]) -> Examples:
        seeds = [derived_seed(subject.seed, "reference", number) % 2**32 for number in range(len(prompts))]
        return subject.draw(base().model, prompts, seeds, "draw pictures to compare with", guidance=guidance)

    compared_with = references(panel, subject.concept, draw=draw_references, seed=subject.seed)
    if subject.pictures is not None:
        if not base.cache_info().currsize:
            got = f"pictures to measure and {len(compared_with)} to compare them with"
            _refuse_unused(subject, "seed", "steps", "guidance", where="where something is drawn", got=got)
        made = take(panel, subject.concept, Examples.from_folder(subject.pictures, prompt="", size=size), compared_with)
    else:
        loaded = base().with_deltas()
        prompts = panel.questions(subject.concept, subject.count)
        seeds = range(subject.seed, subject.seed + len(prompts))
        drawn = subject.draw(loaded, prompts, seeds, "draw", guidance=guidance)
        made = dataclasses.replace(
            take(panel, subject.concept, drawn, compared_with),
            model=loaded.name,
            base_hash=loaded.base_hash,
            deltas=loaded.parents,
        )
    made.save(output.out, force=output.force)
    print(made.table())
    print(output.out)


def _run(study: Study, folder: Path, *, device: str, save_every: int, shared: Path | None = None) -> Records:
    try:
        return study.run(folder, device=device, every=save_every, shared=shared)
    except KeyboardInterrupt as error:
        raise Interrupted(f"the same command again goes on from there, in {folder}") from error


def _studies_of(file: Path) -> Mapping[str, Study]:
    """What the file defines as `studies`, or as `study`, which then has no name.

    The file is executed: it is the user's own program.
    """
    if file.suffix != ".py" or not file.is_file():
        raise ImmunityError(
            expected="a Python file that defines `study`",
            got=f"{file} ({'which is no .py file' if file.exists() else 'which does not exist'})",
            remedy="a file with `study = Study(…)`",
        )
    spec = importlib.util.spec_from_file_location("immunity_study", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # As Python does for a program: its own folder is searched first, and classes find the module that they are of.
    sys.path.insert(0, str(file.resolve().parent))
    sys.modules[spec.name] = module
    try:
        spec.loader.exec_module(module)
    except ImmunityError:
        raise
    except (SystemExit, Exception) as error:  # whatever the user's program raises
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(file)]
        line = error.lineno if isinstance(error, SyntaxError) else lines[-1] if lines else None
        message = error.msg if isinstance(error, SyntaxError) else error
        raise ImmunityError(
            expected=f"{file} to run",
            got=f"{type(error).__name__}: {message}" + (f" (line {line})" if line else ""),
            remedy=f"python {file}",
        ) from error
    finally:
        sys.path.pop(0)
    defined = vars(module)
    studies = defined["studies"] if "studies" in defined else {"": defined.get("study")}
    if not isinstance(studies, Mapping) or not studies:
        raise ImmunityError(
            expected=f"`studies`, a mapping of names to studies, in {file}",
            got=f"a value of type {type(studies).__name__}" if studies else "none in it",
            remedy='studies = {"first": Study(title=…, …)}',
        )
    for name, study in studies.items():
        if not isinstance(study, Study):
            got = "none" if study is None else f"a value of type {type(study).__name__}"
            what = f"`studies[{name!r}]`" if name else "`study`"
            raise ImmunityError(expected=f"{what}, a Study, in {file}", got=got, remedy="study = Study(title=…, …)")
        if "studies" in defined and not re.fullmatch(r"[a-z0-9][a-z0-9._-]*", str(name)):
            raise ImmunityError(
                expected="names of studies that can be names of folders (a–z, 0–9, -, _, .)",
                got=repr(name),
                remedy="renaming it",
            )
    return dict(studies)
