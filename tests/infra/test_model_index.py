"""Which Stable Diffusion a folder is."""

import json
from pathlib import Path
from typing import Any

import pytest

from infra.errors import UserError
from infra.model_index import ModelIndex, read_model_index
from infra.settings import ModelReference

COMMIT = "0123456789abcdef0123456789abcdef01234567"
SD = {
    "_class_name": "StableDiffusionPipeline",
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "safety_checker": [None, None],
    "requires_safety_checker": False,
}
XL = SD | {
    "_class_name": "StableDiffusionXLPipeline",
    "text_encoder_2": ["transformers", "CLIPTextModelWithProjection"],
    "tokenizer_2": ["transformers", "CLIPTokenizer"],
}


def _written(folder: Path, index: Any) -> ModelReference:
    (folder / "model_index.json").write_text(index if isinstance(index, str) else json.dumps(index))
    return ModelReference(location=str(folder), backend="diffusers")


@pytest.mark.parametrize(
    ("index", "expected"),
    [
        (SD, ModelIndex(two_encoders=False, empty_is_zero=False)),
        (SD | {"text_encoder_2": [None, None]}, ModelIndex(two_encoders=False, empty_is_zero=False)),
        (XL | {"force_zeros_for_empty_prompt": True}, ModelIndex(two_encoders=True, empty_is_zero=True)),
        (XL | {"force_zeros_for_empty_prompt": False}, ModelIndex(two_encoders=True, empty_is_zero=False)),
        (XL, ModelIndex(two_encoders=True, empty_is_zero=True)),  # diffusers' default
    ],
    ids=["1 or 2", "null is none", "XL", "XL with states", "XL of before"],
)
def test_the_encoders_tell_which_it_is(index: dict[str, Any], expected: ModelIndex, tmp_path: Path) -> None:
    assert read_model_index(_written(tmp_path, index)) == expected


@pytest.mark.parametrize(
    ("index", "says"),
    [
        ({name: value for name, value in XL.items() if name != "unet"} | {"_class_name": "FluxPipeline"}, "FluxPipel"),
        (XL | {"text_encoder": [None, None], "_class_name": "A refiner"}, "A refiner"),
        ({}, "without a name"),
        ("{", "cannot be read"),
        ("[1]", "cannot be read"),
        (SD | {"vae": []}, "cannot be read"),
    ],
    ids=["no U-Net", "second encoder alone", "nothing", "no JSON", "a list", "an empty entry"],
)
def test_another_pipeline_is_one_sentence(index: Any, says: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=says) as refused:
        read_model_index(_written(tmp_path, index))
    assert "\n" not in str(refused.value)


def test_a_hub_ids_index_comes_from_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.file_download.constants.HF_HUB_CACHE", str(tmp_path))
    base = ModelReference(location="owner/name", revision=COMMIT, backend="diffusers")
    with pytest.raises(UserError, match=f"hf download owner/name --revision {COMMIT}"):
        read_model_index(base)
    snapshot = tmp_path / "models--owner--name" / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    (snapshot / "model_index.json").write_text(json.dumps(XL))
    assert read_model_index(base).two_encoders
