"""Texts of tiny bases against what the stock pipelines compute for the same captions."""

import json
from pathlib import Path

import infra.torchvision_ops  # noqa: F401

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline
from transformers import AutoTokenizer

from infra.errors import UserError
from infra.settings import ModelReference
from preprocessing.text_encoding import TextEncoders, half
from tests.sdxl_models import POOLED_DIM, write_sdxl_base
from tests.tiny_models import tiny_pipeline

CAPTIONS = ["a man on the beach", "a woman, a man and a beard", "ma" * 200]  # the last one is cut


@pytest.fixture(scope="module")
def sdxl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sdxl_base(tmp_path_factory.mktemp("sdxl"))


def _encoders(folder: Path) -> TextEncoders:
    return TextEncoders(ModelReference(location=str(folder), backend="diffusers"), "cpu")


def _near(ours: np.ndarray | None, stock: torch.Tensor) -> None:
    assert ours is not None and ours.dtype == np.float16 and ours.shape == tuple(stock.shape)
    np.testing.assert_allclose(ours.astype(np.float32), stock.detach(), atol=3e-3)


@torch.no_grad()
def test_one_encoders_are_the_stock_pipelines(tmp_path: Path) -> None:
    tiny_pipeline(folder=tmp_path)
    pipe = StableDiffusionPipeline.from_pretrained(tmp_path, safety_checker=None)
    stock, negative = pipe.encode_prompt(CAPTIONS, "cpu", 1, True)
    made, empty = _encoders(tmp_path).encode(CAPTIONS), _encoders(tmp_path).empty()
    _near(made.states, stock)
    _near(empty.states, negative[:1])
    assert made.pooled is None and empty.pooled is None


@pytest.mark.parametrize("zeros", [True, False])
@torch.no_grad()
def test_sdxls_two_are_the_stock_pipelines(zeros: bool, sdxl: Path) -> None:
    """The text, and what stands for no text: zeros where the pipeline draws with zeros."""
    index = json.loads((sdxl / "model_index.json").read_text())
    (sdxl / "model_index.json").write_text(json.dumps(index | {"force_zeros_for_empty_prompt": zeros}))
    pipe = StableDiffusionXLPipeline.from_pretrained(sdxl, add_watermarker=False, dtype=torch.float32)
    stock, negative, pooled, negative_pooled = pipe.encode_prompt(CAPTIONS)
    made, empty = _encoders(sdxl).encode(CAPTIONS), _encoders(sdxl).empty()
    _near(made.states, stock)
    _near(made.pooled, pooled)
    _near(empty.states, negative[:1])
    _near(empty.pooled, negative_pooled[:1])
    assert made.pooled is not None and made.pooled.shape == (3, POOLED_DIM)
    assert empty.states.any() == (not zeros)


def test_sdxls_encoders_are_in_single_precision_whatever_their_configuration_says(sdxl: Path) -> None:
    assert {parameter.dtype for one in _encoders(sdxl)._encoders for parameter in one.parameters()} == {torch.float32}


def test_zeros_need_no_encoder(sdxl: Path) -> None:
    index = json.loads((sdxl / "model_index.json").read_text())
    (sdxl / "model_index.json").write_text(json.dumps(index | {"force_zeros_for_empty_prompt": True}))
    encoders = _encoders(sdxl)
    encoders.empty()
    assert "_encoders" not in vars(encoders)


def test_a_word_has_one_place_for_both_tokenizers(sdxl: Path, tmp_path: Path) -> None:
    first, second = _encoders(sdxl).tokenizers
    assert first.pad_token != second.pad_token  # as published: they differ behind the text's end, where nobody is bound
    for caption in CAPTIONS:
        first_ids, second_ids = (one(caption)["input_ids"] for one in (first, second))
        assert first_ids == second_ids
    other = write_sdxl_base(tmp_path / "other")
    taught = AutoTokenizer.from_pretrained(other, subfolder="tokenizer_2")
    taught.add_tokens(["beach"])
    taught.save_pretrained(other / "tokenizer_2")
    with pytest.raises(UserError, match="different vocabularies"):
        _encoders(other).tokenizers  # noqa: B018


def test_what_overflows_in_half_precision_fails() -> None:
    assert half(torch.tensor([6e4])).dtype == np.float16
    for value in (7e4, float("nan")):
        with pytest.raises(ValueError, match="not finite"):
            half(torch.tensor([value]))
