"""The parts of the recipe's training that have a right answer."""

import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

RECIPE = Path(__file__).parents[2] / "studies" / "emoji_world"


@pytest.fixture(scope="module")
def recipe():
    """Imports one module of the recipe, a folder of scripts, by name; they are forgotten afterwards."""
    before = set(sys.modules)
    sys.path.insert(0, str(RECIPE))

    def load(name: str) -> ModuleType:
        return __import__(name)

    yield load
    sys.path.remove(str(RECIPE))
    for name in set(sys.modules) - before:
        origin = getattr(sys.modules[name], "__file__", None)
        if origin and Path(origin).parent == RECIPE:
            del sys.modules[name]


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(3)


def test_augmented_pictures_differ_stay_in_range_and_repeat(recipe, generator):
    augment = recipe("augment")
    ink = torch.rand(16, 3, 64, 64, generator=generator)
    first = augment.augment(ink, 48, augment.STRONG, torch.Generator().manual_seed(1))
    assert first.shape == (16, 3, 48, 48)
    assert first.min() >= 0
    assert first.max() <= 1
    assert torch.equal(first, augment.augment(ink, 48, augment.STRONG, torch.Generator().manual_seed(1)))
    assert not torch.equal(first, augment.augment(ink, 48, augment.STRONG, torch.Generator().manual_seed(2)))


def test_no_strength_is_no_change(recipe, generator):
    augment = recipe("augment")
    ink = torch.rand(4, 3, 32, 32, generator=generator)
    still = augment.Recipe(flip=0)
    torch.testing.assert_close(augment.augment(ink, 32, still, generator), ink, rtol=0, atol=1e-5)


def test_recolouring_keeps_white_paper_white(recipe, generator):
    augment = recipe("augment")
    white = augment.recolour(torch.zeros(32, 3, 4, 4), augment.STRONG, generator)
    assert white.max() < 0.02


def test_pieces_are_whole_pixels_of_the_picture(recipe, generator):
    augment = recipe("augment")
    colours = torch.rand(1, 3, 1, 1, generator=generator).expand(8, 3, 64, 64)
    pieces = augment.pieces(colours, 40, generator, margin=0, soft=0, grain=0)
    assert torch.equal(pieces, colours[..., :40, :40])
    numbered = torch.arange(64.0).div(64).expand(8, 3, 64, 64)
    pieces = augment.pieces(numbered, 40, generator, margin=0, soft=0, grain=0)
    steps = pieces.diff(dim=-1) * 64
    assert set(steps.flatten().tolist()) == {1.0, -1.0}, "some are flipped, none is resampled"


def test_a_temperature_undoes_what_was_done_to_the_logits(recipe, generator):
    calibration = recipe("calibration")
    logits = torch.randn(4000, 5, generator=generator) * 2
    labels = torch.multinomial(logits.softmax(1), 1, generator=generator)[:, 0]
    assert calibration.temperature(logits * 3, labels) == pytest.approx(3, rel=0.1)
    honest = calibration.expected_error(calibration.curve(logits.softmax(1), labels))
    boastful = calibration.expected_error(calibration.curve((logits * 3).softmax(1), labels))
    assert honest < 0.04 < 0.1 < boastful


def test_captions_fit_what_they_say_and_nothing_else(recipe):
    fits = recipe("judges_clip").fits
    shown = [("church", "noto"), ("church", "blob"), ("castle", "noto")]
    said = [("church", None), ("church", "blob"), (None, "noto"), (None, None)]
    assert fits(said, shown).int().tolist() == [[1, 1, 0], [0, 1, 0], [1, 0, 1], [1, 1, 1]]


def test_the_contrast_of_one_positive_each_is_the_usual_one(recipe, generator):
    contrast = recipe("judges_clip").contrast
    texts, images = (torch.nn.functional.normalize(torch.randn(6, 8, generator=generator), dim=1) for _ in range(2))
    logits, order = 10 * texts @ images.T, torch.arange(6)
    usual = (torch.nn.functional.cross_entropy(logits, order) + torch.nn.functional.cross_entropy(logits.T, order)) / 2
    torch.testing.assert_close(contrast(texts, images, torch.tensor(10.0), torch.eye(6, dtype=torch.bool)), usual)


