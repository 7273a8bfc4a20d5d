"""What every family of models promises."""

import math
import warnings

import diffusers
import pytest
import torch
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from immunity import Conditioning, Delta, ImmunityError, Provenance, load
from immunity.deltas import hash_tensors

from tests import tiny

PROMPTS = ["image of a church", "a castle", ""]


def noise(model, n: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, *model.latent_shape, generator=torch.Generator().manual_seed(seed))


def drawn(folder, family: str, prompts: list[str], seeds: list[int], *, steps: int, guidance: float) -> torch.Tensor:
    """By plain diffusers."""
    arguments = tiny.plain_arguments(family, prompts, guidance)
    pipeline = tiny.plain(folder)
    return pipeline(**arguments, generator=generators(seeds), num_inference_steps=steps, output_type="pt").images


def generators(seeds) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def test_shapes_and_ranges(model, family):
    images = torch.rand(2, 3, model.resolution, model.resolution)
    latents = model.encode_images(images)
    assert latents.shape == (2, *model.latent_shape)
    decoded = model.decode_latents(latents)
    assert decoded.shape == images.shape
    assert 0 <= decoded.min() <= decoded.max() <= 1
    times = model.sample_times(2, torch.Generator().manual_seed(0))
    assert times.dtype == (torch.float32 if family in tiny.FLOWS else torch.int64)
    output = model.predict(model.add_noise(latents, noise(model, 2), times), times, model.encode_prompts(PROMPTS[:2]))
    assert output.shape == latents.shape
    assert output.isfinite().all()


def test_encoding_is_the_mean_or_a_seeded_sample(model):
    images = torch.rand(2, 3, model.resolution, model.resolution)
    mean = model.encode_images(images)
    assert torch.equal(mean, model.encode_images(images))
    drawn = [model.encode_images(images, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1)]
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])
    assert not torch.equal(drawn[0], mean)


def test_images_that_do_not_fit_are_refused(model):
    for shape in ((3, 16, 16), (1, 1, 16, 16), (1, 3, 17, 16)):
        with pytest.raises(ImmunityError, match=r"multiples of [24]"):
            model.encode_images(torch.zeros(shape))


def plainly_encoded(folder, family: str) -> tuple[Conditioning, Conditioning | None]:
    """The prompts, and what the pipeline guides away from."""
    pipeline = tiny.plain(folder)
    match pipeline.encode_prompt(**ENCODING.get(family, {"device": "cpu"}), prompt=PROMPTS):
        case embeddings, mask, negative, negative_mask if family == "pixart":
            return Conditioning(embeddings, mask=mask), Conditioning(negative, mask=negative_mask)
        case embeddings, negative, pooled, negative_pooled:
            return Conditioning(embeddings, pooled), Conditioning(negative, negative_pooled)
        case embeddings, pooled, _ids:
            return Conditioning(embeddings, pooled), None
        case embeddings, negative:
            return Conditioning(embeddings), Conditioning(negative)


_SD = {"device": "cpu", "num_images_per_prompt": 1, "do_classifier_free_guidance": True}
ENCODING = {
    **dict.fromkeys(("sd1", "sd2", "sd2v"), _SD),
    "sd3": {"prompt_2": None, "prompt_3": None},
    "sd35": {"prompt_2": None, "prompt_3": None},
}


def assert_same(one: Conditioning, other: Conditioning) -> None:
    for ours, theirs in ((one.embeddings, other.embeddings), (one.pooled, other.pooled), (one.mask, other.mask)):
        assert (ours is None) == (theirs is None)
        if ours is not None:
            torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)


def test_prompts_as_the_plain_pipeline_encodes_them(model, folder, family):
    asked, negative = plainly_encoded(folder, family)
    assert_same(model.encode_prompts(PROMPTS), asked)
    if negative is not None:
        assert_same(model.unconditional(), negative[:1])


def test_a_long_prompt_is_cut_with_a_warning(model):
    limit = max(text.limit for text in model._text_encoders())
    with pytest.warns(UserWarning, match=f"cut to {limit} tokens: 'church church"):
        conditioning = model.encode_prompts(["church " * (limit + 10)])
    assert conditioning.embeddings.shape == model.encode_prompts(["x"]).embeddings.shape
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.encode_prompts(["church " * (limit - 2)])


