import pytest

from immunity import WorldBench, load
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


def test_a_study_finds_it_beside_a_folder_of_its_name(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "emoji").mkdir()
    assert load(WorldBench().source).name == "emoji"


def test_no_relatives_pictures_are_on_both_sides(world):
    panel = WorldBench().open(device="cpu", size=world.resolution)
    sides = []
    for number, concept in enumerate(world.concepts("object", "held_out")[:20]):
        pictures = [panel.pictures(concept.name, side, seed=number, alone=False) for side in ("attack", "defence")]
        hands = [{source.split("/")[-1] for source in each.sources} for each in pictures]
        families = [{world.family(hand) for hand in each} for each in hands]
        assert not families[0] & families[1]
        assert len(hands[0]) == len(hands[1]) == len(world.examples(concept.name)) // 2
        sides.append(frozenset(hands[0]))
    assert len(set(sides)) > 4, "which side has whom is drawn"
