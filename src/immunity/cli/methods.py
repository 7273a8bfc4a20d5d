"""Verbs that carry out a method: erase, adapt, immunize, poison."""

import dataclasses
import shutil
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

from immunity import adaptations
from immunity.adaptations import Adaptation, AnyAdaptation, Attached
from immunity.adaptations import adapt as run_adaptation
from immunity.adaptations.base import described
from immunity.atomic import replacing
from immunity.checks import unused
from immunity.cli.choices import AGAINST, name_of, subcommands
from immunity.cli.mixture import Mixture
from immunity.cli.options import ModelOptions, OutputOptions, RunOptions, TrainedModelOptions
from immunity.cli.partial import partial
from immunity.cli.subjects import ConceptOptions, PictureOptions, SampleOptions
from immunity.concepts import Examples
from immunity.deltas import Provenance
from immunity.erasers import AnyEraser
from immunity.filenames import LOSSES_FILE, POISON_FILE
from immunity.immunizers import AnyImmunizer, AscentOnly, Imma
from immunity.models import DiffusionModel
from immunity.optimize import Journal
from immunity.pictures import write_imagefolder
from immunity.poisons import AnyPoison
from immunity.processes import is_first, together

if TYPE_CHECKING:
    EraserChoice = AnyEraser
    AdaptationChoice = AnyAdaptation
    AgainstChoice = AnyAdaptation | Mixture
    ImmunizerChoice = AnyImmunizer
    PoisonChoice = AnyPoison
else:
    EraserChoice = subcommands(AnyEraser)
    AdaptationChoice = subcommands(AnyAdaptation)
    AgainstChoice = subcommands(AnyAdaptation | Mixture, before=f"{AGAINST} ")
    ImmunizerChoice = subcommands(AnyImmunizer)
    PoisonChoice = subcommands(AnyPoison)


def erase(
    model: TrainedModelOptions, output: OutputOptions, run: RunOptions, what: ConceptOptions, method: EraserChoice
) -> None:
    """Remove concepts from a model's weights: a delta, one .safetensors file.

    For example: immunity erase --model emoji --concept church --out erased.safetensors esd --steps 200

    Args:
        model: The model.
        output: The result.
        run: The run.
        what: What is removed.
        method: How it is removed; its own flags come after its name.
    """
    output.check_file(".safetensors", inputs=model.inputs)
    concepts = what.concepts(model)
    identity = {
        "erase": _described(method),
        "concepts": [dataclasses.asdict(one) for one in concepts],
        "seed": run.seed,
        **model.described(),
    }
    with together(model.device), partial(output, identity) as folder:
        loaded = model.load()
        model.split(loaded)
        journal = Journal(folder=folder, every=run.save_every, label="erase")
        method(loaded, concepts, seed=run.seed, journal=journal).save(output.out, force=output.force)
        _tell(output)


def adapt(
    model: TrainedModelOptions,
    output: OutputOptions,
    run: RunOptions,
    pictures: PictureOptions,
    samples: SampleOptions,
    method: AdaptationChoice,
) -> None:
    """Teach a model something, as an attacker or an honest user would: a folder with a delta and an adapter file.

    The folder has delta.safetensors (for --deltas) where weights change; the adapter as other programs read it: of a
    LoRA pytorch_lora_weights.safetensors, for `pipe.load_lora_weights`, of a new token learned_embeds.safetensors, for
    `pipe.load_textual_inversion` (or --tokens); losses.json, and the grids of --sample-at.

    For example: immunity adapt --model emoji --deltas erased.safetensors --concept church --drawn 20 --out attack
    lora --rank 4

    Args:
        model: The model.
        output: The result.
        run: The run.
        pictures: What is learned.
        samples: Pictures on the way.
        method: How it is learned; its own flags come after its name.
    """
    output.check_folder(LOSSES_FILE, inputs=(*model.inputs, *pictures.inputs))
    samples.check(method.steps)
    pictures.check(model, output.out)
    identity = {
        "adapt": _described(method),
        "samples": dataclasses.asdict(samples),
        "pictures": pictures.described(),
        "seed": run.seed,
        **model.described(),
    }
    with together(model.device), partial(output, identity) as folder:
        loaded, examples = _opened(model, pictures, seed=run.seed, verb="adapt", folder=folder)
        model.split(loaded)

        def draw(step: int, _phi: Attached) -> None:
            guidance, file = model.guidance(samples.sample_guidance), folder / "samples" / f"{step:05}.png"
            samples.draw(loaded, method.called(examples), file, seed=run.seed, guidance=guidance)

        result = run_adaptation(
            loaded,
            examples,
            method,
            seed=run.seed,
            at=samples.sample_at,
            callback=draw,
            journal=Journal(folder=folder, every=run.save_every, label="adapt"),
        )
        with replacing(output.out, force=output.force) as made:
            made.mkdir()
            result.write(made)
            if samples.sample_at and is_first():
                shutil.copytree(folder / "samples", made / "samples")
        _tell_of_captions(pictures, method)
        _tell(output)