def test_conditioning_is_a_sequence(model):
    whole = model.encode_prompts(PROMPTS)
    assert len(whole) == 3
    assert torch.equal(whole[1].embeddings, whole.embeddings[1:2])
    assert torch.equal(whole[[2, 0]].embeddings, whole.embeddings[[2, 0]])
    assert torch.equal(Conditioning.cat([whole[:1], whole[1:]]).embeddings, whole.embeddings)
    assert torch.equal(whole.repeat(2)[3:].embeddings, whole.embeddings)
    assert whole.to(dtype=torch.float64).embeddings.dtype == torch.float64
    marks = (whole.embeddings[..., 0] > 0).long()
    full = Conditioning(whole.embeddings, whole.embeddings[:, 0], marks)
    again = Conditioning.cat([full[:1], full[1:]])
    assert torch.equal(again.pooled, full.pooled)
    assert torch.equal(again.mask, marks)
    assert full.to(dtype=torch.float64).mask.dtype == torch.int64
    assert not full.zeros_like().pooled.any()


def test_the_noisy_latents_are_those_of_the_scheduler(model, folder, family):
    from diffusers import DDPMScheduler

    scheduler = tiny.plain(folder).scheduler
    latents, eps = noise(model, 4), noise(model, 4, 1)
    if family in tiny.FLOWS:
        times = scheduler.timesteps[[0, 10, 500, 999]]
        noisy, target = scheduler.scale_noise(latents, times, eps), eps - latents
    else:
        chain, times = DDPMScheduler.from_config(scheduler.config), torch.tensor([0, 10, 500, 999])
        noisy = chain.add_noise(latents, eps, times)
        target = chain.get_velocity(latents, eps, times) if family == "sd2v" else eps
    torch.testing.assert_close(model.add_noise(latents, eps, times), noisy)
    torch.testing.assert_close(model.target(latents, eps, times), target)


# μ of the logit-normal: ln 3 for SD 3; for FLUX on the line through (256 tokens, 0.5) and (4096, 1.15), at 16 tokens.
SHIFTS = {"sd3": math.log(3), "sd35": math.log(3), "flux": 0.5 - 240 * 0.65 / 3840, "schnell": 0.0}


def test_times_are_those_of_training_and_follow_the_seed(model, family):
    times = model.sample_times(20_000, torch.Generator().manual_seed(0))
    assert torch.equal(times, model.sample_times(20_000, torch.Generator().manual_seed(0)))
    if family in tiny.FLOWS:
        logits = (times.double() / 1000).logit()
        assert abs(logits.mean() - SHIFTS[family]) < 0.03
        assert abs(logits.std() - 1) < 0.03
    else:
        assert (times.min(), times.max()) == (0, 999)
        assert abs(times.float().mean() - 499.5) < 10


def test_groups_are_disjoint_parts_of_the_whole(model):
    names = {group: set(model.parameters(group)) for group in model.groups}
    assert names["all"] == names["denoiser"] | names["text_encoder"]
    assert names["denoiser"] == names["cross_attention"] | names["non_cross_attention"]
    assert names["attention"] <= names["cross_attention"] | names["self_attention"]
    assert names["text_kv"] < names["cross_attention"] & names["attention"]
    assert not names["cross_attention"] & (names["self_attention"] | names["non_cross_attention"])
    assert not names["denoiser"] & names["text_encoder"]
    assert all(names.values())
    with pytest.raises(ImmunityError, match="attention, cross_attention, denoiser"):
        model.parameters("biases")


def test_weights_are_frozen_and_evaluated(model):
    assert not any(value.requires_grad for value in model.parameters("all").values())
    assert not any(module.training for module in model.components.values())


