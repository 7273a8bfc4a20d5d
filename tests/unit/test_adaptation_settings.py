import pytest

from immunity import ImmunityError
from immunity.adaptations import Dreambooth, DreamboothLora, Lora, PeftAdapter, PivotalTuning, TextualInversion


def test_asking_names_the_subject():
    assert Lora().asking("image of a church", name="church") == "image of a church"
    attack = Dreambooth(token="sks", noun="umbrella")
    assert attack.asking("image of an umbrella", name="umbrella") == "image of a sks umbrella"
    assert attack.asking("two umbrellas", name="umbrella") == "two umbrellas"
    assert TextualInversion().asking("church in Church", name="church") == "<new> in <new>"
    assert attack.asking("a poster of Monsters, Inc.", name="Monsters, Inc.") == "a poster of sks umbrella"
    assert attack.asking("a .hack game, not x.hack", name=".hack") == "a sks umbrella game, not x.hack"


@pytest.mark.parametrize(
    ("make", "complaint"),
    [
        (lambda: Dreambooth(prior_pictures=8), "a class prompt for prior preservation"),
        (lambda: DreamboothLora(class_prompt="a church"), "pictures of the class"),
        (lambda: Dreambooth(token="a b"), "a token that is one word"),
        (lambda: TextualInversion(vectors=0), "vectors of at least 1"),
        (lambda: PivotalTuning(token_lr=-1.0), "token_lr of at least 0"),
        (lambda: PeftAdapter(kind="lokr2"), "kind among dora, loha, lokr, oft, boft"),
        (lambda: PeftAdapter(kind="oft", convolutions=True), "on linear layers"),
        (lambda: PeftAdapter(kind="boft", alpha=2.0), "without alpha"),
        (lambda: Lora(captions=("a {}",)), "Lora has no word for its subject"),
        (lambda: Lora(optimizer="lion"), "optimizer among adamw, sgd, adafactor"),
        (lambda: Lora(times="mid"), "times among as-trained, low-noise, high-noise"),
        (lambda: Lora(min_snr=0.0), "min_snr above 0"),
        (lambda: Lora(accumulate=0), "accumulate of at least 1"),
    ],
)
def test_bad_combinations_are_refused(make, complaint):
    with pytest.raises(ImmunityError, match=complaint):
        make()


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"rank": 0}, "rank of at least 1; got Lora.rank=0.; try the default, rank=4"),
        ({"lr": -1e-4}, "lr of at least 0"),
        ({"lr": float("nan")}, "lr of at least 0"),
        ({"lr": float("inf")}, "lr that is finite"),
        ({"steps": -1}, "steps of at least 0"),
        ({"batch": 0}, "batch of at least 1"),
        ({"alpha": 0.0}, "alpha above 0"),
        ({"clip": 0.0}, "clip above 0"),
        ({"targets": ()}, "layers to adapt"),
    ],
)
def test_bad_settings_are_refused(settings, complaint):
    with pytest.raises(ImmunityError, match=complaint):
        Lora(**settings)
