"""Captions from the real BLIP-2 class on tiny weights."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from infra.backends import LAVIS_PYTHON
from infra.errors import UserError
from infra.settings import CaptionSettings, ModelReference
from preprocessing.captioning import one_line, open_captioner
from tests.tiny_models import tiny_blip2

SETTINGS = CaptionSettings(batch_size=2, max_new_tokens=5, num_beams=1, workers=1)
IMAGES = [Image.fromarray(np.full((40, 30, 3), 60 * i, np.uint8)) for i in range(3)]


def test_one_line() -> None:
    assert one_line("  a man\n on\tthe  beach ") == "a man on the beach"
    assert one_line("a\x00 man\x1b[31m \u202eon\u2066 the \ufeffbeach\ud800") == "a man[31m on the beach"
    # What joins letters stays: a family emoji, Persian's half space; so does writing from right to left.
    for text in ("👨\u200d👩\u200d👧 on the beach", "می\u200cخواهم", "رجل على الشاطئ", "é"):
        assert one_line(text) == text
    with pytest.raises(TypeError):
        one_line(None)  # type: ignore[arg-type]


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
    with pytest.raises(UserError, match="MOA_LAVIS_PYTHON is not set"):
        open_captioner(ModelReference(location="blip2_opt/x", backend="lavis"), SETTINGS)
