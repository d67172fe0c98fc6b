"""A disk of a few megabytes of its own, which the kernel lets run full: a tmpfs that only root can mount."""

import contextlib
import os
import subprocess
from pathlib import Path


class SmallDisk:
    """As a context manager; `MayNotMount` where the system does not allow one."""

    def __init__(self, path: Path, megabytes: int) -> None:
        self.path, self._megabytes = path, megabytes
        self._ballast = path / "ballast"

    def __enter__(self) -> "SmallDisk":
        self.path.mkdir(parents=True, exist_ok=True)
        options = ["-t", "tmpfs", "-o", f"size={self._megabytes}m", "tmpfs", str(self.path)]
        mounted = subprocess.run(["mount", *options], capture_output=True, text=True)
        if mounted.returncode:
            raise MayNotMount(mounted.stderr.strip())
        return self

    def fill(self, leave: int = 0) -> None:
        """Take up what is free, but for so many bytes."""
        free = os.statvfs(self.path).f_bavail * os.statvfs(self.path).f_frsize - leave
        with self._ballast.open("ab", buffering=0) as file, contextlib.suppress(OSError):
            for _ in range(max(0, free) // 4096):
                file.write(bytes(4096))

    def clear(self) -> None:
        """Give it back."""
        self._ballast.unlink()

    def __exit__(self, *_: object) -> None:
        subprocess.run(["umount", "--lazy", str(self.path)], check=True)


class MayNotMount(Exception):
    """What `mount` said."""
