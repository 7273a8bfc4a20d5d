"""Every bad input gets one clear line and exit code 2, and loses nothing."""

import errno
import json
import os
import pickle
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from PIL import Image

from immunity import Delta, Provenance, World, load

from tests.cli.conftest import Done, immunity


@pytest.fixture
def place(tmp_path) -> Iterator[Path]:
    """A folder of the test's own, in which no command may leave anything half-written."""
    yield tmp_path
    assert not [
        path for path in tmp_path.rglob("*") if path.name.endswith((".partial", ".part")) or ".part." in path.name
    ]


@pytest.fixture
def erase(sd1, place) -> Callable[..., str]:
    """The complaint about an erasure."""

    def command(*arguments: object, model: Path = sd1, method: tuple[object, ...] = ("uce",)) -> str:
        out = place / "erased.safetensors"
        complaint = immunity("erase", "--model", model, "--out", out, *arguments, *method).complaint
        assert not out.exists()
        return complaint

    return command


@pytest.fixture
def adapt(sd1, place) -> Callable[..., str]:
    """The complaint about an attack."""

    def command(*arguments: object, model: object = sd1, method: tuple[object, ...] = ("--steps", 1)) -> str:
        out = place / "attack"
        complaint = immunity("adapt", "--model", model, "--out", out, *arguments, "lora", *method).complaint
        assert not out.exists()
        return complaint

    return command


@pytest.fixture(scope="module")
def deltas(tiny_folders, tmp_path_factory) -> dict[str, Path]:
    """Two deltas of sd1, the second made upon the first, and one of sd2."""
    root = tmp_path_factory.mktemp("deltas")

    def write(name: str, family: str, parents: tuple[Path, ...] = ()) -> Path:
        model = load(tiny_folders[family], deltas=parents)
        parameters = model.parameters("text_kv")
        made = Provenance(
            base=model.name, base_hash=model.base_hash, method="Test", config={}, seed=0, parents=model.parents
        )
        Delta({key: value.detach() + 1 for key, value in parameters.items()}, made).save(root / f"{name}.safetensors")
        return root / f"{name}.safetensors"

    first = write("first", "sd1")
    return {"first": first, "second": write("second", "sd1", (first,)), "other": write("other", "sd2")}


@pytest.fixture
def world(tiny_folders, tmp_path_factory, monkeypatch) -> str:
    """The name of the embedded world, which for the test is a tiny one."""
    folder = tmp_path_factory.mktemp("world")
    values = {
        "name": "emoji",
        "resolution": 16,
        "styles": [{"name": "noto", "split": "trained"}, {"name": "blob", "split": "trained"}],
        "objects": [
            {"name": "church", "phrase": "a church", "split": "trained", "neighbours": ["castle"]},
            {"name": "castle", "phrase": "a castle", "split": "trained"},
        ],
        "captions": {
            "object": ["image of {phrase}"],
            "style": ["art by {style}"],
            "both": ["{phrase} in the style of {style}"],
        },
    }
    (folder / "world.json").write_text(json.dumps(values))
    (folder / "generator").symlink_to(tiny_folders["sd1"])
    (folder / "samples").mkdir()
    Image.new("RGB", (32, 16), "red").save(folder / "samples" / "church.png")
    rows = [{"file": "church.png", "tile": i, "object": "church", "style": s} for i, s in enumerate(("noto", "blob"))]
    (folder / "samples" / "index.json").write_text(json.dumps(rows))
    monkeypatch.setattr(World, "open", lambda _name: World.from_folder(folder))
    return "emoji"


# Models


