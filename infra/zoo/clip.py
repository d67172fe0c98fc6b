"""Recipe for the demo's `CLIPModel`: whole pictures against captions, people against phrases about their looks."""

import time
from collections.abc import Callable
from pathlib import Path

import infra.torchvision_ops  # noqa: F401

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPProcessor, CLIPTokenizer

from infra.zoo.crops import person_crop
from infra.zoo.dense_labels import DenseHeads, FactorHeads, labelled_batch
from infra.zoo.pictures import LabelledPictures, to_tensor
from infra.zoo.schedule import Schedule, averaged
from infra.zoo.tokenizers import MAX_TOKENS

PIXELS = 64


def new_clip(tokenizer: CLIPTokenizer) -> CLIPModel:
    """The untrained network."""
    ids = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    text = {
        "vocab_size": len(tokenizer),
        "hidden_size": 128,
        "intermediate_size": 256,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": MAX_TOKENS,
        "projection_dim": 128,
        "pad_token_id": tokenizer.pad_token_id,
        **ids,
    }
    vision = {
        "hidden_size": 128,
        "intermediate_size": 384,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "image_size": PIXELS,
        "patch_size": 8,
        "projection_dim": 128,
    }
    return CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=128))


def image_processor() -> CLIPImageProcessor:
    """Resizes to the towers' side; pixels to [-1, 1]."""
    half = [0.5, 0.5, 0.5]
    return CLIPImageProcessor(
        size={"shortest_edge": PIXELS}, crop_size={"height": PIXELS, "width": PIXELS}, image_mean=half, image_std=half
    )


def _contrast(
    images_BD: Float[Tensor, "B D"], texts_BD: Float[Tensor, "B D"], texts: list[str], scale: Tensor
) -> Tensor:
    """CLIP's loss, but equal texts are all right answers (short captions repeat within a batch)."""
    logits = scale.exp().clamp(max=50) * F.normalize(images_BD, dim=-1) @ F.normalize(texts_BD, dim=-1).T
    same = torch.tensor([[a == b for b in texts] for a in texts]).float()
    target = same / same.sum(1, keepdim=True)
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


def train_clip(
    pictures: LabelledPictures,
    tokenizer: CLIPTokenizer,
    out: Path,
    minutes: float,
    log: Callable[[str], None] = print,
    seed: int = 0,
    start: Path | None = None,
) -> None:
    """Train for `minutes` (from `start`, an earlier result, if given) and save model and processor to `out`."""
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    model = new_clip(tokenizer) if start is None else CLIPModel.from_pretrained(start).train()
    dense = DenseHeads(128, pictures.patches.shape[-1])
    factor_heads = FactorHeads(128, pictures.factors)
    modules = torch.nn.ModuleList([model, dense, factor_heads])
    average = averaged(model, 0.998)
    optimizer = torch.optim.AdamW(modules.parameters(), lr=1e-3, weight_decay=0.02, fused=True)
    schedule = Schedule(minutes, peak=1.2e-3, warmup=0.03)
    people = [(index, k) for index, looks in enumerate(pictures.looks) for k in range(len(looks))]
    tokens = {
        text: tokenizer(text, padding="max_length", max_length=MAX_TOKENS, truncation=True).input_ids
        for text in {*pictures.captions, *(look for looks in pictures.looks for look in looks)}
    }
    for step in schedule.steps(optimizer):
        whole = rng.integers(len(pictures), size=32)
        chosen = [people[i] for i in rng.integers(len(people), size=32)]
        crops = np.stack([person_crop(pictures, i, k + 1, PIXELS, rng) for i, k in chosen])
        flip = rng.random() < 0.5
        wholes_B3HW, cover_BNP, captions = labelled_batch(pictures, whole, flip)
        looks = [pictures.looks[i][k] for i, k in chosen]
        pixels = torch.cat([wholes_B3HW, to_tensor(crops)])
        seen = model.vision_model(pixels)
        images_BD = model.visual_projection(seen.pooler_output)
        texts = captions + looks
        ids = torch.tensor(
            [
                tokens.get(text) or tokenizer(text, padding="max_length", max_length=MAX_TOKENS).input_ids
                for text in texts
            ]
        )
        texts_BD = model.text_projection(model.text_model(ids, attention_mask=ids.ne(-1)).pooler_output)
        loss_dense = dense(seen.pooler_output[:32], seen.last_hidden_state[:32, 1:], cover_BNP)
        loss_factors = factor_heads(images_BD[32:], [pictures.factors[i][k] for i, k in chosen])
        loss_whole = _contrast(images_BD[:32], texts_BD[:32], captions, model.logit_scale)
        loss_looks = _contrast(images_BD[32:], texts_BD[32:], looks, model.logit_scale)
        (loss_dense + loss_factors + loss_whole + loss_looks).backward()
        torch.nn.utils.clip_grad_norm_(modules.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        average.update_parameters(model)
        if step % 100 == 0:
            log(
                f"clip step {step} dense {loss_dense.item():.3f} factors {loss_factors.item():.3f} "
                f"captions {loss_whole.item():.3f} looks {loss_looks.item():.3f} {time.strftime('%H:%M:%S')}"
            )
    model.load_state_dict(average.module.state_dict())
    model.eval().save_pretrained(out, safe_serialization=True)
    CLIPProcessor(image_processor(), tokenizer).save_pretrained(out)
