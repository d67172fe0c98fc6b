"""The arms differ from the project's own training in what they say, and in nothing else."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from moa_model import Batch, MoAAdapter, MoATrainingModule, Subjects, draw
from tests.benchmarks.claims.arms import (
    DELAY,
    ConstantPrompt,
    FastComposerPrompt,
    MoAArm,
    SampledAdapter,
    with_prompt,
    without_layer,
)
from tests.benchmarks.claims.plan import MOA, Sampling, arm
from tests.tiny_models import IMAGE_DIM, TEXT_DIM, TOKENS, tiny_pipeline


def _batch(seed: int = 3) -> Batch:
    numbers = draw(seed, range(4), (4, 8, 8), 900, 0.3, 0.6)
    generator = torch.Generator().manual_seed(seed)
    masks = torch.zeros(4, 2, 8, 8)
    masks[:, 0, 2:, :3] = 1
    masks[2, 1, 1:, 5:] = 1
    tokens = torch.tensor([[5, -1], [5, -1], [5, 8], [6, -1]])
    return Batch(
        torch.randn(4, 4, 8, 8, generator=generator),
        torch.randn(4, TOKENS, TEXT_DIM, generator=generator),
        torch.randn(TOKENS, TEXT_DIM, generator=generator),
        torch.randn(4, 2, IMAGE_DIM, generator=generator),
        tokens,
        masks,
        numbers.noise,
        numbers.timesteps,
        numbers.dropped,
    )


def _shaken(adapter: MoAAdapter) -> None:
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in adapter.parameters():
            if parameter.requires_grad:
                parameter += 0.2 * torch.randn(parameter.shape, generator=generator)


def test_the_moa_arm_is_the_projects_own_training_step():
    batch, pipe = _batch(), tiny_pipeline()
    torch.manual_seed(0)
    ours = MoAArm(MOA, pipe.unet, pipe.scheduler.config, IMAGE_DIM)
    _shaken(ours.adapter)
    with torch.no_grad():
        text = torch.where(batch.dropped[:, None, None], batch.null_text, batch.text)
        noisy = ours.scheduler.add_noise(batch.latents, batch.noise, batch.timesteps)
        prior = pipe.unet(noisy, batch.timesteps, text, return_dict=False)[0]
    losses = ours(batch, torch.ones(4) * 0.99, prior)
    own = MoATrainingModule(
        pipe.unet,
        ours.adapter,
        pipe.scheduler.config,
        lambda_router=MOA.lambda_router,
        lambda_object=MOA.lambda_object,
        blocks=MOA.blocks,
        router_foreground=MOA.router_foreground,
        lambda_preservation=MOA.lambda_preservation,
    )
    torch.testing.assert_close(tuple(losses), tuple(own(batch)))


def test_an_unlucky_coin_counts_every_pixel():
    batch, pipe = _batch(), tiny_pipeline()
    module = MoAArm(arm("fastcomposer"), pipe.unet, pipe.scheduler.config, IMAGE_DIM)
    heads, tails = (module(batch, torch.full((4,), coin), None).masked for coin in (0.4, 0.6))
    everywhere = replace(batch, masks=torch.ones_like(batch.masks))
    torch.testing.assert_close(module(everywhere, torch.zeros(4), None).masked, tails)
    assert not torch.isclose(heads, tails)


def test_without_the_layer_the_prior_has_no_say_and_the_router_no_gradient():
    batch, pipe = _batch(), tiny_pipeline()
    module = MoAArm(arm("no-layer"), pipe.unet, pipe.scheduler.config, IMAGE_DIM)
    module(batch, torch.zeros(4), None).total.backward()
    for layer in module.adapter.layers:
        assert layer.router.weight.grad is None
        assert layer.expert.query.weight.grad is not None
    hidden = torch.randn(2, 9, module.adapter.layers[0].shape.hidden_dim)
    personal = module.adapter.layers[0].router(hidden).softmax(dim=-1)[..., 1]
    assert (personal == 1).all()


def test_a_fresh_arm_without_the_layer_is_the_base_model():
    pipe = tiny_pipeline()
    sample, text = torch.randn(1, 4, 8, 8), torch.randn(1, TOKENS, TEXT_DIM)
    before = pipe.unet(sample, 500, text).sample
    adapter = without_layer(MoAAdapter.for_unet(pipe.unet, IMAGE_DIM)).attach(pipe.unet)
    subjects = Subjects(torch.randn(1, 1, IMAGE_DIM), torch.tensor([[5]]))
    after = pipe.unet(sample, 500, text, cross_attention_kwargs={"moa": subjects}).sample
    assert adapter.is_attached(pipe)
    torch.testing.assert_close(after, before, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", ["constant", "fastcomposer"])
def test_without_spacetime_the_word_is_the_same_at_every_timestep_and_layer(kind):
    adapter = MoAAdapter.for_unet(tiny_pipeline().unet, IMAGE_DIM)
    _shaken(adapter)
    prompt = with_prompt(adapter, kind).prompt
    layers = torch.arange(6)
    change = prompt(torch.randn(2, 1, IMAGE_DIM), torch.randn(2, 1, TEXT_DIM), torch.tensor([10.0, 700.0]), layers)
    torch.testing.assert_close(change, change[:1].expand_as(change))
    assert change.abs().max() > 0


def test_the_encoding_of_the_constant_prompt_is_still_trained():
    batch, pipe = _batch(), tiny_pipeline()
    module = MoAArm(arm("no-spacetime"), pipe.unet, pipe.scheduler.config, IMAGE_DIM)
    _shaken(module.adapter)
    module(batch, torch.zeros(4), None).total.backward()
    assert isinstance(module.adapter.prompt, ConstantPrompt)
    assert module.adapter.prompt.encoding.encode[-1].bias.grad.abs().max() > 0


def test_delayed_conditioning_leaves_the_first_fifth_to_the_plain_word(tmp_path: Path):
    pipe = tiny_pipeline()
    module = MoAArm(arm("fastcomposer"), pipe.unet, pipe.scheduler.config, IMAGE_DIM)
    _shaken(module.adapter)
    module.keep(tmp_path)
    sampled = SampledAdapter.open(tmp_path, arm("fastcomposer"), Sampling())
    assert isinstance(sampled.prompt, FastComposerPrompt)
    times = torch.tensor([DELAY + 1.0, float(DELAY)])
    given = torch.randn(2, 1, IMAGE_DIM), torch.randn(2, 1, TEXT_DIM), times, torch.arange(3)
    late, early = sampled.prompt(*given).abs().amax(dim=(0, 2, 3))
    assert (late, early > 0) == (0, True)
    assert module.adapter.prompt(*given)[:, 0].abs().max() > 0  # in training every timestep is conditioned
    assert sampled.prior_only_above == 1000  # the fine-tuned network draws from the first step on


@pytest.fixture
def kept(tmp_path: Path) -> Path:
    """A MoA adapter with weights that training could have made."""
    pipe = tiny_pipeline()
    module = MoAArm(MOA, pipe.unet, pipe.scheduler.config, IMAGE_DIM)
    _shaken(module.adapter)
    module.keep(tmp_path / "kept")
    return tmp_path / "kept"


def _drawn(folder: Path, sampling: Sampling, subject: bool = True) -> torch.Tensor:
    """The latent after three steps, drawn with an arm's way of sampling."""
    pipe = tiny_pipeline()
    adapter = SampledAdapter.open(folder, MOA, sampling).attach(pipe)
    prompt, feature = "a photo of a man", torch.randn(IMAGE_DIM, generator=torch.Generator().manual_seed(5))
    bound = adapter.bind(pipe, [prompt], [{"man": feature}]) if subject else {}
    return pipe(
        [prompt],
        num_inference_steps=3,
        guidance_scale=3.0,
        generator=torch.Generator().manual_seed(1),
        cross_attention_kwargs=bound,
        output_type="latent",
    ).images