class OnTheMetaDevice(TorchDispatchMode):
    """Fails where anything is computed, or copied to the meta device, anywhere else."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        answer = function(*args, **(kwargs or {}))
        for tensor in pytree.tree_leaves((args, kwargs, answer)):
            assert not isinstance(tensor, torch.Tensor) or tensor.is_meta, function
        return answer


def test_a_prediction_is_made_on_the_models_device_wherever_the_times_are(model, family):
    """The meta device knows shapes only, and refuses to compute with what lies elsewhere."""
    conditioning, noisy = model.encode_prompts(PROMPTS[:2]).to("meta"), noise(model, 2).to("meta")
    times = model.sample_times(2, torch.Generator())
    model.components[model.denoiser].to("meta")
    model.device = torch.device("meta")
    assert model.predict(noisy, times, conditioning).is_meta
    times = times.to("meta")
    with OnTheMetaDevice():
        model.predict(noisy, times, conditioning)


def test_gradients_reach_what_is_thawed_only(model):
    kv = model.parameters("text_kv")
    for value in kv.values():
        value.requires_grad_(True)
    latents, eps, times = noise(model, 1), noise(model, 1, 1), torch.tensor([300])
    output = model.predict(model.add_noise(latents, eps, times), times, model.encode_prompts(PROMPTS[:1]))
    (output - model.target(latents, eps, times)).square().mean().backward()
    with_gradient = {name for name, value in model.parameters("all").items() if value.grad is not None}
    assert with_gradient == set(kv)
    model.sample(PROMPTS[:1], seeds=[0], steps=1)
    thawed = {name for name, value in model.parameters("all").items() if value.requires_grad}
    assert thawed == set(kv), "sampling leaves the marks as they were"


def test_pictures_equal_those_of_the_plain_pipeline_bit_for_bit(model, family, tmp_path):
    """The control is in the same test: after a delta they differ, and the exported folder equals again."""
    prompts, seeds = ["image of a church", "a castle"], [3, 4]

    def theirs(folder):
        return drawn(folder, family, prompts, seeds, steps=4, guidance=3.0)

    model.export(tmp_path / "base")
    before = model.sample(prompts, seeds=seeds, steps=4, guidance=3.0)
    assert torch.equal(before, theirs(tmp_path / "base"))

    changed = {name: value + 0.1 for name, value in model.parameters("text_kv").items()}
    made = Provenance(base=model.name, base_hash=model.base_hash, method="test", config={}, seed=0)
    with Delta(changed, made).applied(model):
        model.export(tmp_path / "changed")
        after = model.sample(prompts, seeds=seeds, steps=4, guidance=3.0)
    assert not torch.equal(before, after)
    assert torch.equal(after, theirs(tmp_path / "changed"))
    assert torch.equal(before, model.sample(prompts, seeds=seeds, steps=4, guidance=3.0)), "the delta is gone"


def test_guidance_off_is_the_plain_pipeline_too(model, folder, family):
    ours = model.sample(["a castle"], seeds=[1], steps=3, guidance=1.0)
    assert torch.equal(ours, drawn(folder, family, ["a castle"], [1], steps=3, guidance=1.0))


def test_a_picture_depends_on_its_own_prompt_and_seed(model):
    prompts, seeds = ["a castle", "a church", "a castle", "x", "y"], [0, 1, 0, 2, 3]
    together = model.sample(prompts, seeds=seeds, steps=2, batch=5)
    torch.testing.assert_close(together[0], together[2], rtol=0, atol=1e-5)
    apart = model.sample(prompts, seeds=seeds, steps=2, batch=2)
    torch.testing.assert_close(together, apart, rtol=0, atol=1e-4)
    alone = model.sample(prompts[3:4], seeds=seeds[3:4], steps=2)
    torch.testing.assert_close(together[3:4], alone, rtol=0, atol=1e-4)
    assert (together[0] - together[1]).abs().max() > 1e-2


def test_large_pictures_go_through_the_autoencoder_one_by_one(model, monkeypatch):
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(3, 3, model.resolution, model.resolution, generator=generator)
    latents = torch.randn(3, *model.latent_shape, generator=generator)
    together = model.latent_distribution(images), model.decode_latents(latents)
    monkeypatch.setattr("immunity.models.autoencoder._PIXELS_AT_ONCE", 2 * model.resolution**2 - 1)
    apart = model.latent_distribution(images), model.decode_latents(latents)
    torch.testing.assert_close(apart[0].mean, together[0].mean, rtol=0, atol=1e-4)
    torch.testing.assert_close(apart[0].spread, together[0].spread, rtol=0, atol=1e-4)
    torch.testing.assert_close(apart[1], together[1], rtol=0, atol=1e-4)


def test_sampling_leaves_the_global_generator_alone_and_reports_progress(model):
    state, seen = torch.get_rng_state(), []
    model.sample(["x"] * 3, seeds=[0, 1, 2], steps=2, batch=2, progress=lambda done, total: seen.append((done, total)))
    assert torch.equal(state, torch.get_rng_state())
    assert seen[-1] == (4, 4)
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"prompts": ["x"], "seeds": [0, 1]}, "one seed a prompt"),
        ({"prompts": [], "seeds": []}, "at least one prompt"),
        ({"prompts": ["x"], "seeds": [0], "steps": 0}, "at least one step"),
    ],
)
def test_bad_samples(model, arguments, message):
    with pytest.raises(ImmunityError, match=message):
        model.sample(**arguments)


def states_of_plain(model, folder, family: str, start: torch.Tensor, guidance: float) -> list[torch.Tensor]:
    """x_t before each of five steps, on the scale of training, as plain diffusers goes through them."""
    from diffusers import FluxPipeline

    pipeline, states = tiny.plain(folder), []
    packs = family in ("flux", "schnell")

    def keep(_pipeline, _step, _time, values):
        states.append(values["latents"])
        return values

    watching = {"callback_on_step_end": keep}
    if family == "pixart":
        watching = {"callback": lambda _step, _time, latents: states.append(latents)}
    pipeline(
        **tiny.plain_arguments(family, ["a castle"], guidance),
        **watching,
        latents=FluxPipeline._pack_latents(start, *start.shape) if packs else start,
        num_inference_steps=5,
        output_type="latent",
    )
    if packs:
        states = [FluxPipeline._unpack_latents(state, 16, 16, 2) for state in states]
    if family == "sdxl":  # Euler's method keeps x_0 + σ ε
        states = [start * pipeline.scheduler.init_noise_sigma, *states]
        return [state / (sigma**2 + 1).sqrt() for state, sigma in zip(states, pipeline.scheduler.sigmas, strict=True)]
    return [start, *states]


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_a_partial_sample_is_a_prefix_of_a_whole_one(model, folder, family, guidance):
    arguments = {
        "conditioning": model.encode_prompts(["a castle"]),
        "unconditional": model.unconditional(),
        "latents": noise(model, 1, seed=5),
        "steps": 5,
        "guidance": guidance,
    }
    expected = states_of_plain(model, folder, family, arguments["latents"], guidance)
    for stop in (0, 1, 3, 4):
        for _ in range(2):  # nothing is left over from the first call
            (partial,) = model.sample_path(**arguments, stops=[stop])
            torch.testing.assert_close(partial.latents, expected[stop], rtol=0, atol=1e-5)
            assert partial.times.shape == (1,)
    last = model.states_on_path(5) - 1  # PNDM has one more than steps
    assert model.sample_path(**arguments, stops=[last])[0].times < partial.times + 1
    with pytest.raises(ImmunityError, match=f"0 to {last}"):
        model.sample_path(**arguments, stops=[last + 1])


def test_a_path_keeps_the_states_that_partial_samples_end_in(model):
    conditioning, unconditional = model.encode_prompts(["a castle"]).repeat(2), model.encode_prompts([""]).repeat(2)
    arguments = {"latents": noise(model, 2), "steps": 6, "guidance": 3.0}
    path = model.sample_path(conditioning, unconditional, stops=[4, 0, 2], **arguments)
    for stop, state in zip([4, 0, 2], path, strict=True):
        (single,) = model.sample_path(conditioning, unconditional, stops=[stop], **arguments)
        assert torch.equal(state.latents, single.latents)
        assert torch.equal(state.times, single.times)
    assert path[1].times[0] > path[2].times[0] > path[0].times[0]


def test_the_latent_distribution_is_that_of_the_autoencoder(model):
    images = torch.rand(2, 3, model.resolution, model.resolution)
    latents = model.latent_distribution(images)
    assert torch.equal(latents.mean, model.encode_images(images))
    drawn = torch.stack([model.encode_images(images, torch.Generator().manual_seed(seed)) for seed in range(300)])
    torch.testing.assert_close(drawn.std(0), latents.spread, rtol=0.25, atol=1e-3)
    assert (latents.spread > 0).all()


def partial_with(folder, scheduler: str, **arguments):
    model = load(folder)
    model._scheduler = getattr(diffusers, scheduler).from_config(model._scheduler.config)
    conditioning, unconditional = model.encode_prompts(["a castle"]).repeat(2), model.encode_prompts([""]).repeat(2)
    (partial,) = model.sample_path(
        conditioning, unconditional, latents=noise(model, 2), steps=10, stops=[3], guidance=1.0, **arguments
    )
    return partial


def test_a_partial_sample_has_the_scale_of_the_chain_under_a_sampler_in_sigmas(tiny_folders):
    """Euler's method on the probability-flow equation is DDIM in other coordinates, so the two agree step by step."""
    euler, ddim = (partial_with(tiny_folders["sd2"], name) for name in ("EulerDiscreteScheduler", "DDIMScheduler"))
    torch.testing.assert_close(euler.latents, ddim.latents, rtol=1e-3, atol=1e-3)
    assert torch.equal(euler.times, ddim.times)


