"""Keeping the prior's scene: outside the people nothing moves, inside them nothing is lost."""

from typing import Any

import infra.torchvision_ops  # noqa: F401

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from infra.errors import UserError
from moa_model import MoAAdapter, Scene, Subject
from moa_model.attention import AttentionMaps
from moa_model.recording import RecordedStep
from moa_model.scene import _Keeper
from tests.moa_model.conftest import PROMPT, trained_like
from tests.tiny_models import IMAGE_DIM
from tests.tiny_pipelines import BASES, SIDE, Case, tiny_case

SIZE = SIDE // 4  # the tiny autoencoder's


def _case(base: str = "sd1", kind: str = "text") -> tuple[Case, MoAAdapter]:
    case = tiny_case(base, kind)
    return case, trained_like(MoAAdapter.for_unet(case.pipe.unet, IMAGE_DIM)).attach(case.pipe)


def _scene(case: Case, prompt: Any = PROMPT, **call: Any) -> Scene:
    """The prior's run of what ``case.draw`` draws."""
    latents: list[Tensor] = []

    def keep(pipe: Any, index: int, timestep: Any, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        latents.append(tensors["latents"].clone())
        return {}

    return Scene(latents, case.draw(prompt, callback_on_step_end=keep, **call))


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("kind", ["text", "inpaint", "control"])
def test_outside_the_people_the_latents_are_the_scenes_bit_for_bit(base: str, kind: str, feature: Tensor) -> None:
    case, adapter = _case(base, kind)
    scene = _scene(case)
    latent_side = scene.latents[-1].shape[-1]
    mask_HW = torch.zeros(latent_side, latent_side)
    mask_HW[:, : latent_side // 2] = 1
    bound = adapter.bind(case.pipe, PROMPT, {"man": feature}, router=mask_HW)
    free = case.draw(PROMPT, bound)
    with scene.kept(adapter) as keep:
        kept = case.draw(PROMPT, bound, **keep)
    # Layers of a single pixel know no halves: for them the whole picture is half a person, above the edge or not.
    outside = (kept == scene.images).all(dim=1)[0]
    assert outside.any() and not outside.all()
    assert (kept - scene.images).abs().mean() < (free - scene.images).abs().mean()


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
    with adapter.recording() as outer, _scene(case).kept(adapter) as keep:
        case.draw(PROMPT, bound, **keep)
    assert outer and all(step.maps.subject for step in outer)  # the outer recording asked for the subjects' maps, too
    with adapter.recording(subject_maps=False) as light:
        case.draw(PROMPT, bound)
    assert light and all(not step.maps.subject and step.maps.router for step in light)
    for one, other in zip(outer[:1], light[:1], strict=True):  # the later ones see other latents
        torch.testing.assert_close(one.mean_router(), other.mean_router(), rtol=1e-4, atol=1e-5)


def test_drawn_by_the_stock_pipeline() -> None:
    case, _ = _case()
    call = case.call | {"prompt": PROMPT, "num_inference_steps": 2, "output_type": "latent"}
    scene = Scene.drawn(case.pipe, generator=torch.Generator().manual_seed(3), guidance_scale=3.0, **call)
    assert torch.equal(scene.images, case.draw(PROMPT)) and torch.equal(scene.latents[-1], scene.images)
    assert len(scene.latents) == 2


@pytest.mark.parametrize(
    "call", [{"num_inference_steps": 3}, {"num_images_per_prompt": 2}, {"height": 64, "width": 64}]
)
def test_another_call_than_the_scenes_is_refused(call: dict[str, Any], feature: Tensor) -> None:
    case, adapter = _case()
    bound = adapter.bind(case.pipe, PROMPT, {"man": feature})
    with pytest.raises(UserError, match="same prompts, steps and size"), _scene(case).kept(adapter) as keep:
        case.draw(PROMPT, bound, **keep, **call)
    assert not adapter._switches.recording  # the failed call leaves nothing switched on


@pytest.mark.parametrize("edge", [(0.5, 0.5), (0.6, 0.4), (-0.1, 0.5), (0.5, 1.1)])
def test_an_edge_that_is_none_is_refused(edge: tuple[float, float]) -> None:
    _, adapter = _case()
    with pytest.raises(UserError, match="edge of a scene"), Scene([]).kept(adapter, edge):
        pass


@given(weights=st.lists(st.floats(0, 1), min_size=1, max_size=5), share=st.sampled_from([None, 0.25, 1.0]))
@settings(max_examples=40, deadline=None)
def test_the_largest_weight_so_far_decides(weights: list[float], share: float | None) -> None:
    """Against the formula, pixel by pixel, over steps whose routers say now more, now less."""
    scene = [torch.full((1, 1, 2, 2), -float(i)) for i in range(len(weights))]
    steps: list[RecordedStep] = []
    keeper = _Keeper(scene, steps, (0.25, 0.75))
    for index, weight in enumerate(weights):
        said = weight * (1 if share is None else share)
        share_B = None if share is None else torch.tensor([share])
        steps.append(RecordedStep(500.0, (2, 2), AttentionMaps({0}, router={0: torch.full((1, 4), 1 - said)}), share_B))
        given_BCHW = torch.full((1, 1, 2, 2), 10.0)
        found = keeper(None, index, None, {"latents": given_BCHW})["latents"]
        own = min(1.0, max(0.0, (max(weights[: index + 1]) - 0.25) / 0.5))
        expected = torch.full((1, 1, 2, 2), own * 10.0 - (1 - own) * index)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
