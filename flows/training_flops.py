"""A training's FLOPs, counted beside its first steps in a process of their own: torch's counter hooks every module of
the process that it is in, and what is compiled meanwhile would have the hooks in it."""

import os
import subprocess
import sys
from collections.abc import Callable
from functools import cached_property

from infra.settings import Settings

_LONGEST_SECONDS = 120.0
_COUNT = """
import sys
from flows.training_plan import flops_per_image
from infra.settings import Settings
print(flops_per_image(Settings.model_validate_json(sys.stdin.read())))
"""


class FlopsCount:
    """Begun when it is made; `result` waits for it."""

    def __init__(self, settings: Settings, say: Callable[[str], object]) -> None:
        """say: is told once where it could not be counted: a figure that is missing is no reason to end a training."""
        # As in this worker, whose path Ray has set; no GPU is needed, and a context on one takes memory.
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "CUDA_VISIBLE_DEVICES": ""}
        pipe, self._say = subprocess.PIPE, say
        self._process = subprocess.Popen(
            [sys.executable, "-c", _COUNT], stdin=pipe, stdout=pipe, stderr=pipe, text=True, env=environment
        )
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(settings.model_dump_json())
            self._process.stdin.close()
        except BrokenPipeError:
            pass  # it has ended, and `result` says how
        self._process.stdin = None

    @cached_property
    def result(self) -> int | None:
        """Of an image; None where the base's shapes are unknown or it could not be counted."""
        try:
            counted, said = self._process.communicate(timeout=_LONGEST_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.communicate()
            counted, said = "", f"it took more than {_LONGEST_SECONDS:.0f} s"
        words = counted.split()[-1:]
        if words and words[0].isdigit():
            return int(words[0])
        if words != ["None"]:
            self._say(f"the MFU is not written down, for the FLOPs could not be counted ({said.strip()[-300:]})")
        return None
