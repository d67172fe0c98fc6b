"""A ControlNet's recipe: a stock model that starts as nothing and learns."""

from collections.abc import Callable
from pathlib import Path

import infra.torchvision_ops  # noqa: F401

import torch
from diffusers import ControlNetModel, UNet2DConditionModel

from infra.model_files import ZOO
from infra.zoo.pictures import LabelledPictures
from infra.zoo.pose_controlnet import new_controlnet, train_pose_controlnet
from preprocessing.sources.paperfolk_labels import broad
from preprocessing.sources.paperfolk_pose import draw_poses


def test_recipe_saves_a_stock_controlnet(
    tmp_path: Path, pictures: LabelledPictures, check_safe: Callable[[Path], None]
) -> None:
    poses = draw_poses(broad(1, len(pictures)))
    lines: list[str] = []
    train_pose_controlnet(pictures, poses, ZOO / "base", tmp_path / "controlnet", 0.05, lines.append)
    check_safe(tmp_path / "controlnet")
    model = ControlNetModel.from_pretrained(tmp_path / "controlnet", use_safetensors=True)
    assert any(parameter.any() for parameter in model.controlnet_mid_block.parameters())  # no longer zero
    assert lines[0] == "encoding the pictures" and "step 0 loss" in lines[1]


def test_at_first_it_says_nothing() -> None:
    unet = UNet2DConditionModel.from_pretrained(ZOO / "base", subfolder="unet", use_safetensors=True)
    model = new_controlnet(unet).eval()
    pose = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        down, middle = model(torch.randn(1, 12, 16, 16), 500, torch.randn(1, 8, 128), pose, return_dict=False)
    assert not any(residual.any() for residual in (*down, middle))


def test_the_shipped_one_belongs_to_the_shipped_base() -> None:
    unet = UNet2DConditionModel.from_pretrained(ZOO / "base", subfolder="unet", use_safetensors=True)
    model = ControlNetModel.from_pretrained(ZOO / "controlnet", use_safetensors=True)
    assert model.config.block_out_channels == unet.config.block_out_channels
    pose = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        down, middle = model(torch.randn(1, 12, 16, 16), 500, torch.randn(1, 8, 128), pose, return_dict=False)
    assert middle.any() and all(residual.any() for residual in down)
