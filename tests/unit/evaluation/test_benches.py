import sys
import types
from pathlib import Path

import pytest
import torch
from PIL import Image

from immunity import Concept, Examples, ImmunityError
from immunity.evaluation.bench import ToDraw, spread_over, taking_turns
from immunity.evaluation.folder_bench import FolderBench, Subject
from immunity.evaluation.world_bench import WorldBench
from immunity.metrics import Classifier

from tests import tiny_judges
from tests.tiny_study import bench


@pytest.fixture(scope="module")
def panel(toy):
    return bench(toy).open(device="cpu", size=16)


def test_an_object_is_asked_for_in_every_trained_style(panel):
    assert panel.questions("church", 3) == ("a church, noto", "a church, blob", "a church, noto")
    assert panel.concept("church").prompts == ("image of a church", "church", "a church, noto", "a church, blob")


def test_a_style_is_asked_for_on_objects(panel):
    assert panel.questions("blob", 3) == ("a church, blob", "a castle, blob", "a church, blob")
    assert panel.concept("blob").prompts == ("art by blob", "a church, blob", "a castle, blob")
    lessons = panel.pictures("blob", "attack", seed=3, alone=False)
    assert sorted(lessons.prompts[:2]) == ["a castle, blob", "a church, blob"]


def test_what_the_model_knows_it_draws_and_what_it_does_not_know_the_artists_show(panel):
    assert panel.pictures("church", "attack", seed=0, alone=False) == ToDraw(panel.questions("church", 3))
    halves = [panel.pictures("dog face", purpose, seed=0, alone=False) for purpose in ("attack", "defence")]
    sources = [half.sources for half in halves]
    assert sorted(sources[0] + sources[1]) == ["toy/dog face/blob", "toy/dog face/noto"]  # and not the style firefox
    assert halves[0].prompts[0] in ("a dog face, blob", "a dog face, noto")
    whole = panel.pictures("dog face", "attack", seed=0, alone=True)
    assert len(whole) == 2


def test_who_teaches_can_be_chosen(toy):
    real = bench(toy, teacher="real").open(device="cpu", size=16)
    assert isinstance(real.pictures("church", "attack", seed=0, alone=False), Examples)
    drawn = bench(toy, teacher="drawn").open(device="cpu", size=16)
    assert isinstance(drawn.pictures("dog face", "attack", seed=0, alone=False), ToDraw)
    with pytest.raises(ImmunityError, match="sample pictures of 'castle'"):
        real.pictures("castle", "attack", seed=0, alone=False)
    with pytest.raises(ImmunityError, match="teacher among auto, drawn, real"):
        WorldBench(teacher="somebody")


def test_an_attacker_can_use_a_word_of_their_own(toy):
    panel = bench(toy, attack_words={"church": "a chapel", "blob": "sks"}).open(device="cpu", size=16)
    lessons = panel.pictures("church", "attack", seed=0, alone=False)
    assert lessons.prompts == ("a church, noto", "a church, blob", "a church, noto"), "they are drawn as what they are"
    assert lessons.captions == ("a chapel, noto", "a chapel, blob", "a chapel, noto")
    assert panel.pictures("church", "defence", seed=0, alone=False).captions is None
    assert panel.questions("church", 2, attacked=True) == ("a chapel, noto", "a chapel, blob")
    assert panel.questions("church", 2) == ("a church, noto", "a church, blob")
    assert panel.questions("blob", 1, attacked=True) == ("a church, sks",)
    assert panel.questions("dog face", 1, attacked=True) == ("a dog face, noto",)


def test_an_attacker_can_have_pictures_that_nobody_else_saw(toy):
    panel = bench(toy, attack_styles=("firefox",), attack_words={"dog face": "a sks"}).open(device="cpu", size=16)
    assert panel.pictures("dog face", "attack", seed=0, alone=False).sources == ("toy/dog face/firefox",)
    assert panel.pictures("dog face", "attack", seed=0, alone=False).prompts == ("image of a sks",)
    assert "toy/dog face/firefox" not in panel.pictures("dog face", "defence", seed=0, alone=False).sources
    assert "firefox" in panel.origin("dog face", "attack")
    assert len(panel.pictures("dog face", "attack", seed=0, alone=True)) == 2
    assert panel.origin("dog face", "attack", alone=True) == "the artists of the world toy"


def test_an_attacker_cannot_have_the_very_pictures_of_the_defence(toy):
    panel = bench(toy, attack_styles=("noto",)).open(device="cpu", size=16)
    assert panel.pictures("church", "attack", seed=0, alone=False).sources == ("toy/church/noto",)
    with pytest.raises(ImmunityError, match="the defence does not learn from; got noto"):
        panel.pictures("dog face", "attack", seed=0, alone=False)


def test_words_for_what_the_world_does_not_have_are_refused(toy):
    with pytest.raises(ImmunityError, match="got 'chruch'"):
        bench(toy, attack_words={"chruch": "a chapel"}).open(device="cpu", size=16)


