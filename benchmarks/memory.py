"""The memory that a process uses, and the peak memory of a piece of work."""

from __future__ import annotations

import ctypes
import resource
import sys
from pathlib import Path


def resident(process: int | str = "self", which: str = "VmRSS") -> float:
    """Return a process's resident memory in MB, or its peak (VmHWM); 0 if the system does not report it."""
    file = Path(f"/proc/{process}/status")
    lines = file.read_text().splitlines() if file.exists() else []
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith(f"{which}:")), 0)


class Peak:
    """Measures from its creation on. Only Linux can reset an earlier peak; elsewhere, work below that peak counts as 0."""

    def __init__(self) -> None:
        self.linux = sys.platform == "linux"
        if self.linux:
            ctypes.CDLL(None).malloc_trim(0)  # otherwise memory that was freed but kept would be reused unnoticed
            Path("/proc/self/clear_refs").write_text("5")
        self.before = self._now("VmRSS")

    def grown_mb(self) -> float:
        """Return how much larger than at the start the process has been at its peak, in MB of 2^20 bytes."""
        return max(0.0, self._now("VmHWM") - self.before)

    def _now(self, which: str) -> float:
        return resident(which=which) if self.linux else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
