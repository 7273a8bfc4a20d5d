import pytest
from safetensors.torch import load_file, save_file

from immunity import ImmunityError
from immunity.metrics import Classifier, ClipJudge, DinoJudge

from tests import tiny_judges


@pytest.mark.parametrize("load", [ClipJudge.load, DinoJudge.load])
def test_a_judge_that_is_nowhere_says_how_to_get_it(load, monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ImmunityError, match=r"local cache.*hf download"):
        load("nobody/has-this")


def test_a_folder_without_a_model_is_said(tmp_path):
    with pytest.raises(ImmunityError, match=r"a folder without config\.json"):
        Classifier.load(tmp_path)


@pytest.mark.parametrize("missing", ["model.safetensors", "preprocessor_config.json"])
def test_a_folder_that_is_not_whole_is_said(tmp_path, missing):
    folder = tiny_judges.classifier(tmp_path)
    (folder / missing).unlink()
    with pytest.raises(ImmunityError, match="complete"):
        Classifier.load(folder)


def test_weights_that_are_cut_short_are_said(tmp_path):
    folder = tiny_judges.classifier(tmp_path)
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(ImmunityError, match="a complete copy"):
        Classifier.load(folder)


def test_a_weight_that_the_file_lacks_is_not_made_up(tmp_path):
    folder = tiny_judges.classifier(tmp_path)
    weights = load_file(folder / "model.safetensors")
    kept = {name: weight for name, weight in weights.items() if not name.startswith("classifier.")}
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ImmunityError, match=r"all weights of an image classifier.*none for classifier\.1\.bias"):
        Classifier.load(folder)