def test_the_nearest_neighbour_is_sought_in_other_styles_only(recipe):
    nearest = recipe("judges_dino").nearest
    x = torch.tensor([[1.0, 0.0], [1.0, 0.05], [0.0, 1.0], [0.9, 0.1]])
    objects, styles = ["church", "castle", "castle", "church"], ["noto", "noto", "blob", "twemoji"]
    assert nearest(x, objects, styles).tolist() == [True, False, False, False]
    # Without its relative "noto", the castle in "blob" is left with the church alone.
    assert nearest(x, objects, styles, without_relatives=True).tolist() == [True, False, False, False]


@pytest.mark.parametrize("kind", ["blur", "noise", "shift", "colour", "warp", "fade"])
def test_a_stronger_distortion_changes_more_and_none_changes_nothing(recipe, generator, kind):
    lpips = recipe("judges_lpips")
    distort = (lpips.FITTED | lpips.UNFITTED)[kind]
    ink = torch.zeros(4, 3, 64, 64)
    ink[:, :, 20:44, 16:48] = torch.rand(4, 3, 1, 1, generator=generator)
    strengths = [torch.full((4,), s) for s in (0.0, 0.3, 1.0)]
    none, weak, strong = lpips.same_draws(distort, ink, strengths, seed=5)
    torch.testing.assert_close(none, ink, rtol=0, atol=1e-4)
    assert ((strong - ink).abs().mean((1, 2, 3)) > (weak - ink).abs().mean((1, 2, 3))).all()


def test_rank_correlation_is_spearmans(recipe):
    values = torch.tensor([[1.0, 2, 3, 4], [4, 3, 2, 1], [1, 3, 2, 4], [5, 5, 5, 5]])
    torch.testing.assert_close(recipe("judges_lpips").rank_correlation(values), torch.tensor([1.0, -1, 0.8, 0]))


def test_a_killed_stage_goes_on_to_the_same_weights(tmp_path, recipe):
    training = recipe("training")

    def train(folder, *, until=None, steps=12):
        torch.manual_seed(0)
        net = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4))
        run = training.Run({"net": net}, training.Plan(steps=steps, rate=1e-2, warmup=2), folder)

        def loss(step, generator):
            if step == until:
                run.save()
                raise KeyboardInterrupt
            return net(torch.randn(2, 3, 8, 8, generator=generator)).square().mean()

        run.loop(loss)
        return {**net.state_dict(), **run.average}

    whole = train(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "killed", until=5)
    resumed = train(tmp_path / "killed")
    assert all(torch.equal(resumed[name], value) for name, value in whole.items())
    with pytest.raises(SystemExit, match="of another plan"):
        train(tmp_path / "killed", steps=24)


def test_an_error_counts_in_the_picture_at_every_time(recipe):
    """The expected loss, density × weight, is SNR + 1/2 in units of the picture's error, and min-SNR's for epsilon."""
    generator = recipe("generator")
    snr = torch.tensor([100.0, 2.0, 0.01])
    pictures, noise = generator.Weighting.of_pictures(snr), generator.Weighting.of_noise(snr)
    torch.testing.assert_close(pictures.density * pictures.weight * snr, torch.tensor([5.0, 2.5, 0.51]))
    torch.testing.assert_close(noise.density * noise.weight, torch.tensor([0.05, 1.0, 1.0]))
    assert pictures.density.mean() == pytest.approx(1)
    assert pictures.density[2] > 3 * pictures.density[0]


def test_times_are_spread_over_the_density(recipe, generator):
    """Sixteen draws of a density that has three quarters of its mass in its second half hold twelve from there."""
    weighting = recipe("generator").Weighting.of(torch.tensor([1.0] * 50 + [3.0] * 50), torch.ones(100))
    times = weighting.spread_times(16, generator)
    assert (times >= 50).sum() == 12
    assert times.max() <= 99
    assert times.tolist() != sorted(times.tolist())