@pytest.mark.parametrize("scheduler", ["PNDMScheduler", "HeunDiscreteScheduler", "KDPM2DiscreteScheduler"])
def test_each_state_on_a_path_has_the_noise_that_its_time_says(tiny_folders, scheduler):
    """Intermediate stages too. With a denoiser that knows the picture, all of them hold the same noise."""
    model = load(tiny_folders["sd1"])
    model._scheduler = getattr(diffusers, scheduler).from_config(model._scheduler.config)
    picture = noise(model, 1, seed=9)

    def knowing(noisy, times, _conditioning=None):
        signal, sigma = model._noising._signal_and_sigma(times.round().long(), noisy)
        return (noisy - signal * picture) / sigma

    model.predict = knowing
    stops = list(range(model.states_on_path(20)))
    nothing = model.unconditional()
    path = model.sample_path(nothing, nothing, latents=noise(model, 1), steps=20, stops=stops, guidance=1.0)
    inside = knowing(*path[0])
    for state in path:
        torch.testing.assert_close(state.latents, model.add_noise(picture, inside, state.times), rtol=0, atol=0.02)


def test_a_sampler_that_adds_noise_follows_the_generator(tiny_folders):
    folder, name = tiny_folders["sd1"], "EulerAncestralDiscreteScheduler"
    first = partial_with(folder, name)
    assert torch.equal(first.latents, partial_with(folder, name).latents)
    other = partial_with(folder, name, generator=torch.Generator().manual_seed(1))
    assert not torch.equal(first.latents, other.latents)


