import pytest
import torch

from immunity import ImmunityError
from immunity.metrics import Accuracy, Classifier, Probability

from tests import tiny_judges


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_judges.classifier(tmp_path_factory.mktemp("classifier"))


@pytest.fixture(scope="module")
def judge(folder):
    return Classifier.load(folder, batch=2)


def test_it_knows_its_classes_in_order(judge):
    assert judge.classes == tiny_judges.CLASSES


def test_probabilities_are_the_tempered_softmax(folder, judge, images):
    from transformers import AutoModelForImageClassification

    plain = AutoModelForImageClassification.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        logits = plain(judge.preprocessing(images)).logits
    torch.testing.assert_close(judge.probabilities(images), logits.softmax(1))
    tempered = Classifier.load(folder, temperature=0.1).probabilities(images)
    torch.testing.assert_close(tempered, (logits / 0.1).softmax(1))


def test_accuracy_is_one_where_the_label_is_the_first_guess(judge, images):
    guesses = [judge.classes[i] for i in judge.probabilities(images).argmax(1)]
    metric = Accuracy(judge, "object_accuracy")
    assert torch.equal(metric(images, guesses), torch.ones(5))
    others = ["castle" if guess == "church" else "church" for guess in guesses]
    assert torch.equal(metric(images, others), torch.zeros(5))


def test_the_probabilities_of_all_labels_sum_to_one(judge, images):
    metric = Probability(judge, "object_probability")
    total = sum(metric(images, [name]) for name in judge.classes)
    torch.testing.assert_close(total, torch.ones(5))


def test_a_name_that_is_no_class_is_said(judge, images):
    with pytest.raises(ImmunityError, match="3 classes; got 'hous'"):
        Accuracy(judge, "object_accuracy")(images, ["hous"])


def test_a_class_may_list_several_names(tmp_path, images):
    classes = ("tench, Tinca tinca", "church, church building", "crane", "crane, machine")
    judge = Classifier.load(tiny_judges.classifier(tmp_path, classes))
    assert judge.indices(["church", "Church Building", "tinca tinca", "tench, Tinca tinca"]).tolist() == [1, 1, 0, 0]
    assert judge.indices(["crane"]).tolist() == [2], "a whole name comes first"
    with pytest.raises(ImmunityError, match="got 'building'"):
        judge.indices(["building"])


def test_a_name_of_two_classes_is_refused(tmp_path):
    judge = Classifier.load(tiny_judges.classifier(tmp_path, ("crane, bird", "crane, machine")))
    with pytest.raises(ImmunityError, match=r"names 'crane, bird' \(0\) and 'crane, machine' \(1\); try the number"):
        judge.indices(["crane"])
    assert judge.indices(["1", "crane, bird"]).tolist() == [1, 0]
