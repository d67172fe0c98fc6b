"""Keeping the prior's scene: outside the people nothing moves, inside them nothing is lost."""

from typing import Any

import infra.torchvision_ops  # noqa: F401

import pytest
import torch
from diffusers import DDIMScheduler, EulerDiscreteScheduler, HeunDiscreteScheduler
from diffusers import UniPCMultistepScheduler as UniPC
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from infra.errors import UserError
from moa_model import MoAAdapter, Scene, Subject
from moa_model.attention import AttentionMaps
from moa_model.recording import RecordedStep
from moa_model.scene import Keeper
from tests.moa_model.conftest import PROMPT, trained_like
from tests.tiny_models import IMAGE_DIM
from tests.tiny_pipelines import BASES, SIDE, Case, tiny_case

SIZE = SIDE // 4  # the tiny autoencoder's


def _case(base: str = "sd1", kind: str = "text") -> tuple[Case, MoAAdapter]:
    case = tiny_case(base, kind)
    return case, trained_like(MoAAdapter.for_unet(case.pipe.unet, IMAGE_DIM)).attach(case.pipe)


def _scene(case: Case, prompt: Any = PROMPT, **call: Any) -> Scene:
    """The prior's run of what ``case.draw`` draws."""
    return Scene.drawn(case.pipe, **case.arguments(prompt, **call))


def _half(latents: Tensor, left: bool = True) -> Tensor:
    """A mask of one half of the latents' size."""
    mask_HW = torch.zeros(latents.shape[-2:])
    side = latents.shape[-1] // 2
    mask_HW[:, slice(None, side) if left else slice(side, None)] = 1
    return mask_HW


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("kind", ["text", "inpaint", "control"])
def test_outside_the_people_the_latents_are_the_scenes_bit_for_bit(base: str, kind: str, feature: Tensor) -> None:
    case, adapter = _case(base, kind)
    scene = _scene(case)
    bound = adapter.bind(case.pipe, PROMPT, {"man": feature}, router=_half(scene.images))
    free = case.draw(PROMPT, bound)
    with scene.kept(adapter) as keep:
        kept = case.draw(PROMPT, bound, **keep)
    # Layers of a single pixel know no halves: for them the whole picture is half a person, above the edge or not.
    outside = (kept == scene.images).all(dim=1)[0]
    assert outside.any() and not outside.all()
    assert (kept - scene.images).abs().mean() < (free - scene.images).abs().mean()


@pytest.mark.parametrize("scheduler", [DDIMScheduler, EulerDiscreteScheduler, HeunDiscreteScheduler, UniPC])
def test_with_every_kind_of_scheduler(scheduler: Any, feature: Tensor) -> None:
    """Of one step, of two evaluations a step, with a memory of its own."""
    case, adapter = _case()
    case.pipe.scheduler = scheduler.from_config(case.pipe.scheduler.config)
    scene = _scene(case, num_inference_steps=4)
    bound = adapter.bind(case.pipe, PROMPT, {"man": feature}, router=_half(scene.images))
    edge = (0.6, 0.9)  # above what the layers of a single pixel say of the empty half
    with scene.kept(adapter, edge) as keep:
        kept = case.draw(PROMPT, bound, num_inference_steps=4, **keep)
    right = _half(scene.images, left=False) > 0
    assert torch.equal(kept[..., right], scene.images[..., right])
    assert not torch.equal(kept[..., ~right], scene.images[..., ~right])


def test_every_picture_of_a_batch_has_its_own_people(feature: Tensor) -> None:
    """Two prompts, two pictures each, guided: rows of four pictures among eight of the U-Net's."""
    case, adapter = _case()
    prompts = [PROMPT, PROMPT + " with roses"]
    call = {"num_images_per_prompt": 2, "num_inference_steps": 2}
    scene = _scene(case, prompts, **call)
    masks = torch.stack([_half(scene.images), _half(scene.images, left=False)])
    cast = [{"man": feature}, {"man": Subject(feature, strength=0.5)}]
    bound = adapter.bind(case.pipe, prompts, cast, router=masks)
    with scene.kept(adapter, (0.6, 0.9)) as keep:
        kept = case.draw(prompts, bound, **keep, **call)
    for row, mask_HW in enumerate(masks.repeat_interleave(2, dim=0)):
        outside = mask_HW == 0
        assert torch.equal(kept[row][:, outside], scene.images[row][:, outside])
        assert not torch.equal(kept[row][:, ~outside], scene.images[row][:, ~outside])


