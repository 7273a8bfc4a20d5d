import pytest
import torch
import torch.nn.functional as F

from immunity import ImmunityError
from immunity.metrics import ClipJudge, ClipScore, ClipSimilarity, ZeroShot

from tests import tiny_judges


@pytest.fixture(scope="module", params=["clip", "dual_encoder"])
def folder(request, tmp_path_factory):
    return getattr(tiny_judges, request.param)(tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="module")
def judge(folder):
    return ClipJudge.load(folder, batch=2)


def test_it_is_loaded_in_float32(judge):
    assert {p.dtype for p in judge.model.parameters()} == {torch.float32}
    assert not judge.model.training


def test_logits_are_those_of_the_whole_model(judge, images):
    texts = ["image of a church", "image of a castle", "church"]
    tokens = judge.tokenizer(texts, padding="max_length", max_length=16, return_tensors="pt")
    with torch.no_grad():
        wanted = judge.model(
            input_ids=tokens["input_ids"],
            attention_mask=tokens["attention_mask"],
            pixel_values=judge.preprocessing(images),
        ).logits_per_image
    torch.testing.assert_close(judge.logits(images, texts), wanted, rtol=1e-4, atol=1e-4)


def test_similarity_is_the_mean_cosine_over_the_references(judge, images, references):
    metric = ClipSimilarity(judge)
    scores = metric(images, references)
    one_by_one = torch.stack([metric(images, one[None]) for one in references]).mean(0)
    torch.testing.assert_close(scores, one_by_one)
    assert scores.shape == (5,)
    assert scores.dtype == torch.float32
    torch.testing.assert_close(metric(images[:1], images[:1]), torch.ones(1))


def test_a_text_scores_the_same_alone_and_beside_longer_ones(judge, images):
    metric = ClipScore(judge)
    alone = metric(images, ["church"])
    beside = metric(images, ["church", *["image of a church in the style of a castle"] * 4])
    torch.testing.assert_close(alone[0], beside[0])


def test_a_score_is_the_cosine_of_image_and_text(judge, images):
    texts = ["a", "b", "a", "c", "b"]
    wanted = F.cosine_similarity(judge.image_features(images), judge.text_features(texts))
    torch.testing.assert_close(ClipScore(judge)(images, texts), wanted)


def test_a_text_that_is_too_long_is_cut(judge):
    assert judge.text_features(["church " * 100]).isfinite().all()


def test_zero_shot_says_which_prompt_is_nearest(judge, images):
    metric = ZeroShot(judge, ("church", "castle"), ("image of a church", "image of a castle"))
    church, castle = metric(images, ["church"]), metric(images, ["castle"])
    assert torch.equal(church + castle, torch.ones(5))
    with pytest.raises(ImmunityError, match="got 'house'"):
        metric(images, ["house"])
    with pytest.raises(ImmunityError, match="one prompt for each of 2 classes"):
        ZeroShot(judge, ("church", "castle"), ("image of a church",))


def test_another_model_is_refused(tmp_path):
    with pytest.raises(ImmunityError, match="got vit"):
        ClipJudge.load(tiny_judges.dino_transformer(tmp_path))
