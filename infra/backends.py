"""Which captioners and segmenters can be used here, and what those that cannot lack: looked at, not loaded."""

import importlib.util
import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

from infra.errors import UserError

LAVIS_PYTHON = "MOA_LAVIS_PYTHON"
INSTALL_LAVIS = (
    "`python3.11 -m venv lavis`, `lavis/bin/pip install torch 'numpy<2' 'pandas<3' salesforce-lavis`, then set "
    f"{LAVIS_PYTHON} to lavis/bin/python"
)
INSTALL_DETECTRON2 = (
    "build detectron2 from its repository, put the Mask2Former repository on PYTHONPATH and compile its deformable "
    "attention"
)


@dataclass(frozen=True)
class Backend:
    """One implementation: `missing` is "" where it can be used, else what it lacks and what mends that."""

    name: str
    missing: str


def captioner_backends() -> list[Backend]:
    """The captioners, as `models.captioner.backend` names them."""
    return [Backend("transformers", _absent("transformers")), Backend("lavis", _lavis())]


def segmenter_backends() -> list[Backend]:
    """The segmenters, as `models.segmenter.backend` names them."""
    missing = next((text for text in map(_absent, ("detectron2", "mask2former")) if text), "")
    return [
        Backend("transformers", _absent("transformers")),
        Backend("detectron2", f"{missing}: {INSTALL_DETECTRON2}" if missing else ""),
    ]


def lavis_interpreter() -> str:
    """The Python that MOA_LAVIS_PYTHON names; UserError where there is none that can be run."""
    interpreter = os.environ.get(LAVIS_PYTHON, "")
    if not Path(interpreter).is_file() or not os.access(interpreter, os.X_OK):
        found = f"{LAVIS_PYTHON} = {interpreter!r} is no program" if interpreter else f"{LAVIS_PYTHON} is not set"
        raise UserError(
            f"The LAVIS captioner needs a Python of its own, and {found}: {INSTALL_LAVIS}; or choose the backend "
            "'transformers'."
        )
    return interpreter


def _absent(package: str) -> str:
    try:
        there = importlib.util.find_spec(package) is not None
    except (ImportError, ValueError):
        there = False
    return "" if there else f"no {package} here"


def _lavis() -> str:
    try:
        interpreter = lavis_interpreter()
    except UserError as error:
        return str(error).rstrip(".")
    look = "import importlib.util, sys; sys.exit(importlib.util.find_spec('lavis') is None)"
    try:
        looked = subprocess.run([interpreter, "-I", "-c", look], capture_output=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"{interpreter} cannot be run ({type(error).__name__}): {INSTALL_LAVIS}"
    return "" if looked.returncode == 0 else f"no lavis in {interpreter}: {INSTALL_LAVIS}"
