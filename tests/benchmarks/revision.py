"""Which code results are of."""

import hashlib
import subprocess
from pathlib import Path

_ROOT = Path(__file__).parents[2]


def commit() -> str:
    """The commit's first twelve digits; "-changed" behind them where something is not committed."""
    return _git("rev-parse", "--short=12", "HEAD") + _changed()


def code_digest() -> str:
    """Of every tracked file but pages and pictures; of no use for the next time where something is not committed."""
    lines = _git("ls-files", "--stage").splitlines()
    code = "\n".join(line for line in lines if not line.endswith((".md", ".png")))
    return hashlib.sha256(code.encode()).hexdigest()[:12] + _changed()


def _changed() -> str:
    return "-changed" if _git("status", "--porcelain", "-uno") else ""


def _git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=_ROOT, capture_output=True, text=True, check=True).stdout.strip()
