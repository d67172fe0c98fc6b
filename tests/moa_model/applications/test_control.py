"""A ControlNet beside the adapter: the pose is followed, the person is the reference's, the prior stays exact."""

import infra.torchvision_ops  # noqa: F401

import numpy as np
import pytest
from diffusers import StableDiffusionControlNetPipeline
from PIL import Image

from infra.errors import UserError
from infra.model_files import ZOO
from moa_model.applications import draw, with_control
from preprocessing.sources.paperfolk_drawing import draw as paper
from preprocessing.sources.paperfolk_pose import draw_pose
from preprocessing.sources.paperfolk_world import picture_at

POSES = [picture_at(2, index) for index in (3, 4)]  # of men, off the centre to the right


@pytest.fixture(scope="module")
def controlled(studio) -> StableDiffusionControlNetPipeline:
    return with_control(studio.pipe, str(ZOO / "controlnet"))


def _overlap(mask: np.ndarray, studio, picture: Image.Image) -> float:
    (found, *_) = studio.people([picture])[0]
    return float((mask & found.mask).sum() / (mask | found.mask).sum())


def test_the_pose_is_followed_with_subjects_bound(studio, controlled, men) -> None:
    assert studio.adapter.is_attached(controlled)
    led, free = [], []
    for picture in POSES:
        mask = paper(picture).instances > 0
        cast = {"man": studio.crop(men[2])}
        with_pose = draw(controlled, studio.adapter, picture.caption, cast, 5, image=draw_pose(picture), **studio.call)
        led.append(_overlap(mask, studio, with_pose))
        free.append(_overlap(mask, studio, draw(studio.pipe, studio.adapter, picture.caption, cast, 5, **studio.call)))
        likeness = studio.likeness([with_pose], men)[0]
        assert likeness.argmax() == 2
    assert min(led) > 0.55 and np.mean(led) > np.mean(free) + 0.1


def test_the_prior_is_the_stock_controlnet_pipeline_bit_for_bit(studio, controlled, men) -> None:
    call = {"prompt": POSES[0].caption, "seed": 5, "image": draw_pose(POSES[0]), **studio.call}
    with studio.adapter.prior_only():
        forced = draw(controlled, studio.adapter, subjects={"man": studio.crop(men[2])}, **call)
    studio.adapter.detach(studio.pipe)
    try:
        import torch

        seed, prompt = call.pop("seed"), call.pop("prompt")
        stock = controlled(prompt, generator=torch.Generator().manual_seed(seed), **call).images[0]
    finally:
        studio.adapter.attach(studio.pipe)
    assert np.array_equal(forced, stock)


def test_no_controlnet(studio, tmp_path) -> None:
    with pytest.raises(UserError, match="No ControlNet at"):
        with_control(studio.pipe, str(tmp_path))
