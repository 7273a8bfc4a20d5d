import pytest
import torch

from immunity.metrics import DinoJudge, DinoSimilarity

from tests import tiny_judges


def test_a_transformers_feature_is_its_class_token(tmp_path, images):
    from transformers import ViTModel

    folder = tiny_judges.dino_transformer(tmp_path)
    judge = DinoJudge.load(folder)
    plain = ViTModel.from_pretrained(folder, add_pooling_layer=False).eval()
    with torch.no_grad():
        wanted = plain(judge.preprocessing(images)).last_hidden_state[:, 0]
    torch.testing.assert_close(judge.features(images), wanted)


def test_a_convolutional_feature_is_the_mean_over_the_picture(tmp_path, images):
    from transformers import ResNetModel

    folder = tiny_judges.dino_convolutional(tmp_path)
    judge = DinoJudge.load(folder, batch=2)
    plain = ResNetModel.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        wanted = plain(judge.preprocessing(images)).pooler_output.flatten(1)
    torch.testing.assert_close(judge.features(images), wanted)


@pytest.mark.parametrize("build", [tiny_judges.dino_transformer, tiny_judges.dino_convolutional])
def test_similarity_is_the_mean_cosine_over_the_references(tmp_path, images, references, build):
    metric = DinoSimilarity(DinoJudge.load(build(tmp_path)))
    one_by_one = torch.stack([metric(images, one[None]) for one in references]).mean(0)
    torch.testing.assert_close(metric(images, references), one_by_one)
    torch.testing.assert_close(metric(images[:1], images[:1]), torch.ones(1))
