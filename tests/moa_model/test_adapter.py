from types import SimpleNamespace

import infra.torchvision_ops  # noqa: F401

import numpy as np
import pytest
import torch
from diffusers import (
    ControlNetModel,
    StableDiffusionControlNetPipeline,
    StableDiffusionImg2ImgPipeline,
)
from diffusers.models.attention_processor import AttnProcessor
from PIL import Image

from infra.errors import UserError
from moa_model import ImageEncoder, MoAAdapter, Subject
from tests.moa_model.conftest import PROMPT, trained_like
from tests.tiny_models import IMAGE_DIM, tiny_clip, tiny_pipeline, tiny_unet


def _differs(a: np.ndarray, b: np.ndarray) -> bool:
    return bool(np.abs(a - b).max() > 1e-3)


def test_a_fresh_adapter_is_the_prior_up_to_rounding(pipe, paint, feature) -> None:
    stock = paint(pipe)
    adapter = MoAAdapter.for_unet(pipe.unet, IMAGE_DIM).attach(pipe)
    assert adapter.layers[3].router(torch.randn(1, 4, 8)).softmax(-1).unique().tolist() == [0.5]
    fresh = paint(pipe, cross_attention_kwargs=adapter.bind(pipe, PROMPT, {"man": feature}))
    np.testing.assert_allclose(fresh, stock, atol=1e-4)


def test_without_a_subject_the_picture_is_the_stock_pipelines_bit_for_bit(pipe, paint, adapter, feature) -> None:
    stock = paint(pipe)
    adapter.attach(pipe)
    bound = adapter.bind(pipe, PROMPT, {"man": feature})
    assert np.array_equal(paint(pipe), stock)
    assert np.array_equal(paint(pipe, cross_attention_kwargs=adapter.bind(pipe, PROMPT, {})), stock)
    assert _differs(paint(pipe, cross_attention_kwargs=bound), stock)
    with adapter.prior_only():
        assert np.array_equal(paint(pipe, cross_attention_kwargs=bound), stock)


def test_routers_forced_to_the_prior_give_the_stock_picture_bit_for_bit(pipe, paint, adapter, feature) -> None:
    stock = paint(pipe)
    adapter.attach(pipe)
    with torch.no_grad():
        for layer in adapter.layers:
            layer.router.weight.zero_()
            layer.router.bias.copy_(torch.tensor([1e4, -1e4]))
    assert np.array_equal(paint(pipe, cross_attention_kwargs=adapter.bind(pipe, PROMPT, {"man": feature})), stock)


def test_early_steps_are_the_priors(pipe, adapter, feature) -> None:
    unet = pipe.unet
    sample, text = torch.randn(2, 4, 8, 8), torch.randn(2, 32, 16)

    def run(timestep, **kwargs) -> torch.Tensor:
        with torch.no_grad():
            return unet(sample, timestep, encoder_hidden_states=text, **kwargs).sample

    stock = {t: run(t) for t in (800, 801)}
    adapter.attach(pipe)
    pipe._guidance_scale = 3.0
    bound = {"cross_attention_kwargs": adapter.bind(pipe, PROMPT, {"man": feature})}
    assert torch.equal(run(801, **bound), stock[801])
    assert not torch.equal(run(800, **bound), stock[800])
    mixed = run(torch.tensor([801, 800]), **bound)  # a timestep per row
    torch.testing.assert_close(mixed[0], stock[801][0])
    assert not torch.allclose(mixed[1], stock[800][1])
    adapter.prior_only_above = 700
    assert torch.equal(run(800, **bound), stock[800])


def test_the_subject_decides_and_swapping_changes_the_picture(pipe, paint, adapter, feature) -> None:
    adapter.attach(pipe)
    first, again, second = (
        paint(pipe, cross_attention_kwargs=adapter.bind(pipe, PROMPT, {"man": person}))
        for person in (feature, feature.clone(), -feature)
    )
    assert np.array_equal(first, again)
    assert _differs(first, second)


