"""Captions from the real BLIP-2 class on tiny weights, and the LAVIS back end's second interpreter."""

import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from infra.errors import UserError
from infra.settings import CaptionSettings, ModelReference
from preprocessing.captioning import LAVIS_PYTHON, LavisCaptioner, one_line, open_captioner
from tests.tiny_models import tiny_blip2

SETTINGS = CaptionSettings(batch_size=2, max_new_tokens=5, num_beams=1, workers=1)
IMAGES = [Image.fromarray(np.full((40, 30, 3), 60 * i, np.uint8)) for i in range(3)]

# Stands in for the package that cannot be installed beside ours, with the two calls of its documentation.
LAVIS = """
import torch
class Model:
    def generate(self, samples, num_beams, max_length):
        if samples["image"].shape[-1] == 7:
            raise ValueError("bad picture")
        print("libraries print where they like")
        return [f"a  man {num_beams} {max_length} {int(x.mean())}\\n" for x in samples["image"]]
def load_model_and_preprocess(name, model_type, is_eval, device):
    assert is_eval and (name, model_type) == ("blip2_opt", "caption_coco_opt6.7b")
    return Model(), {"eval": lambda image: torch.full((3, image.width), float(image.getpixel((0, 0))[0]))}, {}
"""


def test_one_line() -> None:
    assert one_line("  a man\n on\tthe  beach ") == "a man on the beach"


def test_the_real_class_from_a_folder(tmp_path: Path) -> None:
    captioner = open_captioner(ModelReference(location=str(tiny_blip2(tmp_path))), SETTINGS)
    captions = captioner.caption(IMAGES)
    assert len(captions) == 3 and captioner.caption([]) == []
    assert captions == captioner.caption(IMAGES)
    for caption in captions:
        assert caption == one_line(caption) and "<" not in caption
        assert 1 <= len(caption.split()) <= SETTINGS.max_new_tokens
    assert not list(tmp_path.glob("*.bin"))


def test_beams(tmp_path: Path) -> None:
    settings = SETTINGS.model_copy(update={"num_beams": 3})
    assert len(open_captioner(ModelReference(location=str(tiny_blip2(tmp_path))), settings).caption(IMAGES)) == 3


def test_unknown_and_missing_backends_say_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="transformers, lavis"):
        open_captioner(ModelReference(location="x", backend="blip"), SETTINGS)
    monkeypatch.delenv(LAVIS_PYTHON, raising=False)
    with pytest.raises(UserError, match="pip install salesforce-lavis.*MOA_LAVIS_PYTHON"):
        open_captioner(ModelReference(location="blip2_opt/x", backend="lavis"), SETTINGS)
    monkeypatch.setenv(LAVIS_PYTHON, sys.executable)
    with pytest.raises(UserError, match="NAME/TYPE"):
        open_captioner(ModelReference(location="blip2_opt", backend="lavis"), SETTINGS)


@pytest.fixture
def lavis(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModelReference:
    (tmp_path / "lavis").mkdir()
    (tmp_path / "lavis" / "__init__.py").touch()
    (tmp_path / "lavis" / "models.py").write_text(LAVIS)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv(LAVIS_PYTHON, sys.executable)
    return ModelReference(location="blip2_opt/caption_coco_opt6.7b", backend="lavis")


def test_lavis_answers_from_its_own_interpreter(lavis: ModelReference) -> None:
    captioner = open_captioner(lavis, SETTINGS)
    assert isinstance(captioner, LavisCaptioner)
    try:
        assert captioner.caption(IMAGES) == ["a man 1 5 0", "a man 1 5 60", "a man 1 5 120"]
        with pytest.raises(RuntimeError, match="bad picture"):
            captioner.caption([Image.new("RGB", (7, 7))])
        assert captioner.caption(IMAGES[:1]) == ["a man 1 5 0"]  # it goes on
    finally:
        captioner.close()


def test_lavis_that_does_not_start_is_a_users_error(lavis: ModelReference, tmp_path: Path) -> None:
    (tmp_path / "lavis" / "models.py").write_text("raise ImportError('transformers is too new')")
    captioner = open_captioner(lavis, SETTINGS)
    with pytest.raises(UserError, match="The LAVIS interpreter ended"):
        captioner.caption(IMAGES)