def immunize(
    model: TrainedModelOptions,
    output: OutputOptions,
    run: RunOptions,
    pictures: PictureOptions,
    method: ImmunizerChoice,
    against: AgainstChoice,
) -> None:
    """Change a model's weights so that a later adaptation fails: a delta, one .safetensors file.

    For example: immunity immunize --model emoji --deltas erased.safetensors --concept church --drawn 20
    --out immune.safetensors imma --steps 1000 --against lora --rank 4

    Args:
        model: The model.
        output: The result.
        run: The run.
        pictures: What an adaptation shall not learn.
        method: How the model is immunized; its own flags come after its name.
        against: The adaptation that shall fail; its own flags come last.
    """
    output.check_file(".safetensors", inputs=(*model.inputs, *pictures.inputs))
    pictures.check(model, output.out)
    foreseen = against.made() if isinstance(against, Mixture) else against
    expected = foreseen.of if isinstance(foreseen, adaptations.Mixture) else (foreseen,)
    for each in expected:
        if isinstance(method, Imma | AscentOnly):
            what = f"{name_of(type(method))} has its own; give its flags before {AGAINST}"
            unused(each, *method.unforeseen, without=what)
    identity = {
        "immunize": _described(method),
        "against": described(foreseen),
        "pictures": pictures.described(),
        "seed": run.seed,
        **model.described(),
    }
    with together(model.device), partial(output, identity) as folder:
        loaded, examples = _opened(model, pictures, seed=run.seed, verb="immunize", folder=folder)
        model.split(loaded)
        journal = Journal(folder=folder, every=run.save_every, label="immunize")
        method(loaded, examples, foreseen, seed=run.seed, journal=journal).save(output.out, force=output.force)
        for each in expected:
            _tell_of_captions(pictures, each)
        _tell(output)


def poison(
    model: ModelOptions, output: OutputOptions, run: RunOptions, pictures: PictureOptions, method: PoisonChoice
) -> None:
    """Change pictures a little so that this model learns the less from them: a folder of pictures.

    The folder has 000.png, …, each the central square of a picture at the model's resolution; metadata.csv with prompts
    and what each was made from; and poison.json. Only these pictures are protected: compare with immunize.

    For example: immunity poison --model emoji --images mine --prompt "image of a church" --out poisoned advdm

    Args:
        model: The model that shall not learn from them.
        output: The result.
        run: The run.
        pictures: What is poisoned.
        method: How it is poisoned; its own flags come after its name.
    """
    output.check_folder(POISON_FILE, inputs=(*model.inputs, *pictures.inputs))
    pictures.check(model, output.out)
    identity = {
        "poison": method.described(),
        "pictures": pictures.described(),
        "seed": run.seed,
        **model.described(),
    }
    with partial(output, identity) as folder:
        loaded, examples = _opened(model, pictures, seed=run.seed, verb="poison", folder=folder)
        journal = Journal(folder=folder, every=run.save_every, label="poison")
        made = method(loaded, examples, seed=run.seed, journal=journal)
        config = method.described() | {"inputs": {"examples": examples.digest()}}
        provenance = Provenance.upon(loaded, method=type(method).__name__, config=config, seed=run.seed)
        with replacing(output.out, force=output.force) as temporary:
            temporary.mkdir()
            write_imagefolder(temporary, made.images, made.prompts, made.sources)
            (temporary / POISON_FILE).write_text(provenance.to_json(), encoding="utf-8")
        _tell(output)


def _opened(
    model: ModelOptions, pictures: PictureOptions, *, seed: int, verb: str, folder: Path
) -> tuple[DiffusionModel, Examples]:
    """The model with its deltas, and the pictures, which the model without them draws if any are to be drawn."""
    base = model.load_base()
    examples = pictures.read(base.model, model, seed=seed, verb=verb, folder=folder)
    return base.with_deltas(), examples


def _tell_of_captions(pictures: PictureOptions, method: Adaptation) -> None:
    if pictures.prompt is not None and method.captions:
        called = method.named(method.captions)[0] + (" and the like" if len(method.captions) > 1 else "")
        what = f"--prompt is not used: {name_of(type(method))} calls its pictures {called}"
        warnings.warn(f"{what}; --captions with nothing after it leaves them their own prompts", stacklevel=2)


def _tell(output: OutputOptions) -> None:
    if is_first():
        print(output.out)


def _described(method: AnyEraser | AnyAdaptation | AnyImmunizer) -> dict[str, object]:
    return {"name": name_of(type(method)), **dataclasses.asdict(method)}
