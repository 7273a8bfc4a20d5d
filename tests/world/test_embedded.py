import pytest

from immunity import load
from immunity.concepts import Examples

pytestmark = pytest.mark.world


def test_every_concept_has_prompts_and_church_has_pictures(world):
    for kind in ("object", "style"):
        concepts = world.concepts(kind, "trained")
        assert concepts
        assert all(concept.prompts for concept in concepts)
    examples = world.examples("church")
    assert isinstance(examples, Examples)
    assert examples.images.shape[1:] == (3, world.resolution, world.resolution)
    assert set(world.study_objects) <= {entry.name for entry in world.objects}


def test_it_draws_the_same_picture_as_plain_diffusers(world):
    import torch
    from diffusers import StableDiffusionPipeline

    prompt = world.prompt("church", world.styles[0].name)
    ours = load("emoji").sample([prompt], seeds=[0], steps=4)
    plain = StableDiffusionPipeline.from_pretrained(world.generator, torch_dtype=torch.float32)
    plain.set_progress_bar_config(disable=True)
    theirs = plain([prompt], generator=[torch.Generator().manual_seed(0)], num_inference_steps=4, output_type="pt")
    assert torch.equal(ours, theirs.images)
    assert ours.std() > 0.05