def test_the_base_hash_names_the_weights(model, folder, tiny_folders, family):
    assert load(folder).base_hash == model.base_hash
    assert load(folder, dtype="bfloat16").base_hash == model.base_hash
    following = tiny.FAMILIES[(tiny.FAMILIES.index(family) + 1) % len(tiny.FAMILIES)]
    assert load(tiny_folders[following]).base_hash != model.base_hash


def test_bfloat16_weights_predict_in_the_dtype_of_the_input(folder):
    model = load(folder, dtype="bfloat16")
    assert all(value.dtype == torch.bfloat16 for value in model.parameters("all").values())
    output = model.predict(noise(model, 1), torch.tensor([10]), model.encode_prompts(["x"]))
    assert output.dtype == torch.float32
    images = model.sample(["x"], seeds=[0], steps=2)
    assert images.dtype == torch.float32
    assert images.isfinite().all()


@pytest.mark.parametrize("family", ["pixart"])
def test_float16_spares_what_would_overflow_in_t5(folder):
    model = load(folder, dtype="float16")
    kept = {name for name, value in model.parameters("text_encoder").items() if value.dtype == torch.float32}
    assert kept
    assert all(".wo." in name for name in kept)
    assert model.encode_prompts(["church"]).embeddings.isfinite().all()


def test_export_refuses_what_exists_and_models_with_adapters(model, folder, tmp_path):
    with pytest.raises(ImmunityError, match="does not exist yet"):
        model.export(tmp_path)
    from peft import LoraConfig, inject_adapter_in_model

    inject_adapter_in_model(LoraConfig(r=2, target_modules=["to_q"]), model.components[model.denoiser])
    with pytest.raises(ImmunityError, match="without adapters"):
        model.export(tmp_path / "new")
    assert not any("lora" in name for name in model.parameters("all"))
    assert hash_tensors(model.parameters("all")) == hash_tensors(load(folder).parameters("all"))
