"""Scores of what guides the base: the pose ControlNet and the style LoRA, each with and without it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import infra.torchvision_ops  # noqa: F401

import numpy as np
import torch
from PIL import Image

from flows.painting import open_pipeline
from infra.settings import Settings
from moa_model.applications import styled, with_control
from preprocessing.segmentation import open_segmenter
from preprocessing.sources.paperfolk_drawing import draw
from preprocessing.sources.paperfolk_pose import draw_pose
from preprocessing.sources.paperfolk_style import as_print
from preprocessing.sources.paperfolk_world import Picture, picture_at

_STEPS, _GUIDANCE, _BATCH, _BINS = 15, 3.0, 24, 8


def score_controlnet(settings: Settings, folder: Path, world: int, count: int) -> dict[str, float]:
    """Overlap of the drawn person with the person whose pose it is, on `count` pictures of one person."""
    pictures: list[Picture] = []
    index = 0
    while len(pictures) < count:
        picture = picture_at(world, index)
        index += 1
        if len(picture.people) == 1:
            pictures.append(picture)
    segmenter = open_segmenter(settings.models.segmenter, settings.segment)
    pipe = open_pipeline(settings.models)
    poses = [draw_pose(picture) for picture in pictures]
    masks = [draw(picture).instances > 0 for picture in pictures]
    prompts = [picture.caption for picture in pictures]

    def overlap(drawn: Sequence[Image.Image]) -> float:
        found = [people.instances > 0 for people in segmenter.segment(drawn)]
        return round(float(np.mean([(a & b).sum() / (a | b).sum() for a, b in zip(masks, found, strict=True)])), 4)

    return {
        "pose: IoU with its person": overlap(_drawn(with_control(pipe, str(folder)), prompts, poses)),
        "pose: IoU without the ControlNet": overlap(_drawn(pipe, prompts)),
    }


def score_style(settings: Settings, folder: Path, world: int, count: int) -> dict[str, float]:
    """Distance of the drawn colours from those of held-out prints: half the L1 of two colour histograms, 0 … 1."""
    pictures = [picture_at(world, index) for index in range(count)]
    prints = as_print(np.stack([np.asarray(draw(picture).image) for picture in pictures]))
    prompts = [picture.caption for picture in pictures]
    pipe = open_pipeline(settings.models)

    def distance(drawn: Sequence[Image.Image]) -> float:
        difference = np.abs(_histogram(np.stack([np.asarray(image) for image in drawn])) - _histogram(prints))
        return round(float(difference.sum() / 2), 4)

    without = distance(_drawn(pipe, prompts))
    with styled(pipe, folder):
        return {"colours: distance to prints": distance(_drawn(pipe, prompts)), "colours: without the LoRA": without}


def _drawn(pipe: Any, prompts: Sequence[str], poses: Sequence[Image.Image] = ()) -> list[Image.Image]:
    """A picture per prompt, from the noise of its place."""
    images: list[Image.Image] = []
    for start in range(0, len(prompts), _BATCH):
        batch = list(prompts[start : start + _BATCH])
        call: dict[str, Any] = {"image": list(poses[start : start + _BATCH])} if poses else {}
        generators = [torch.Generator().manual_seed(start + row) for row in range(len(batch))]
        images += pipe(
            batch,
            num_inference_steps=_STEPS,
            guidance_scale=_GUIDANCE,
            generator=generators,
            height=64,
            width=64,
            **call,
        ).images
    return images


def _histogram(pixels: np.ndarray) -> np.ndarray:
    """Shares of 8 × 8 × 8 colours."""
    cells = pixels.reshape(-1, 3).astype(int) * _BINS // 256
    return np.bincount(cells @ [_BINS * _BINS, _BINS, 1], minlength=_BINS**3) / len(cells)