def test_two_subjects_do_not_change_places(pipe, paint, adapter, feature) -> None:
    adapter.attach(pipe)
    prompt = "a man and a woman"

    def couple(man, woman) -> np.ndarray:
        return paint(pipe, prompt, cross_attention_kwargs=adapter.bind(pipe, prompt, {"woman": woman, "man": man}))

    assert _differs(couple(feature, -feature), couple(-feature, feature))
    one = paint(pipe, prompt, cross_attention_kwargs=adapter.bind(pipe, prompt, {"man": feature}))
    assert _differs(one, couple(feature, -feature))


def test_several_images_per_prompt_and_several_prompts(pipe, paint, adapter, feature) -> None:
    adapter.attach(pipe)
    latents = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(9))
    bound = adapter.bind(pipe, PROMPT, {"man": feature})
    both = paint(pipe, cross_attention_kwargs=bound, num_images_per_prompt=2, latents=latents)
    unguided = paint(pipe, cross_attention_kwargs=bound, num_images_per_prompt=2, latents=latents, guidance_scale=1.0)
    for row in range(2):
        alone = paint(pipe, cross_attention_kwargs=bound, latents=latents[row : row + 1])
        np.testing.assert_allclose(both[row], alone[0], atol=1e-4)
        alone = paint(pipe, cross_attention_kwargs=bound, latents=latents[row : row + 1], guidance_scale=1.0)
        np.testing.assert_allclose(unguided[row], alone[0], atol=1e-4)
    prompts = [PROMPT, "a woman on the beach"]
    bound = adapter.bind(pipe, prompts, [{"man": feature}, {"woman": -feature}])
    two = paint(pipe, prompts, cross_attention_kwargs=bound, latents=latents)
    bound = adapter.bind(pipe, prompts[1], {"woman": -feature})
    alone = paint(pipe, prompts[1], cross_attention_kwargs=bound, latents=latents[1:])
    np.testing.assert_allclose(two[1], alone[0], atol=1e-4)
    stock = paint(pipe, prompts, latents=latents)
    mixed = paint(
        pipe, prompts, cross_attention_kwargs=adapter.bind(pipe, prompts, [{"man": feature}, {}]), latents=latents
    )
    assert _differs(mixed[0], stock[0]) and np.array_equal(mixed[1], stock[1])  # who has no subject is the prior's
    with pytest.raises(UserError, match="bind the same prompts"):
        paint(pipe, ["a", "b", "c"], cross_attention_kwargs=adapter.bind(pipe, prompts, [{"man": feature}, {}]))


def test_other_stock_pipelines(pipe, adapter, feature) -> None:
    parts = {name: part for name, part in pipe.components.items() if part is not None}
    extra = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    torch.manual_seed(0)
    control = ControlNetModel.from_unet(pipe.unet, conditioning_embedding_out_channels=(8, 8, 8))  # 4 ×, as the VAE
    adapter.attach(pipe)
    picture = Image.new("RGB", (32, 32), "orange")
    image_to_image = StableDiffusionImg2ImgPipeline(**parts, **extra)
    controlled = StableDiffusionControlNetPipeline(**parts, **extra, controlnet=control)
    for other, settings in ((image_to_image, {"strength": 0.6}), (controlled, {"height": 32, "width": 32})):
        other.set_progress_bar_config(disable=True)

        def paint(bound: dict, other=other, settings=settings) -> np.ndarray:
            generator = torch.Generator().manual_seed(0)
            call = {"num_inference_steps": 4, "output_type": "np", "generator": generator} | settings
            return other(PROMPT, image=picture, cross_attention_kwargs=bound, **call).images

        assert adapter.is_attached(other)
        assert _differs(paint(adapter.bind(other, PROMPT, {"man": feature})), paint({}))


