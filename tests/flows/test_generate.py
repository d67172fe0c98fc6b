"""Which photo goes to which word, and what is said of a photo without a person."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from flows.generate import adapter_files, words_for
from infra.errors import UserError
from infra.model_files import ZOO
from infra.settings import load_settings

REPOSITORY = Path(__file__).parents[2]


def test_words_in_the_prompts_order() -> None:
    assert words_for("A man and a woman and a man on the beach", 3) == ["man", "woman", "man"]
    assert words_for("a woman and a man", 1) == ["woman"]
    assert words_for("a beach", 0) == []


def test_too_few_words() -> None:
    with pytest.raises(UserError, match="1 words .* for 2 photos"):
        words_for("a photo of a man", 2)


def test_a_photo_without_a_person_is_named_and_the_picture_is_drawn(tmp_path: Path) -> None:
    wall, out = tmp_path / "wall.png", tmp_path / "drawn.png"
    Image.new("RGB", (128, 128), (90, 140, 200)).save(wall)
    command = [sys.executable, "-m", "flows.cli", "generate", "--prompt", "a photo of a man", "--subject", str(wall)]
    command += ["--release", str(ZOO / "release-1"), "--out", str(out), "--set", "evaluate.inference_steps=2"]
    # The zoo's segmenter has seen nothing but people and finds one on every wall: here it must fill the picture.
    command += ["--set", "segment.min_area=0.9", "--workspace", str(tmp_path / "workspace")]
    answer = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=240)
    assert answer.returncode == 0, answer.stderr
    told = [line for line in answer.stderr.splitlines() if line.startswith("moa: ")]
    assert told == [f'moa: Nobody was found in "{wall}": the whole of it stands for the person.']
    with Image.open(out) as picture:
        assert picture.getbbox() is not None


def test_a_release_is_a_folder_or_what_the_registry_calls_so(tmp_path: Path) -> None:
    shutil.copytree(REPOSITORY / "tests" / "data" / "registry-1", tmp_path / "workspace" / "store")
    settings = load_settings("demo", tmp_path / "workspace")
    assert adapter_files(settings, str(tmp_path)) == tmp_path
    folders = [adapter_files(settings, name) for name in ("production", "moa@3", "3", "moa")]
    assert len(set(folders)) == 1 and (folders[0] / "adapter.safetensors").is_file()
    for wrong in ("staging2", "moa@9", "Moa", "../x"):
        with pytest.raises(UserError):
            adapter_files(settings, wrong)