def test_strength_goes_from_the_prior_to_the_arm(kept: Path):
    prior = _drawn(kept, Sampling(), subject=False)
    assert torch.equal(_drawn(kept, Sampling(strength=0.0)), prior)
    far = [(_drawn(kept, Sampling(strength=s)) - prior).abs().mean() for s in (0.25, 1.0)]
    assert 0 < far[0] < far[1]


def test_a_threshold_above_every_weight_is_the_prior(kept: Path):
    prior = _drawn(kept, Sampling(), subject=False)
    torch.testing.assert_close(_drawn(kept, Sampling(threshold=3.0)), prior)  # a third of it in cross-attention


def test_prior_above_every_timestep_is_the_prior(kept: Path):
    prior = _drawn(kept, Sampling(), subject=False)
    assert torch.equal(_drawn(kept, Sampling(prior_only_above=0)), prior)


def test_the_unconditional_half_by_the_prior_is_another_picture(kept: Path):
    assert not torch.allclose(_drawn(kept, Sampling(unconditional="prior")), _drawn(kept, Sampling()))


@pytest.mark.parametrize("name, share", [("moa", 0.5), ("router-open", 0.9526), ("router-shut", 0.0474)])
def test_routers_begin_where_the_arm_says(name: str, share: float):
    pipe = tiny_pipeline()
    ours = MoAArm(arm(name), pipe.unet, pipe.scheduler.config, IMAGE_DIM)
    for layer in ours.adapter.layers:
        said = layer.router(torch.randn(1, 3, layer.shape.hidden_dim)).softmax(dim=-1)
        torch.testing.assert_close(said[..., 1], torch.full((1, 3), share), atol=1e-3, rtol=0)