def test_detach_restores_exactly(pipe, paint, adapter, feature) -> None:
    stock, processors = paint(pipe), pipe.unet.attn_processors
    names = set(pipe.unet.state_dict())
    adapter.attach(pipe)
    paint(pipe, cross_attention_kwargs=adapter.bind(pipe, PROMPT, {"man": feature}))
    adapter.detach(pipe)
    assert not adapter.is_attached(pipe)
    assert all(pipe.unet.attn_processors[name] is processor for name, processor in processors.items())
    assert set(pipe.unet.state_dict()) == names
    assert not pipe.unet._forward_pre_hooks
    assert np.array_equal(paint(pipe), stock)
    with pytest.raises(UserError, match="not attached"):
        adapter.detach(pipe)
    with pytest.raises(UserError, match="not attached"):
        adapter.bind(pipe, PROMPT, {"man": feature})


def test_save_and_load_give_the_same_pixels(pipe, paint, adapter, feature, tmp_path) -> None:
    adapter.attach(pipe)
    before = paint(pipe, cross_attention_kwargs=adapter.bind(pipe, PROMPT, {"man": feature}))
    adapter.save_pretrained(tmp_path)
    adapter.detach(pipe)
    loaded = MoAAdapter.from_pretrained(tmp_path).attach(pipe)
    after = paint(pipe, cross_attention_kwargs=loaded.bind(pipe, PROMPT, {"man": feature}))
    assert np.array_equal(before, after)


def test_recording_gives_maps_only_when_asked(pipe, paint, adapter, feature) -> None:
    adapter.attach(pipe)
    bound = adapter.bind(pipe, PROMPT, {"man": feature})
    plain = paint(pipe, cross_attention_kwargs=bound)
    with adapter.recording() as steps:
        recorded = paint(pipe, cross_attention_kwargs=bound)
    np.testing.assert_allclose(plain, recorded, atol=1e-5)
    assert steps and all(step.timestep <= 800 for step in steps)
    router, subject = steps[-1].router(), steps[-1].subject()
    assert sorted(router) == list(range(32)) and sorted(subject) == list(range(1, 32, 2))
    assert router[0].shape == (2, 8, 8) and subject[13].shape[:2] == (2, 1)
    assert steps[-1].mean_router().shape == (2, 8, 8)
    assert not subject[1][0].any() and subject[1][1].any()  # the unconditional half has no subject
    count = len(steps)
    paint(pipe, cross_attention_kwargs=bound)
    assert len(steps) == count


def test_pictures_go_through_the_image_encoder(pipe, paint, adapter, tmp_path) -> None:
    model, processor = tiny_clip(folder=tmp_path)
    photo = Image.effect_noise((40, 30), 90)
    adapter.attach(pipe, image_encoder=tmp_path)
    assert adapter.image_encoder is not None
    by_picture = paint(pipe, cross_attention_kwargs=adapter.bind(pipe, PROMPT, {"man": photo}))
    feature = adapter.image_encoder.encode([photo])[0]
    by_feature = paint(pipe, cross_attention_kwargs=adapter.bind(pipe, PROMPT, {"man": feature}))
    assert np.array_equal(by_picture, by_feature)
    adapter.image_encoder = None
    with pytest.raises(UserError, match="image encoder"):
        adapter.bind(pipe, PROMPT, {"man": photo})
    narrow = SimpleNamespace(config=SimpleNamespace(projection_dim=7))
    with pytest.raises(UserError, match="width 7"):
        adapter.bind(pipe, PROMPT, {"man": photo}, image_encoder=ImageEncoder(narrow, None))


@pytest.mark.parametrize(
    "unet", [{"widths": (8, 16, 16, 24)}, {"text_dim": 8}, {"widths": (8, 8, 16, 16)}], ids=["width", "text", "level"]
)
def test_another_base_is_refused_and_left_alone(adapter, unet) -> None:
    other = tiny_unet(**unet)
    before = other.attn_processors
    with pytest.raises(UserError, match="another base"):
        adapter.attach(other)
    assert all(other.attn_processors[name] is processor for name, processor in before.items())
    assert not other._forward_pre_hooks