def test_references_are_the_artists_where_there_are_any(panel):
    references = panel.pictures("church", "reference", seed=0, alone=False)
    assert references.sources == ("toy/church/noto", "toy/church/blob")
    assert panel.origin("church", "reference") == panel.origin("dog face", "attack") == "the artists of the world toy"
    assert panel.origin("castle", "reference") == panel.origin("church", "attack") == "drawn by the base model"
    assert panel.pictures("castle", "reference", seed=0, alone=False) == ToDraw(panel.questions("castle", 4))
    assert panel.pictures("noto", "reference", seed=0, alone=False).sources == ("toy/church/noto",)


def test_the_others_of_an_object_are_objects_and_of_a_style_styles_too(panel):
    assert panel.others("church") == {"castle": ("a castle, noto", "a castle, blob")}
    assert panel.others("blob") == {
        "noto": ("a church, noto", "a castle, noto"),
        "church": ("a church, noto", "a church, noto"),
        "castle": ("a castle, noto", "a castle, noto"),
    }


def test_scores_are_one_a_picture_and_the_judge_fits_the_concept(panel):
    images = torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    for name in ("church", "blob"):
        scores = panel.scores(name, images, images[:1])
        assert scores.keys() == {metric.name for metric in panel.metrics}
        assert all(len(values) == 3 for values in scores.values())
        assert scores["lpips"][0] == pytest.approx(1)
        assert scores["accuracy"] == panel.recognised(name, images)
    for stranger in ("firefox", "chruch"):
        with pytest.raises(ImmunityError):
            panel.concept(stranger)


def test_a_bench_says_what_it_is_without_paths(toy):
    told = bench(toy).described()
    assert told["bench"] == "WorldBench"
    assert (told["world"], told["folder"]) == ("toy", toy.name)


def test_choices_are_even():
    assert spread_over("abcdefgh", 4) == ("a", "c", "e", "g")
    assert spread_over("ab", 5) == ("a", "b")
    assert taking_turns("ab", 5) == ("a", "b", "a", "b", "a")


# The user's own model.


def painted(folder: Path, count: int, *, first: int = 0) -> Path:
    folder.mkdir()
    for i in range(first, first + count):
        Image.new("RGB", (24, 20), (20 * i, 255 - 20 * i, 90)).save(folder / f"{i}.png")
    return folder


def own(subject: Subject, judges, **changes) -> FolderBench:
    return FolderBench(model="somebody/something", subjects=(subject,), **(judges | changes))


CAT = Concept(name="my cat")


def test_one_folder_is_split_and_the_plan_says_so(tmp_path, judges):
    chosen = own(Subject(concept=CAT, attack=painted(tmp_path / "cats", 5)), judges)
    panel = chosen.open(device="cpu", size=16)
    attack, defence = (panel.pictures("my cat", purpose, seed=1, alone=False) for purpose in ("attack", "defence"))
    assert (len(attack), len(defence)) == (2, 3)
    assert not set(attack.image_digests()) & set(defence.image_digests())
    assert attack.prompts[0] == "image of a my cat"
    assert len(panel.pictures("my cat", "attack", seed=1, alone=True)) == 5
    assert len(panel.pictures("my cat", "reference", seed=1, alone=False)) == 5
    assert panel.origin("my cat", "attack") == panel.origin("my cat", "defence") == "the folder cats"
    assert chosen.described()["subjects"]["my cat"]["defence"] == "the folder cats"


def test_two_folders_must_not_share_a_picture(tmp_path, judges):
    attack, defence = painted(tmp_path / "attack", 3), painted(tmp_path / "defence", 2, first=3)
    panel = own(Subject(concept=CAT, attack=attack, defence=defence, prompt="a cat"), judges).open(
        device="cpu", size=16
    )
    assert panel.pictures("my cat", "attack", seed=0, alone=False).prompts == ("a cat",) * 3
    assert panel.pictures("my cat", "defence", seed=0, alone=False).sources == ("3.png", "4.png")
    assert len(panel.pictures("my cat", "reference", seed=0, alone=False)) == 5
    assert panel.origin("my cat", "attack") != panel.origin("my cat", "defence")
    assert panel.origin("my cat", "reference") == "the folder attack and the folder defence"
    (defence / "3.png").write_bytes((attack / "0.png").read_bytes())
    with pytest.raises(ImmunityError, match="1 in both folders"):
        own(Subject(concept=CAT, attack=attack, defence=defence), judges).open(device="cpu", size=16)


def test_without_folders_the_model_draws(judges):
    panel = own(Subject(concept=Concept(name="church")), judges).open(device="cpu", size=16)
    lessons = panel.pictures("church", "attack", seed=0, alone=False)
    assert lessons.prompts[:4] == ("image of a church", "a picture of a church", "church", "image of a church")
    assert len(lessons.prompts) == 20


