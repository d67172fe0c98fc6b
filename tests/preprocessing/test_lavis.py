"""The LAVIS back end in a real interpreter of its own, with stand-ins for the packages that it has there."""

import os
import signal
import subprocess
import sys
import time
import venv
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
from PIL import Image

from infra.backends import LAVIS_PYTHON, captioner_backends
from infra.errors import UserError
from infra.settings import CaptionSettings, ModelReference
from preprocessing.lavis import LavisCaptioner

SETTINGS = CaptionSettings(batch_size=2, max_new_tokens=5, num_beams=1, workers=1)
IMAGES = [Image.fromarray(np.full((40, 30 + i, 3), 60, np.uint8)) for i in range(3)]
REFERENCE = ModelReference(location="blip2_opt/caption_coco_opt6.7b", backend="lavis")
REPOSITORY = Path(__file__).parents[2]

# The calls of the worker's packages, no more. A picture's width decides what the model does with it.
STAND_INS = {
    "torch/__init__.py": """
class cuda:
    is_available = staticmethod(lambda: False)
class _Batch(list):
    def to(self, device): return self
def stack(items): return _Batch(items)
""",
    "PIL/__init__.py": "",
    "PIL/Image.py": """
import struct
class _Picture:
    def __init__(self, data): self.width, self.height = struct.unpack(">II", data.read()[16:24])
    def convert(self, mode): return self
open = _Picture
""",
    "lavis/__init__.py": "",
    "lavis/models.py": """
import os, sys, time
print("a banner on standard output")
os.write(1, b"and from below Python\\n")
class Model:
    def generate(self, samples, num_beams, max_length):
        for width in samples["image"]:
            if width == 7: raise ValueError("bad picture")
            if width == 8: os._exit(3)
            if width == 9: time.sleep(600)
            if width == 11: os.close(int(sys.argv[1]))
        print("libraries print where they like")
        return [f"a  man {num_beams} {max_length} {width}\\n" for width in samples["image"]]
def load_model_and_preprocess(name, model_type, is_eval, device):
    assert is_eval and (name, model_type) == ("blip2_opt", "caption_coco_opt6.7b"), "no such model"
    try:
        import diffusers
    except ImportError:
        return Model(), {"eval": lambda image: image.width}, {}
    raise SystemExit("our packages leaked in")
""",
}


