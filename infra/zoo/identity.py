"""Recipe for the demo's identity encoder: a small ResNet that tells people apart, wherever they are.

Supervised contrastive: two pictures of the same person attract, everybody else in the batch repels; a classifier for
each identity factor gives a head start and makes every factor count.
"""

import json
import time
from collections.abc import Callable
from pathlib import Path

import infra.torchvision_ops  # noqa: F401

import numpy as np
import torch
import torch.nn.functional as F
from transformers import ConvNextImageProcessor, ResNetConfig, ResNetModel

from infra.zoo.crops import person_crop
from infra.zoo.dense_labels import FactorHeads
from infra.zoo.pictures import LabelledPictures, to_tensor
from infra.zoo.schedule import Schedule, averaged

PIXELS = 64


def new_identity_encoder() -> ResNetModel:
    """The untrained network."""
    config = ResNetConfig(
        embedding_size=32,
        hidden_sizes=[32, 64, 96, 128],
        depths=[1, 1, 1, 1],
        layer_type="basic",
        downsample_in_first_stage=False,
    )
    return ResNetModel(config)


def train_identity_encoder(
    pairs: LabelledPictures, out: Path, minutes: float, log: Callable[[str], None] = print, seed: int = 0
) -> None:
    """Train on `pairs` (pictures 2i and 2i+1 show the same single person) for `minutes` and save to `out`."""
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    model = new_identity_encoder()
    heads = FactorHeads(model.config.hidden_sizes[-1], pairs.factors)
    modules = torch.nn.ModuleList([model, heads])
    average = averaged(model, 0.995)
    optimizer = torch.optim.AdamW(modules.parameters(), lr=2e-3, weight_decay=0.02, fused=True)
    schedule = Schedule(minutes, peak=2e-3, warmup=0.03)
    for step in schedule.steps(optimizer):
        people = rng.choice(len(pairs) // 2, size=32, replace=False)
        index = np.concatenate([2 * people, 2 * people + 1])
        crops = np.stack([person_crop(pairs, i, 1, PIXELS, rng, keep=0.1) for i in index])
        vectors_BD = model(to_tensor(crops)).pooler_output.flatten(1)
        first_ND, second_ND = F.normalize(vectors_BD, dim=-1).chunk(2)
        logits = first_ND @ second_ND.T / 0.1
        target = torch.arange(len(people))
        contrast = (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2
        factor = heads(vectors_BD, [pairs.factors[i][0] for i in index])
        (contrast + factor).backward()
        torch.nn.utils.clip_grad_norm_(modules.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        average.update_parameters(model)
        if step % 100 == 0:
            log(
                f"identity step {step} contrast {contrast.item():.3f} factors {factor.item():.3f} "
                f"{time.strftime('%H:%M:%S')}"
            )
    model.load_state_dict(average.module.state_dict())
    # Batch-norm statistics are not averaged with the weights: measure them again for the averaged network.
    model.train()
    with torch.no_grad():
        for _ in range(30):
            index = rng.choice(len(pairs), size=64, replace=False)
            model(to_tensor(np.stack([person_crop(pairs, i, 1, PIXELS, rng, keep=0.0) for i in index])))
    model.eval().save_pretrained(out, safe_serialization=True)
    half = [0.5, 0.5, 0.5]
    ConvNextImageProcessor(
        size={"shortest_edge": PIXELS}, crop_pct=1.0, image_mean=half, image_std=half
    ).save_pretrained(out)
    config = json.loads((out / "config.json").read_text())
    config["crop"] = {"margin": 0.05, "background": "grey"}
    (out / "config.json").write_text(json.dumps(config, indent=2))
