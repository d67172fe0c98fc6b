"""The machine's name, as results give it."""

import os
import platform
from pathlib import Path


def machine() -> str:
    """The processor's name and the number of cores that this process may use."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    name = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())
    return f"{name}, {len(os.sched_getaffinity(0))} cores"


def busy_machine() -> str:
    """The same, and how busy it is now."""
    return f"{machine()}, load {os.getloadavg()[0]:.1f} at the start"