@pytest.fixture
def models(place, sd1) -> dict[str, Path]:
    """Sources that are no model, by name."""
    (place / "empty").mkdir()
    (place / "model.ckpt").write_bytes(b"a pickle, perhaps")
    for name, index in (("other", '{"_class_name": "KandinskyPipeline"}'), ("broken", "{")):
        (place / name).mkdir()
        (place / name / "model_index.json").write_text(index)
    (place / "parts").mkdir()
    shutil.copy(sd1 / "model_index.json", place / "parts")
    return {path.name: path for path in place.iterdir()}


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("empty", "without model_index.json"),
        ("model.ckpt", "a file of tensors"),
        ("other", "KandinskyPipeline"),
        ("broken", "readable model_index.json"),
        ("parts", "the folder unet"),
    ],
)
def test_what_is_not_a_model(models, erase, place, name, message):
    assert message in erase("--concept", "church", model=models[name])
    assert message in immunity("export", "--model", models[name], "--out", place / "out").complaint
    assert message in immunity("info", models[name]).complaint


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("no-such-world", "a world, or a hub id"),
        ("nobody/nothing", "not to be had from the hub"),
        ("/no/such/folder", "none of them"),
        ("no-such.safetensors", "does not exist"),
    ],
)
def test_names_that_mean_nothing(source, message):
    assert message in immunity("info", source).complaint


# Pickles


