"""The model card of an exported model."""

import json

import torch

from immunity import Delta, Provenance
from immunity.evaluation.card import model_card
from immunity.evaluation.measure import Measurement
from immunity.records import MetricSpec


def delta(method: str, config: dict[str, object], parents: tuple[str, ...] = ()) -> Delta:
    made = Provenance(base="b", base_hash="0" * 64, method=method, config=config, seed=3, parents=parents)
    return Delta({"unet.a": torch.full((2,), float(len(method)))}, made)


ERASED = delta("Esd", {"steps": 200, "inputs": {"concepts": [{"name": "a church", "kind": "object"}]}})
IMMUNE = delta("Imma", {"steps": 9, "inputs": {"against": {"method": "Lora", "rank": 4, "targets": ["x"]}}})
ADAPTER = delta("Adapter", {"file": "x](http://evil) <b>\n# y.safetensors", "sha256": "f" * 64})
MEASURED = Measurement(
    concept="church",
    pictures=("1.png", "2.png"),
    metrics=(MetricSpec(name="clip", kind="similarity", label="CLIP similarity"),),
    scores={"clip": (0.125, 0.375)},
    references=("real.png",),
)


def test_the_card_says_what_was_done():
    card = model_card(
        "my model",
        base="somebody/something",
        base_hash="0123456789abcdef0123",
        deltas=[ERASED, IMMUNE, ADAPTER],
        measured=[MEASURED],
    )
    front, body = card.removeprefix("---\n").split("\n---\n\n")
    fields = {key: json.loads(value) for key, value in (line.split(": ", 1) for line in front.splitlines())}
    assert fields == {
        "library_name": "diffusers",
        "pipeline_tag": "text-to-image",
        "base_model": "somebody/something",
        "tags": ["immunity", "concept-erasure", "immunization"],
    }
    assert "- a church (object), by `Esd` (steps 200), seed 3" in body
    assert "- Lora (rank 4), by `Imma` (steps 9), seed 3" in body
    assert r"the file x\](http://evil) \<b\> \# y.safetensors (SHA-256 ffff" in body, "nobody's file writes the card"
    assert "- church, mean of 2 pictures: CLIP similarity 0.250" in body
    assert "with 3 changes" in body


def test_the_card_of_a_composition_tells_its_parts_and_of_nothing_nothing():
    together = Delta.compose([ERASED, delta("Imma", IMMUNE.provenance.config, ERASED.lineage)])
    body = model_card("m", base="local", base_hash="0", deltas=[together])
    assert "- a church (object), by `Esd`" in body
    assert "- Lora (rank 4), by `Imma`" in body
    assert "base_model" not in body
    empty = model_card("m", base="local", base_hash="0", deltas=[])
    assert empty.count("Nothing.") == 2
    assert "Nothing that this card knows of." in empty
    assert "What else" not in empty