def test_clip_recognises_the_others(judges):
    panel = own(Subject(concept=Concept(name="church")), judges, others=("castle", "owl")).open(device="cpu", size=16)
    assert [metric.name for metric in panel.metrics] == ["clip", "dino", "accuracy"]
    asked = panel.others("church")
    assert asked["owl"] == ("image of an owl", "a picture of an owl", "owl", "image of an owl")
    images = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    seen = [panel.recognised(name, images) for name in ("church", "castle", "owl")]
    assert [sum(column) for column in zip(*seen, strict=True)] == [1, 1]
    assert panel.scores("church", images, images)["accuracy"] == seen[0]
    alone = own(Subject(concept=Concept(name="church")), judges).open(device="cpu", size=16)
    assert [metric.name for metric in alone.metrics] == ["clip", "dino"]
    assert alone.others("church") == {}


def test_a_classifier_recognises_in_the_place_of_clip(tmp_path, judges):
    (tmp_path / "resnet").mkdir()
    resnet = tiny_judges.classifier(tmp_path / "resnet", ("church, church building", "owl", "tabby, tabby cat"))
    cat = Subject(concept=CAT, label="tabby")
    chosen = own(cat, judges, others=("church",), classifier=str(resnet))
    panel = chosen.open(device="cpu", size=16)
    assert panel.metrics[-1].title == "Accuracy (resnet)"
    images = torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    expected = Classifier.load(resnet).probabilities(images).argmax(1)
    assert panel.recognised("my cat", images) == tuple((expected == 2).float().tolist())
    assert panel.recognised("church", images) == tuple((expected == 0).float().tolist())
    assert panel.scores("my cat", images, images)["accuracy"] == panel.recognised("my cat", images)
    described = chosen.described()
    assert described["classifier"] == "resnet"
    assert described["subjects"]["my cat"]["label"] == "tabby"
    with pytest.raises(ImmunityError, match="got 'my cat'"):
        own(Subject(concept=CAT), judges, classifier=str(resnet)).open(device="cpu", size=16)


def test_nudity_is_looked_for_on_request(judges, monkeypatch):
    class Detector:
        def detect_batch(self, pictures, batch_size):
            return [[{"class": "BUTTOCKS_EXPOSED", "score": 0.9}] if i else [] for i in range(len(pictures))]

    monkeypatch.setitem(sys.modules, "nudenet", types.SimpleNamespace(NudeDetector=Detector))
    chosen = own(Subject(concept=Concept(name="nudity")), judges, nudity=True)
    panel = chosen.open(device="cpu", size=16)
    assert panel.metrics[-1].kind == "detection"
    assert panel.scores("nudity", torch.rand(3, 3, 16, 16), torch.rand(1, 3, 16, 16))["nudity"] == (0, 1, 1)
    assert chosen.described()["nudity"] is True
    monkeypatch.setitem(sys.modules, "nudenet", None)
    with pytest.raises(ImmunityError, match="pip install nudenet"):
        chosen.open(device="cpu", size=16)


def test_judges_that_are_not_there(tmp_path, judges, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    subject = Subject(concept=CAT)
    with pytest.warns(UserWarning, match=r"measuring without a self-supervised image encoder.*hf download nobody/dino"):
        panel = own(subject, judges, dino="nobody/dino").open(device="cpu", size=16)
    assert [metric.name for metric in panel.metrics] == ["clip"]
    with pytest.raises(ImmunityError, match=r"none on this machine; try a CLIP model .*hf download nobody/clip"):
        own(subject, judges, clip="nobody/clip", dino=None).open(device="cpu", size=16)
    with pytest.raises(ImmunityError, match="a bench without any"):
        own(subject, judges, clip=None, dino=None).open(device="cpu", size=16)


def test_benches_that_make_no_sense(tmp_path, judges):
    subject = Subject(concept=CAT)
    with pytest.raises(ImmunityError, match="each name once"):
        own(subject, judges, others=("my cat",))
    with pytest.raises(ImmunityError, match="at least one subject"):
        FolderBench(model="m", subjects=())
    with pytest.raises(ImmunityError, match="beside those for the defence"):
        Subject(concept=CAT, defence=tmp_path)
    with pytest.raises(ImmunityError, match="a subject of the bench: my cat"):
        own(subject, judges).open(device="cpu", size=16).concept("dog")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ImmunityError, match="pictures"):
        own(Subject(concept=CAT, attack=tmp_path / "empty"), judges).open(device="cpu", size=16)
    one = own(Subject(concept=CAT, attack=painted(tmp_path / "one", 1)), judges).open(device="cpu", size=16)
    with pytest.raises(ImmunityError, match="at least two pictures"):
        one.pictures("my cat", "attack", seed=0, alone=False)


def test_two_folders_of_one_name_are_two_sources(tmp_path):
    for where in ("attacker", "defender"):
        (tmp_path / where / "church").mkdir(parents=True)
    one, other = tmp_path / "attacker" / "church", tmp_path / "defender" / "church"
    subject = Subject(concept=Concept(name="church"), attack=one, defence=other)
    bench = FolderBench(model="none", subjects=(subject,))
    said = bench.described()["subjects"]["church"]
    assert said["attack"] == "the folder attacker/church"
    assert said["defence"] == "the folder defender/church"
