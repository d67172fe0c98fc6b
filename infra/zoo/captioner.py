"""Recipe for the demo's `Blip2ForConditionalGeneration`: a small vision tower, a Q-Former and a small OPT.

First the vision tower learns to see from dense labels (`dense_labels.py`), then everything learns to say it.
"""

import time
from collections.abc import Callable
from pathlib import Path

import infra.torchvision_ops  # noqa: F401

import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    Blip2Config,
    Blip2ForConditionalGeneration,
    Blip2Processor,
    BlipImageProcessor,
    PreTrainedTokenizerFast,
)

from infra.zoo.dense_labels import DenseHeads, labelled_batch
from infra.zoo.pictures import LabelledPictures
from infra.zoo.schedule import Schedule, averaged

PIXELS = 64
QUERIES = 8


def word_tokenizer(captions: list[str]) -> PreTrainedTokenizerFast:
    """One token a word: all that a captioner of this world can say."""
    special = ["<pad>", "<s>", "</s>", "<unk>", "<image>"]
    words = special + sorted({word for caption in captions for word in caption.split()})
    core = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # and no decoder: without one, words are joined by spaces
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        extra_special_tokens=["<image>"],
        padding_side="left",
    )


def new_captioner(tokenizer: PreTrainedTokenizerFast) -> Blip2ForConditionalGeneration:
    """The untrained network.

    BLIP-2's default initialisations (1e-10, zero queries) would never leave the ground at this size.
    """
    vision = {
        "hidden_size": 128,
        "intermediate_size": 384,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "image_size": PIXELS,
        "patch_size": 8,
        "initializer_range": 0.02,
    }
    qformer = {
        "vocab_size": 8,
        "hidden_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 256,
        "encoder_hidden_size": 128,
        "cross_attention_frequency": 1,
        "initializer_range": 0.05,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
    }
    text = {
        "model_type": "opt",
        "vocab_size": len(tokenizer),
        "hidden_size": 128,
        "word_embed_proj_dim": 128,
        "ffn_dim": 256,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 64,
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "init_std": 0.05,
        "dropout": 0.0,
    }
    config = Blip2Config(
        vision_config=vision,
        qformer_config=qformer,
        text_config=text,
        num_query_tokens=QUERIES,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
    )
    model = Blip2ForConditionalGeneration(config)
    torch.nn.init.normal_(model.query_tokens, std=0.5)
    return model


def train_captioner(
    pictures: LabelledPictures,
    out: Path,
    minutes: float,
    log: Callable[[str], None] = print,
    seed: int = 0,
    start: Path | None = None,
) -> None:
    """Train for `minutes` (a third of them the vision tower alone) and save model and processor to `out`.

    From `start`, an earlier result on the same captions, everything is trained together at once.
    """
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    tokenizer = word_tokenizer(pictures.captions)
    model = new_captioner(tokenizer) if start is None else Blip2ForConditionalGeneration.from_pretrained(start).train()
    dense = DenseHeads(128, pictures.patches.shape[-1])
    average = averaged(model, 0.998)
    modules = torch.nn.ModuleList([model, dense])
    optimizer = torch.optim.AdamW(modules.parameters(), lr=1e-3, weight_decay=0.02, fused=True)
    schedule = Schedule(minutes, peak=1.2e-3, warmup=0.03)
    image = model.config.image_token_index
    for step in schedule.steps(optimizer):
        index = rng.integers(len(pictures), size=64)
        flip = rng.random() < 0.5
        pixels, cover_BNP, captions = labelled_batch(pictures, index, flip)
        if start is None and schedule.spent < 60 * minutes / 3:
            seen = model.vision_model(pixels)
            loss = dense(seen.pooler_output, seen.last_hidden_state[:, 1:], cover_BNP)
        else:
            rows = [
                [image] * QUERIES + [tokenizer.bos_token_id, *tokenizer(text).input_ids, tokenizer.eos_token_id]
                for text in captions
            ]
            length = max(map(len, rows))
            ids = torch.tensor([row + [tokenizer.pad_token_id] * (length - len(row)) for row in rows])
            mask = ids.ne(tokenizer.pad_token_id)
            labels = ids.masked_fill(~mask, -100)
            labels[:, : QUERIES + 1] = -100
            output = model(pixel_values=pixels, input_ids=ids, attention_mask=mask.long(), labels=labels)
            seen = output.vision_outputs
            # The dense labels go on: captions alone are slow to tell a man from a woman.
            loss = output.loss + 0.2 * dense(seen.pooler_output, seen.last_hidden_state[:, 1:], cover_BNP)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(modules.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        average.update_parameters(model)
        if step % 100 == 0:
            log(f"captioner step {step} loss {loss.item():.4f} {time.strftime('%H:%M:%S')}")
    model.load_state_dict(average.module.state_dict())
    model.generation_config.update(
        pad_token_id=tokenizer.pad_token_id, bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id
    )
    model.eval().save_pretrained(out, safe_serialization=True)
    half = [0.5, 0.5, 0.5]
    images = BlipImageProcessor(size={"height": PIXELS, "width": PIXELS}, image_mean=half, image_std=half)
    Blip2Processor(images, tokenizer, num_query_tokens=QUERIES).save_pretrained(out)