def test_processors_that_would_be_lost_are_refused(pipe, adapter, feature) -> None:
    pipe.unet.set_attn_processor(AttnProcessor())
    with pytest.raises(UserError, match="AttnProcessor"):
        adapter.attach(pipe)
    pipe = tiny_pipeline()
    adapter.attach(pipe)
    with pytest.raises(UserError, match="already"):
        trained_like(MoAAdapter(adapter.config)).attach(pipe)
    pipe.enable_attention_slicing()
    with pytest.raises(UserError, match="has replaced the MoA layers"):
        adapter.bind(pipe, PROMPT, {"man": feature})
    with pytest.raises(UserError, match="U-Net"):
        adapter.attach(object())


def test_a_lora_finds_the_prior_only(adapter) -> None:
    names = [name for name, _ in adapter.named_modules()]
    assert not any(name.endswith(("to_q", "to_k", "to_v", "to_out.0")) for name in names)


def test_strength_0_is_the_prior_bit_for_bit_and_1_is_as_trained(pipe, paint, adapter, feature) -> None:
    stock = paint(pipe)
    adapter.attach(pipe)

    def drawn(**steering) -> np.ndarray:
        return paint(pipe, cross_attention_kwargs=adapter.bind(pipe, PROMPT, {"man": Subject(feature, **steering)}))

    trained = paint(pipe, cross_attention_kwargs=adapter.bind(pipe, PROMPT, {"man": feature}))
    assert np.array_equal(drawn(strength=0.0), stock)
    assert np.array_equal(drawn(strength=1.0), trained)
    away = [float(np.abs(drawn(strength=strength) - stock).mean()) for strength in (0.1, 0.4, 1.0)]
    assert away == sorted(away) and away[0] > 0


def test_a_plain_word_and_a_subject_of_strength_0_are_the_same_beside_another(pipe, paint, adapter, feature) -> None:
    adapter.attach(pipe)
    prompt = "a man and a woman"
    pictures = [
        paint(pipe, prompt, cross_attention_kwargs=adapter.bind(pipe, prompt, subjects))
        for subjects in ({"man": feature, "woman": Subject(-feature, strength=0.0)}, {"man": feature})
    ]
    np.testing.assert_allclose(*pictures, atol=1e-5)  # one sum in another order, a few units of float32 per step


def test_delayed_steps_begin_as_the_prior(pipe, adapter, feature) -> None:
    adapter.attach(pipe)
    late = adapter.bind(pipe, PROMPT, {"man": Subject(feature, steps=(0.5, 1.0))})

    def states(**kwargs) -> list[torch.Tensor]:
        seen: list[torch.Tensor] = []

        def keep(pipe, step, timestep, given) -> dict:
            seen.append(given["latents"].clone())
            return given

        call = {"num_inference_steps": 4, "output_type": "np", "generator": torch.Generator().manual_seed(3)}
        pipe(PROMPT, callback_on_step_end=keep, **call, **kwargs)
        return seen

    adapter.prior_only_above = 1000
    stock, drawn = states(), states(cross_attention_kwargs=late)
    assert [torch.equal(a, b) for a, b in zip(stock, drawn, strict=True)] == [True, True, False, False]


def test_a_mask_decides_in_place_of_the_routers(pipe, paint, adapter, feature) -> None:
    stock = paint(pipe)
    adapter.attach(pipe)

    def drawn(mask) -> np.ndarray:
        return paint(pipe, cross_attention_kwargs=adapter.bind(pipe, PROMPT, {"man": feature}, router=mask))

    assert np.array_equal(drawn(torch.zeros(8, 8)), stock)
    with torch.no_grad():
        for layer in adapter.layers:
            layer.router.weight.zero_()
            layer.router.bias.copy_(torch.tensor([-1e4, 1e4]))
    everywhere = paint(pipe, cross_attention_kwargs=adapter.bind(pipe, PROMPT, {"man": feature}))
    assert np.array_equal(drawn(torch.ones(8, 8)), everywhere)
    assert _differs(drawn(torch.eye(8)), everywhere)


