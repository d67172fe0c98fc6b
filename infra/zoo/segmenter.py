"""Recipe for the demo's `Mask2FormerForUniversalSegmentation`: people as instances, on a Swin that starts at stride 2.

At 64 pixels masks at stride 4 cannot be better than IoU 0.93, hence the small strides.
"""

import time
from collections.abc import Callable
from pathlib import Path

import infra.torchvision_ops  # noqa: F401

import numpy as np
import torch
from transformers import Mask2FormerConfig, Mask2FormerForUniversalSegmentation, Mask2FormerImageProcessor, SwinConfig

from infra.zoo.pictures import LabelledPictures, to_tensor
from infra.zoo.schedule import Schedule, averaged


def new_segmenter() -> Mask2FormerForUniversalSegmentation:
    """The untrained network."""
    backbone = SwinConfig(
        image_size=64,
        patch_size=2,
        embed_dim=16,
        depths=[1, 1, 2, 2, 1],
        num_heads=[1, 2, 4, 4, 8],
        window_size=4,
        out_features=["stage1", "stage2", "stage3", "stage4", "stage5"],
        drop_path_rate=0.0,
    )
    config = Mask2FormerConfig(
        backbone_config=backbone,
        feature_size=64,
        mask_feature_size=64,
        hidden_dim=64,
        encoder_feedforward_dim=128,
        encoder_layers=2,
        decoder_layers=4,
        num_attention_heads=4,
        dim_feedforward=128,
        num_queries=8,
        common_stride=2,
        no_object_weight=0.3,
        init_std=0.06,
        train_num_points=1024,
        id2label={0: "person"},
        label2id={"person": 0},
    )
    return Mask2FormerForUniversalSegmentation(config)


def train_segmenter(
    pictures: LabelledPictures, out: Path, minutes: float, log: Callable[[str], None] = print, seed: int = 0
) -> None:
    """Train for `minutes` and save model and image processor to `out`."""
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    model = new_segmenter()
    average = averaged(model, 0.998)
    optimizer = torch.optim.AdamW(model.parameters(), lr=8e-4, weight_decay=0.01, fused=True)
    schedule = Schedule(minutes, peak=8e-4, warmup=0.03)
    for step in schedule.steps(optimizer):
        index = rng.integers(len(pictures), size=8)
        pixels, instances = pictures.pixels[index], pictures.instances[index]
        if rng.random() < 0.5:
            pixels, instances = pixels[:, :, ::-1], instances[:, :, ::-1]
        masks = [
            torch.from_numpy(np.stack([instance == k for k in range(1, instance.max() + 1)]).astype(np.float32))
            for instance in instances
        ]
        labels = [torch.zeros(len(mask), dtype=torch.long) for mask in masks]
        loss = model(pixel_values=to_tensor(pixels), mask_labels=masks, class_labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        average.update_parameters(model)
        if step % 100 == 0:
            log(f"segmenter step {step} loss {loss.item():.3f} {time.strftime('%H:%M:%S')}")
    model.load_state_dict(average.module.state_dict())
    model.eval().save_pretrained(out, safe_serialization=True)
    half = [0.5, 0.5, 0.5]
    Mask2FormerImageProcessor(
        size={"height": 64, "width": 64}, size_divisor=32, image_mean=half, image_std=half, ignore_index=255
    ).save_pretrained(out)
