"""Which code is here: a machine that does another's work must have the same."""

import hashlib
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

_ROOT = Path(__file__).parents[1]
_PACKAGES = ("evaluation", "flows", "infra", "moa_model", "preprocessing")


@cache
def code_digest() -> str:
    """First 12 hex digits of the SHA-256 over the names and contents of the project's Python files."""
    digest = hashlib.sha256()
    for package in _PACKAGES:
        for path in sorted((_ROOT / package).rglob("*.py")):
            data = path.read_bytes()
            digest.update(f"{path.relative_to(_ROOT).as_posix()} {len(data)}\n".encode() + data)
    return digest.hexdigest()[:12]


def code_name() -> str:
    """Version and digest for people; a copy that was not installed has a digest alone."""
    try:
        return f"moa {version('moa')} ({code_digest()})"
    except PackageNotFoundError:
        return f"moa ({code_digest()})"