@pytest.fixture(scope="module")
def interpreter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A virtual environment without any of our packages."""
    root = tmp_path_factory.mktemp("lavis")
    venv.create(root, with_pip=False)
    (packages,) = root.glob("lib/python*/site-packages")
    for name, text in STAND_INS.items():
        (packages / name).parent.mkdir(exist_ok=True)
        (packages / name).write_text(text)
    return root / "bin" / "python"


@pytest.fixture
def captioner(interpreter: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LavisCaptioner]:
    monkeypatch.setenv(LAVIS_PYTHON, str(interpreter))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))  # ours must not reach it
    captioner = LavisCaptioner(REFERENCE, SETTINGS, load_seconds=60, batch_seconds=60)
    yield captioner
    captioner.close()


def process(captioner: LavisCaptioner) -> subprocess.Popen[bytes]:
    assert captioner._worker is not None
    return captioner._worker._process


def picture(width: int) -> Image.Image:
    return Image.new("RGB", (width, 9))


def test_it_answers_from_its_own_interpreter_whatever_is_printed(captioner: LavisCaptioner) -> None:
    assert captioner.caption(IMAGES) == ["a man 1 5 30", "a man 1 5 31", "a man 1 5 32"]
    assert captioner.caption([]) == []
    assert psutil.Process(process(captioner).pid).exe() != ""


def test_a_bad_picture_costs_its_batch_and_the_worker_goes_on(captioner: LavisCaptioner) -> None:
    captioner.caption(IMAGES[:1])
    pid = process(captioner).pid
    with pytest.raises(RuntimeError, match="ValueError: bad picture"):
        captioner.caption([picture(7)])
    assert captioner.caption(IMAGES[:1]) == ["a man 1 5 30"] and process(captioner).pid == pid


@pytest.mark.parametrize(("width", "says"), [(8, "exit 3"), (11, "exit")])
def test_a_worker_that_dies_over_a_picture_is_started_anew(captioner: LavisCaptioner, width: int, says: str) -> None:
    with pytest.raises(RuntimeError, match=says):
        captioner.caption([picture(width)])
    assert captioner.caption(IMAGES[:1]) == ["a man 1 5 30"]


def test_a_killed_worker_is_started_anew(captioner: LavisCaptioner) -> None:
    captioner.caption(IMAGES[:1])
    os.kill(process(captioner).pid, signal.SIGKILL)
    with pytest.raises(RuntimeError, match="exit -9"):
        captioner.caption(IMAGES[:1])
    assert captioner.caption(IMAGES[:1]) == ["a man 1 5 30"]


def test_a_worker_that_hangs_is_killed(captioner: LavisCaptioner) -> None:
    captioner._batch_seconds = 0.5
    captioner.caption(IMAGES[:1])
    pid = process(captioner).pid
    with pytest.raises(RuntimeError, match="no answer within 0.5 seconds: libraries print"):
        captioner.caption([picture(9)])
    assert not psutil.pid_exists(pid)


def test_a_large_request_to_a_worker_that_does_not_read_ends_too(captioner: LavisCaptioner) -> None:
    captioner._batch_seconds = 0.5
    captioner.caption(IMAGES[:1])
    os.kill(process(captioner).pid, signal.SIGSTOP)
    noise = np.random.default_rng(0).integers(0, 256, (300, 300, 3), dtype=np.uint8)
    with pytest.raises(RuntimeError, match="no answer"):
        captioner.caption([Image.fromarray(noise)])


def test_closing_it_ends_the_process(captioner: LavisCaptioner) -> None:
    captioner.caption(IMAGES[:1])
    pid = process(captioner).pid
    captioner.close()
    assert not psutil.pid_exists(pid)


def test_it_ends_with_us_even_when_we_are_killed(interpreter: Path) -> None:
    program = (
        "import os, signal; from PIL import Image; from tests.preprocessing.test_lavis import *\n"
        "captioner = LavisCaptioner(REFERENCE, SETTINGS); captioner.caption(IMAGES[:1])\n"
        "print(process(captioner).pid, flush=True); os.kill(os.getpid(), signal.SIGKILL)"
    )
    environment = {**os.environ, LAVIS_PYTHON: str(interpreter), "PYTHONPATH": str(REPOSITORY)}
    ours = subprocess.run(
        [sys.executable, "-c", program], env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, timeout=120
    )
    assert ours.returncode == -signal.SIGKILL
    pid = int(ours.stdout)
    for _ in range(100):
        if not psutil.pid_exists(pid):
            return
        time.sleep(0.1)
    raise AssertionError("the worker outlived us")


def test_what_is_no_lavis_interpreter_is_told_with_the_way_to_one(
    interpreter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(LAVIS_PYTHON, raising=False)
    with pytest.raises(UserError, match="is not set: .*pip install torch.*salesforce-lavis.*MOA_LAVIS_PYTHON"):
        LavisCaptioner(REFERENCE, SETTINGS)
    text = tmp_path / "python"
    text.write_text("no program")
    for path in (tmp_path / "absent", text):
        monkeypatch.setenv(LAVIS_PYTHON, str(path))
        with pytest.raises(UserError, match="is no program"):
            LavisCaptioner(REFERENCE, SETTINGS)
    text.chmod(0o755)  # runnable by its mode, and still no program
    with pytest.raises(UserError, match="ended before it had loaded"):
        LavisCaptioner(REFERENCE, SETTINGS).caption(IMAGES)
    monkeypatch.setenv(LAVIS_PYTHON, sys.executable)  # our own: LAVIS is not here
    with pytest.raises(UserError, match="No module named 'lavis'"):
        LavisCaptioner(REFERENCE, SETTINGS).caption(IMAGES)
    monkeypatch.setenv(LAVIS_PYTHON, "/bin/true")
    with pytest.raises(UserError, match="exit 0"):
        LavisCaptioner(REFERENCE, SETTINGS).caption(IMAGES)
    monkeypatch.setenv(LAVIS_PYTHON, str(interpreter))
    with pytest.raises(UserError, match="no such model"):
        LavisCaptioner(REFERENCE.model_copy(update={"location": "blip2_opt/other"}), SETTINGS).caption(IMAGES)
    with pytest.raises(UserError, match="NAME/TYPE"):
        LavisCaptioner(REFERENCE.model_copy(update={"location": "blip2_opt"}), SETTINGS)


def test_a_model_that_does_not_load_in_time_is_told(interpreter: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(LAVIS_PYTHON, str(interpreter))
    with pytest.raises(UserError, match="no answer within 0 seconds"):
        LavisCaptioner(REFERENCE, SETTINGS, load_seconds=0).caption(IMAGES)


def test_doctor_looks_into_it(interpreter: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(LAVIS_PYTHON, str(interpreter))
    assert [(one.name, one.missing) for one in captioner_backends()] == [("transformers", ""), ("lavis", "")]
    monkeypatch.setenv(LAVIS_PYTHON, sys.executable)
    assert captioner_backends()[1].missing.startswith(f"no lavis in {sys.executable}")