def test_a_recorded_router_repeats_the_picture_and_steers_another(pipe, paint, adapter, feature) -> None:
    adapter.attach(pipe)
    bound = adapter.bind(pipe, PROMPT, {"man": feature})
    with adapter.recording() as steps:
        first = paint(pipe, cross_attention_kwargs=bound)
    again = paint(pipe, cross_attention_kwargs=adapter.bind(pipe, PROMPT, {"man": feature}, router=steps))
    np.testing.assert_allclose(first, again, atol=1e-5)
    own = paint(pipe, cross_attention_kwargs=adapter.bind(pipe, PROMPT, {"man": -feature}))
    led = paint(pipe, cross_attention_kwargs=adapter.bind(pipe, PROMPT, {"man": -feature}, router=steps))
    assert _differs(own, led)
    with pytest.raises(UserError, match="same scheduler"):
        bound = adapter.bind(pipe, PROMPT, {"man": feature}, router=steps)
        paint(pipe, cross_attention_kwargs=bound, num_inference_steps=5)
    with pytest.raises(UserError, match="as many pictures"):
        paint(pipe, cross_attention_kwargs=bound, num_images_per_prompt=2)


def test_text_that_is_known_gives_the_same_picture_as_text_projected_in_every_step(
    pipe, paint, adapter, feature, monkeypatch
) -> None:
    adapter.attach(pipe)
    bound = adapter.bind(pipe, PROMPT, {"man": feature})
    known = paint(pipe, cross_attention_kwargs=bound)
    with torch.inference_mode():  # such tensors do not say when they change: nothing is kept
        np.testing.assert_allclose(paint(pipe, cross_attention_kwargs=bound), known, atol=1e-5)
    for layer in adapter.layers:  # a second run does not see what the first one knew
        if layer.shape.cross:
            with torch.no_grad():
                layer.expert.key_value.weight.mul_(0.5)
    assert _differs(paint(pipe, cross_attention_kwargs=bound), known)


@pytest.mark.parametrize("sides", [(32, 32), (9, 7)], ids=str)
def test_pixels_that_count_nothing_are_left_out_and_the_picture_stays(
    pipe, adapter, feature, sides, monkeypatch
) -> None:
    """Dense with small weights set to 0 equals sparse; at 0 nothing is skipped."""
    adapter.attach(pipe)
    pipe._guidance_scale = 3.0
    sample, text = torch.randn(2, 4, *sides), torch.randn(2, 32, 16)
    bound = adapter.bind(pipe, PROMPT, {"man": feature})

    def run() -> torch.Tensor:
        with torch.no_grad():
            return pipe.unet(sample, 500, encoder_hidden_states=text, cross_attention_kwargs=bound).sample

    exact = run()
    adapter.skip_below = 0.4
    sparse = run()
    with adapter.recording(subject_maps=False) as steps:
        assert torch.equal(run(), sparse)  # the routers' maps alone cost no work
    monkeypatch.setattr("moa_model.attention._SPARSE_PIXELS", 10**6)
    dense = run()
    share = torch.cat([(1 - router).flatten() for router in steps[0].router().values()])
    assert 0.1 < float((share == 0).float().mean()) < 0.9
    torch.testing.assert_close(sparse, dense, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(sparse, exact, atol=1e-3)


@pytest.mark.filterwarnings("ignore")
def test_the_unet_compiles_in_one_graph(pipe, adapter, feature) -> None:
    adapter.attach(pipe)
    pipe._guidance_scale = 3.0
    sample, text = torch.randn(2, 4, 8, 8), torch.randn(2, 32, 16)
    bound = adapter.bind(pipe, PROMPT, {"man": feature})

    def run() -> torch.Tensor:
        with torch.no_grad():
            return pipe.unet(sample, 500, encoder_hidden_states=text, cross_attention_kwargs=bound).sample

    eager = run()
    # Traced whole, which a graph break would refuse; no code is generated.
    pipe.unet.forward = torch.compile(pipe.unet.forward, fullgraph=True, backend="eager")
    torch.testing.assert_close(run(), eager, rtol=1e-4, atol=1e-4)
