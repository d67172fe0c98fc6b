"""BLIP-2 by LAVIS, in an interpreter of its own: LAVIS pins a transformers of 2023, which excludes ours.

The checkpoints that LAVIS unpickles never enter this process. Its worker may die, hang, print, or be killed: the photos
concerned are refused or the run ends with a sentence, and nothing is left running.
"""

import base64
import io
import json
import os
import select
import subprocess
import sys
import threading
import time
import weakref
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from infra.backends import INSTALL_LAVIS, lavis_interpreter
from infra.errors import UserError
from infra.settings import CaptionSettings, ModelReference
from preprocessing.batching import Steps

_WORKER = Path(__file__).with_name("lavis_worker.py")


class LavisCaptioner:
    """`reference.location` = "NAME/TYPE" as in "blip2_opt/caption_coco_opt6.7b"; see `captioning.Captioner`.

    `reference.revision` is the commit of the LAVIS that is installed there. load_seconds: for the model to load, its
    first download included; batch_seconds: for one batch. UserError where the interpreter or the model cannot be used;
    RuntimeError where a batch fails or the worker ends over it, and the next batch starts a new one.
    """

    def __init__(
        self,
        reference: ModelReference,
        settings: CaptionSettings,
        load_seconds: float = 7200.0,
        batch_seconds: float = 900.0,
    ) -> None:
        self._interpreter = lavis_interpreter()
        name, separator, model_type = reference.location.partition("/")
        if not separator:
            raise UserError(
                f"A LAVIS captioner is named NAME/TYPE, not {reference.location!r}: "
                "such as blip2_opt/caption_coco_opt6.7b."
            )
        self._model = (name, model_type)
        self._settings = settings
        self._load_seconds, self._batch_seconds = load_seconds, batch_seconds
        self._worker: _Worker | None = None

    @property
    def steps(self) -> Steps[Image.Image, str]:
        """All in one: the work is done by another process."""
        return Steps(self.caption)

    def caption(self, images: Sequence[Image.Image]) -> list[str]:
        """One line per RGB picture."""
        captions: list[str] = []
        for start in range(0, len(images), self._settings.batch_size):
            batch = images[start : start + self._settings.batch_size]
            request = {
                "images": [base64.b64encode(_png(image)).decode() for image in batch],
                "num_beams": self._settings.num_beams,
                "max_length": self._settings.max_new_tokens,
            }
            captions += self._ask(request)["captions"]
        return [" ".join(str(caption).split()) for caption in captions]

    def close(self) -> None:
        """End the second interpreter."""
        if self._worker is not None:
            self._worker.close()
            self._worker = None

    def _ask(self, request: dict[str, Any]) -> dict[str, Any]:
        worker = self._worker or self._start()
        try:
            answer = worker.ask(request, self._batch_seconds)
        except _Ended as ended:
            self._worker = None
            raise RuntimeError(f"LAVIS: {ended}") from ended
        if "error" in answer:
            raise RuntimeError(f"LAVIS: {answer['error']}")
        return answer

    def _start(self) -> "_Worker":
        try:
            worker = _Worker([self._interpreter, "-I", "-u", str(_WORKER)], self._model)
            worker.answer(self._load_seconds)
        except (OSError, _Ended) as error:
            raise UserError(
                f"The LAVIS interpreter {self._interpreter} ended before it had loaded {'/'.join(self._model)} "
                f"({error}): {INSTALL_LAVIS}."
            ) from error
        self._worker = worker
        return worker


class _Ended(Exception):
    """The worker is gone; says how, and the last thing that it printed."""


class _Worker:
    """A process that answers lines of JSON with lines of JSON. Killed at the latest when this object is."""

    def __init__(self, command: Sequence[str], arguments: Sequence[str]) -> None:
        self._answers, writing = os.pipe()
        try:
            self._process = subprocess.Popen(
                [*command, str(writing), *arguments],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                pass_fds=[writing],
            )
        except OSError:
            os.close(self._answers)
            raise
        finally:
            os.close(writing)
        self._printed: deque[str] = deque(maxlen=20)
        self._rest = b""
        self._reader = threading.Thread(target=_echo, args=(self._process, self._printed), daemon=True)
        self._reader.start()
        self._finalizer = weakref.finalize(self, _end, self._process, self._answers)

    def ask(self, request: dict[str, Any], seconds: float) -> dict[str, Any]:
        """Send one request and wait for its answer; _Ended where none comes in time."""
        line = json.dumps(request).encode() + b"\n"
        # In a thread of its own: a worker that hangs does not read, and a pipe holds 64 KiB.
        threading.Thread(target=_write, args=(self._process, line), daemon=True).start()
        return self.answer(seconds)

    def answer(self, seconds: float) -> dict[str, Any]:
        """The next answer; _Ended, and the worker killed, where none comes in time or it is none."""
        deadline = time.monotonic() + seconds
        while b"\n" not in self._rest:
            ready, _, _ = select.select([self._answers], [], [], max(deadline - time.monotonic(), 0))
            if not ready:
                self._end(f"no answer within {seconds:g} seconds")
            piece = os.read(self._answers, 1 << 16)
            if not piece:
                self._process.wait()
                self._end(f"exit {self._process.returncode}")
            self._rest += piece
        line, _, self._rest = self._rest.partition(b"\n")
        try:
            answer = json.loads(line)
        except ValueError:
            self._end(f"its answer is no JSON: {line[:80]!r}")
        if not isinstance(answer, dict):
            self._end("its answer is no JSON object")
        return answer

    def close(self) -> None:
        """End it, with ten seconds' grace: its loop ends with its input."""
        if self._process.stdin is not None and not self._process.stdin.closed:
            try:
                self._process.stdin.close()
            except OSError:
                pass
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            pass
        self._finalizer()

    def _end(self, why: str) -> Any:
        self._finalizer()
        self._reader.join(5)  # what it printed last says why
        last = next((line for line in reversed(self._printed) if line.strip()), "")
        raise _Ended(f"{why}{': ' if last else ''}{last.strip()[:200]}")


def _write(process: subprocess.Popen[bytes], line: bytes) -> None:
    assert process.stdin is not None
    try:
        process.stdin.write(line)
        process.stdin.flush()
    except (OSError, ValueError):
        pass  # it is gone: whoever waits for the answer will say so


def _echo(process: subprocess.Popen[bytes], printed: deque[str]) -> None:
    """Pass on what the worker prints (a download's progress, warnings) and remember the last of it."""
    assert process.stdout is not None
    for line in process.stdout:
        text = line.decode("utf-8", "replace").rstrip("\n")
        printed.append(text)
        print(text, file=sys.stderr)


def _end(process: subprocess.Popen[bytes], answers: int) -> None:
    process.kill()
    process.wait()
    os.close(answers)


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()