def test_casts_in_a_row_know_nothing_of_each_other(feature: Tensor) -> None:
    case, adapter = _case()
    scene = _scene(case)
    left, right = (
        adapter.bind(case.pipe, PROMPT, {"man": feature}, router=_half(scene.images, side)) for side in (True, False)
    )
    drawn = []
    for casts in ([right], [left, right]):
        with scene.kept(adapter) as keep:
            drawn.append([case.draw(PROMPT, bound, **keep) for bound in casts][-1])
    assert torch.equal(*drawn)


def test_a_callback_of_the_users_own_is_called_too(feature: Tensor) -> None:
    case, adapter = _case()
    seen: list[int] = []

    def mine(pipe: Any, index: int, timestep: Any, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        seen.append(index)
        return {"latents": tensors["latents"] + 1}

    moved = _scene(case)
    scene = Scene.drawn(case.pipe, mine, **case.arguments(PROMPT))
    assert seen == [0, 1] and not torch.equal(scene.latents[-1], moved.latents[-1])
    assert torch.equal(scene.latents[-1], scene.images)
    bound = adapter.bind(case.pipe, PROMPT, {"man": feature}, router=torch.ones(SIZE, SIZE))
    with scene.kept(adapter, callback_on_step_end=mine) as keep:
        kept = case.draw(PROMPT, bound, **keep)
    assert seen == [0, 1, 0, 1] and not torch.equal(kept, case.draw(PROMPT, bound))


def test_nobody_bound_and_strength_zero_are_the_scene(feature: Tensor) -> None:
    case, adapter = _case()
    scene = _scene(case)
    for cast in ({}, {"man": Subject(feature, strength=0.0)}):
        with scene.kept(adapter) as keep:
            assert torch.equal(case.draw(PROMPT, adapter.bind(case.pipe, PROMPT, cast), **keep), scene.images)


def test_where_everything_is_the_subjects_nothing_is_put_back(feature: Tensor) -> None:
    case, adapter = _case()
    bound = adapter.bind(case.pipe, PROMPT, {"man": feature}, router=torch.ones(SIZE, SIZE))
    with _scene(case).kept(adapter) as keep:
        assert torch.equal(case.draw(PROMPT, bound, **keep), case.draw(PROMPT, bound))


def test_a_weaker_subject_has_the_same_region(feature: Tensor) -> None:
    """R_1 of 0.2 everywhere is below the edge, but it is a strength of 0.2 on pixels that are the subject's."""
    case, adapter = _case()
    weak = {"man": Subject(feature, strength=0.2)}
    bound = adapter.bind(case.pipe, PROMPT, weak, router=torch.ones(SIZE, SIZE))
    with _scene(case).kept(adapter) as keep:
        assert torch.equal(case.draw(PROMPT, bound, **keep), case.draw(PROMPT, bound))


@pytest.mark.parametrize("call", [{"guidance_scale": 1.0}, {"num_images_per_prompt": 3}, {"negative_prompt": "roses"}])
def test_every_picture_of_a_call_keeps_its_own_scene(call: dict[str, Any], feature: Tensor) -> None:
    case, adapter = _case()
    scene = _scene(case, **call)
    bound = adapter.bind(case.pipe, PROMPT, {"man": feature}, router=torch.zeros(SIZE, SIZE))
    with scene.kept(adapter) as keep:
        assert torch.equal(case.draw(PROMPT, bound, **keep, **call), scene.images)


def test_the_pipelines_own_recordings_go_on(feature: Tensor) -> None:
    case, adapter = _case()
    bound = adapter.bind(case.pipe, PROMPT, {"man": feature})
    scene, drawn = _scene(case), []
    light_one, light_two = (adapter.recording(subject_maps=False) for _ in range(2))
    with light_one as outer, scene.kept(adapter) as keep, light_two as inner:
        drawn.append(case.draw(PROMPT, bound, **keep))
    with scene.kept(adapter) as keep:
        drawn.append(case.draw(PROMPT, bound, **keep))
    assert torch.equal(*drawn) and len(inner) == len(outer) > 0  # whoever records beside it
    with adapter.recording() as outer, scene.kept(adapter) as keep:
        case.draw(PROMPT, bound, **keep)
    assert outer and all(step.maps.subject for step in outer)  # it asked for the subjects' maps, too
    with adapter.recording(subject_maps=False) as light:
        case.draw(PROMPT, bound)
    assert light and all(not step.maps.subject and step.maps.router for step in light)
    for one, other in zip(outer[:1], light[:1], strict=True):  # the later ones see other latents
        torch.testing.assert_close(one.mean_router(), other.mean_router(), rtol=1e-4, atol=1e-5)


def test_drawn_by_the_stock_pipeline() -> None:
    case, _ = _case()
    scene = _scene(case)
    assert torch.equal(scene.images, case.draw(PROMPT)) and torch.equal(scene.latents[-1], scene.images)
    assert len(scene.latents) == 2


@pytest.mark.parametrize(
    "call",
    [
        {"num_inference_steps": 3},
        {"num_inference_steps": 1},
        {"num_images_per_prompt": 2},
        {"height": 64, "width": 64},
    ],
)
def test_another_call_than_the_scenes_is_refused(call: dict[str, Any], feature: Tensor) -> None:
    case, adapter = _case()
    bound = adapter.bind(case.pipe, PROMPT, {"man": feature})
    with pytest.raises(UserError, match="The scene to keep has"), _scene(case).kept(adapter) as keep:
        case.draw(PROMPT, bound, **keep, **call)
    assert not adapter._switches.recordings  # the failed call leaves nothing switched on


def test_another_scheduler_with_as_many_steps_is_refused(feature: Tensor) -> None:
    case, adapter = _case()
    scene = _scene(case)
    case.pipe.scheduler = EulerDiscreteScheduler.from_config(case.pipe.scheduler.config, timestep_spacing="trailing")
    bound = adapter.bind(case.pipe, PROMPT, {"man": feature})
    with pytest.raises(UserError, match="scheduler"), scene.kept(adapter) as keep:
        case.draw(PROMPT, bound, **keep)


def test_other_noise_than_the_scenes_is_refused(feature: Tensor) -> None:
    """The one generator for both calls, which a user would try first."""
    case, adapter = _case()
    bound = adapter.bind(case.pipe, PROMPT, {"man": feature})
    with pytest.raises(UserError, match="fresh generator of the same seed"), _scene(case).kept(adapter) as keep:
        case.draw(PROMPT, bound, **keep, generator=torch.Generator().manual_seed(4))


@pytest.mark.parametrize("edge", [(0.5, 0.5), (0.6, 0.4), (-0.1, 0.5), (0.5, 1.1)])
def test_an_edge_that_is_none_is_refused(edge: tuple[float, float]) -> None:
    _, adapter = _case()
    with pytest.raises(UserError, match="edge of a scene"), Scene([], []).kept(adapter, edge):
        pass


@given(weights=st.lists(st.floats(0, 1), min_size=1, max_size=5), known=st.sampled_from([None, 0.0, 1.0]))
@settings(max_examples=40)
def test_the_largest_weight_so_far_decides(weights: list[float], known: float | None) -> None:
    """Against the formula, over steps whose routers say now more, now less; of a guided batch the last row counts."""
    latents = [torch.full((1, 1, 2, 2), -float(i)) for i in range(len(weights))]
    steps: list[RecordedStep] = []
    known_BHW = None if known is None else torch.full((1, 2, 2), known)
    keeper = Keeper(Scene(latents, [500.0 - i for i in range(len(weights))]), steps, (0.25, 0.75), known_BHW)
    for index, weight in enumerate(weights):
        asked_BN = torch.tensor([[0.9], [weight]]).expand(2, 4)
        steps.append(RecordedStep(500.0, (2, 2), AttentionMaps({0}, asked={0: asked_BN})))
        found = keeper.put_back(index, 500.0 - index, torch.full((1, 1, 2, 2), 10.0))
        own = min(1.0, max(0.0, (max([*weights[: index + 1], known or 0.0]) - 0.25) / 0.5))
        expected = torch.full((1, 1, 2, 2), own * 10.0 - (1 - own) * index)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert not steps