class Bomb:
    """Leaves a trace where it is unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self):
        return (os.mkdir, (str(self.trace),))


@pytest.fixture
def bomb(place) -> Callable[[Path], Path]:
    """Writes a file that leaves a trace if it is ever unpickled."""

    def write(file: Path) -> Path:
        if file.suffix == ".pt":
            torch.save(Bomb(place / "trace"), file)
        else:
            file.write_bytes(pickle.dumps(Bomb(place / "trace")))
        return file

    return write


def test_a_pickle_would_leave_a_trace_if_it_were_read(bomb, place):
    pickle.loads(bomb(place / "bomb.ckpt").read_bytes())  # noqa: S301 (the control of the test below)
    assert (place / "trace").exists()
    (place / "trace").rmdir()
    torch.load(bomb(place / "bomb.pt"), weights_only=False)
    assert (place / "trace").exists()


def test_nothing_in_a_pickle_ever_runs(bomb, erase, adapt, sd1, pictures, place):
    for name in ("bomb.ckpt", "bomb.pt", "bomb.bin", "bomb.safetensors"):
        file = bomb(place / name)
        assert "pickles" in erase("--concept", "church", model=file)
        assert "pickles" in erase("--concept", "church", "--deltas", file)
        assert immunity("info", file).complaint
    for part, weights in (("unet", "diffusion_pytorch_model"), ("text_encoder", "pytorch_model")):
        folder = place / part
        shutil.copytree(sd1, folder)
        next((folder / part).glob("*.safetensors")).unlink()
        bomb(folder / part / f"{weights}.bin")
        assert "safetensors weights" in erase("--concept", "church", model=folder)
    (place / "pictures").mkdir()
    bomb(place / "pictures" / "0.png")
    assert "a picture that can be read" in adapt("--images", place / "pictures", "--prompt", "x")
    like = immunity(
        *("immunize", "--model", sd1, "--images", pictures, "--prompt", "x", "--out", place / "noise.safetensors"),
        *("random-perturbation", "--like", place / "bomb.pt", "--against", "lora"),
    )
    assert "pickles" in like.complaint
    assert not (place / "trace").exists()


# Pictures


def test_pictures_that_cannot_be_learned_from(adapt, pictures, place):
    assert "which does not exist" in adapt("--images", place / "missing", "--prompt", "x")
    (place / "empty").mkdir()
    assert f"none in {place / 'empty'}" in adapt("--images", place / "empty", "--prompt", "x")
    assert "neither a prompt nor a metadata.csv" in adapt("--images", pictures)
    for content in (b"not a picture", (pictures / "0.png").read_bytes()[:60]):
        shutil.copytree(pictures, place / "broken", dirs_exist_ok=True)
        (place / "broken" / "3.png").write_bytes(content)
        assert "broken/3.png" in adapt("--images", place / "broken", "--prompt", "x")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "expected --images or --concept; got neither"),
        (("--images", "PICTURES", "--concept", "church"), "got both"),
        (("--images", "PICTURES", "--drawn", 3), "--drawn, --styles and --kind with --concept"),
        (("--concept", "church"), "try --images FOLDER, or --drawn 20"),
        (("--concept", "church", "--drawn", 0), "try --drawn 20"),
        (("--concept", " ", "--drawn", 1), "a concept with a name"),
    ],
)
def test_flags_for_pictures_that_contradict_each_other(adapt, pictures, arguments, message):
    assert message in adapt(*(pictures if one == "PICTURES" else one for one in arguments))


# Concepts


def test_concepts_of_a_world(world, adapt, erase, place):
    assert "try e.g. church" in erase("--concept", "churhc", model=world)
    assert "try e.g. church" in adapt("--concept", "churhc", model=world)
    assert "try e.g. church" in adapt("--concept", "churhc", "--drawn", 1, model=world)
    assert "sample pictures of 'castle'" in adapt("--concept", "castle", model=world)
    assert "sample pictures of 'church' by openmoji" in adapt(
        "--concept", "church", "--styles", "openmoji", model=world
    )
    erased, attack = place / "good.safetensors", place / "good"
    done = immunity("erase", "--model", world, "--concept", "church", "--out", erased, "uce")
    assert done.code == 0, done
    assert Delta.load(erased).provenance.config["inputs"]["concepts"][0]["neighbours"] == ["castle"]
    done = immunity(
        *("adapt", "--model", world, "--deltas", erased, "--concept", "church", "--styles", "noto", "--out", attack),
        *("lora", "--steps", 1),
    )
    assert done.code == 0, done
    assert "near castle" in immunity("info", world, "--concepts").out
    assert "expected a world" in immunity("info", attack / "delta.safetensors", "--concepts").complaint


def test_flags_for_concepts(erase):
    assert "try --concept church" in erase()
    assert "--prompt with one concept" in erase("--concept", "a", "--concept", "b", "--prompt", "c")


# Settings


@pytest.mark.parametrize(
    ("arguments", "method", "message"),
    [
        ((), ("--rank", 0), "rank of at least 1; got Lora(rank=0); try the default, rank=4"),
        ((), ("--lr", "nan"), "lr of at least 0"),
        ((), ("--targets", "to_x"), "layers that the denoiser has"),
        ((), ("--steps", 2, "--lr", "1e30"), "a lower learning rate"),
        (("--sample-at", 2), ("--steps", 1), "--sample-at within the 1 steps"),
        (("--sample-count", 0), (), "--sample-count 4"),
        (("--save-every", 0), (), "a saving every one or more steps"),
        (("--device", "abacus"), (), "device that this PyTorch can use"),
        (("--device", "meta"), (), "device that this PyTorch can use"),
        (("--seed", 2**64), (), "a seed from 0 to 2^63"),
        ((), ("--rank", 100000), "a rank of at most"),
        (("--deltas", "missing.safetensors"), (), "does not exist"),
    ],
)
def test_settings_that_cannot_be(adapt, pictures, arguments, method, message):
    assert message in adapt("--images", pictures, "--prompt", "x", *arguments, method=method)


def test_settings_of_the_other_verbs(sd1, pictures, place):
    on = ("--model", sd1, "--out", place / "out.safetensors")
    learned = ("--images", pictures, "--prompt", "x")
    group = immunity("immunize", *on, *learned, "imma", "--group", "soul", "--against", "lora")
    assert "attention, cross_attention" in group.complaint
    assert (
        "rank of at least 1" in immunity("immunize", *on, *learned, "imma", "--against", "lora", "--rank", 0).complaint
    )
    noise = ("immunize", *on, *learned, "random-perturbation", "--norm")
    assert "norm that is finite" in immunity(*noise, "inf", "--against", "lora").complaint
    assert "weights that are finite real numbers" in immunity(*noise, "1e45", "--against", "lora").complaint
    assert "at least one step" in immunity("sample", *on, "--prompt", "x", "--steps", 0).complaint
    assert "one picture each" in immunity("sample", *on, "--prompt", "x", "--count", 0).complaint
    assert "a seed from 0" in immunity("sample", *on, "--prompt", "x", "--count", 2, "--seed", 2**63 - 1).complaint
    assert "a finite guidance" in immunity("sample", *on, "--prompt", "x", "--guidance", "nan").complaint
    assert not list(place.iterdir())


# Deltas


def test_deltas_of_another_base_or_in_another_order(deltas, erase, place, sd1):
    church = ("--concept", "church")
    assert "expected the model that the delta was made on: sd2" in erase(*church, "--deltas", deltas["other"])
    assert "as when this one was made; got []" in erase(*church, "--deltas", deltas["second"])
    assert "that carries the deltas" in erase(*church, "--deltas", deltas["second"], deltas["first"])
    out = place / "exported"
    swapped = immunity("export", "--model", sd1, "--out", out, "--deltas", deltas["second"], deltas["first"])
    assert "that carries the deltas" in swapped.complaint
    in_order = immunity("export", "--model", sd1, "--out", out, "--deltas", deltas["first"], deltas["second"])
    assert in_order.code == 0, in_order


# Results


def test_a_result_is_replaced_only_by_force_and_another_folder_never(sd1, place):
    out = place / "out"
    out.mkdir()
    precious = out / "precious"
    precious.touch()
    arguments = ("sample", "--model", sd1, "--prompt", "x", "--steps", 1, "--out", out)
    assert "does not exist yet" in immunity(*arguments).complaint
    assert "an earlier result to replace (a folder with sample.json)" in immunity(*arguments, "--force").complaint
    assert precious.exists()
    precious.unlink()
    for _ in range(2):  # an empty folder, then an earlier result
        assert immunity(*arguments, "--force").code == 0
    assert "does not exist yet" in immunity(*arguments).complaint
    assert "another path" in immunity("export", "--model", sd1, "--out", sd1, "--force").complaint


@pytest.mark.parametrize(
    ("out", "message"),
    [
        (".", "a path that ends in a name; got .; try result"),
        ("..", "a path that ends in a name; got ..; try ../result"),
        ("here/..", "a path that ends in a name"),
        ("/", "a result beside what it is made from"),
    ],
)
def test_a_result_has_a_name(sd1, pictures, place, monkeypatch, out, message):
    def fail(*_arguments: object, **_settings: object) -> None:
        raise AssertionError("the work has begun")

    monkeypatch.setattr("immunity.loading.load", fail)
    (place / "here").mkdir()
    monkeypatch.chdir(place / "here")
    on = ("--model", sd1, "--force", "--out", out)
    learned = ("--images", pictures, "--prompt", "x")
    for command in (
        ("sample", *on, "--prompt", "x"),
        ("export", *on),
        ("erase", *on, "--concept", "church", "uce"),
        ("adapt", *on, *learned, "lora"),
    ):
        assert message in immunity(*command).complaint


def test_a_folder_that_holds_what_the_result_is_made_from_is_never_replaced(sd1, pictures, place):
    attack, more = place / "attack", ("lora", "--steps", 1)
    learned = ("adapt", "--model", sd1, "--images", pictures, "--prompt", "x", "--out", attack)
    assert immunity(*learned, *more).code == 0
    delta = attack / "delta.safetensors"
    before = delta.read_bytes()
    for force in ((), ("--force",)):  # which must not be advised and then refused
        done = immunity(*learned, *force, "--deltas", delta, *more)
        assert f"a result beside what it is made from; got {attack}, which has {delta} in it" in done.complaint
    shutil.copytree(pictures, attack / "mine")
    mine = ("adapt", "--model", sd1, "--images", attack / "mine", "--prompt", "x", "--out", attack, "--force", *more)
    assert "beside what it is made from" in immunity(*mine).complaint
    shutil.copytree(sd1, attack / "model")
    within = ("export", "--model", attack / "model", "--out", attack, "--force")
    assert "beside what it is made from" in immunity(*within).complaint
    assert delta.read_bytes() == before


def test_only_what_export_wrote_is_replaced_by_export(sd1, place):
    out = place / "exported"
    shutil.copytree(sd1, out)
    (out / "README.md").write_text("# Somebody's model\n")
    arguments = ("export", "--model", sd1, "--out", out, "--force")
    assert "which is something else" in immunity(*arguments).complaint
    assert (out / "README.md").read_text() == "# Somebody's model\n"
    shutil.rmtree(out)
    for _ in range(2):
        assert immunity(*arguments).code == 0


def test_a_file_is_replaced_only_by_force(sd1, place, deltas):
    out = place / "erased.safetensors"
    out.write_bytes(deltas["first"].read_bytes())
    on = ("erase", "--model", sd1, "--concept", "church", "--out", out)
    assert "does not exist yet" in immunity(*on, "uce").complaint
    assert "a result beside what it is made from" in immunity(*on, "--force", "--deltas", out, "uce").complaint
    assert Delta.load(out).provenance.method == "Test"
    assert immunity(*on, "--force", "uce").code == 0
    assert Delta.load(out).provenance.method == "Uce"
    assert "ends in .safetensors" in immunity(*on[:-1], place / "erased", "uce").complaint
    (place / "folder.safetensors").mkdir()
    assert "a file to write" in immunity(*on[:-1], place / "folder.safetensors", "--force", "uce").complaint


def test_a_folder_of_something_else_is_not_used_for_checkpoints(erase, place):
    (place / "erased.safetensors.partial").mkdir()
    precious = place / "erased.safetensors.partial" / "precious"
    precious.touch()
    for force in ((), ("--force",)):
        assert "free for checkpoints" in erase("--concept", "church", *force)
    precious.unlink()
    precious.parent.rmdir()


def test_a_place_where_nothing_can_be_written(erase, place, sd1):
    (place / "file").touch()
    out = place / "file" / "erased.safetensors"
    done = immunity("erase", "--model", sd1, "--concept", "church", "--out", out, "uce")
    assert "Not a directory" in done.complaint


# A full disk


@pytest.fixture
def full_disk(place) -> Iterator[Path]:
    """A folder on a disk of 40 kB."""
    folder = place / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=40k", "tmpfs", str(folder)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("only root can mount a small disk")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def test_a_disk_that_is_full(full_disk, sd1, pictures):
    def immunize() -> Done:
        return immunity(
            *("immunize", "--model", sd1, "--images", pictures, "--prompt", "x"),
            *("--out", full_disk / "immune.safetensors"),
            *("imma", "--steps", 2, "--against", "lora", "--rank", 1),
        )

    assert "No space left on device" in immunize().complaint
    assert not list(full_disk.iterdir())
    # With more room the checkpoint fits in, but not the result beside it: the run is kept.
    subprocess.run(["mount", "-o", "remount,size=176k", str(full_disk)], check=True)
    assert "No space left on device" in immunize().complaint
    assert [path.name for path in full_disk.iterdir()] == ["immune.safetensors.partial"]
    subprocess.run(["mount", "-o", "remount,size=1m", str(full_disk)], check=True)
    done = immunize()
    assert done.code == 0, done
    assert "going on from" in done.err
    assert [path.name for path in full_disk.iterdir()] == ["immune.safetensors"]


def test_an_error_of_the_disk_that_nobody_foresaw(sd1, place, monkeypatch):
    def fail(*_arguments: object, **_settings: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "mkdir", fail)
    done = immunity("sample", "--model", sd1, "--prompt", "x", "--steps", 1, "--out", place / "out")
    assert "No space left on device" in done.complaint
    assert not (place / "out").exists()


def test_memory_that_runs_out(sd1, place, monkeypatch):
    def fail(*_arguments: object, **_settings: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\nMore words")

    monkeypatch.setattr("immunity.models.unet.UNetModel.sample", fail)
    done = immunity("sample", "--model", sd1, "--prompt", "x", "--out", place / "out")
    assert "CUDA out of memory. Tried to allocate 2 GiB.; try a smaller --batch" in done.complaint
