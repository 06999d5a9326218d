"""The memory that a piece of work takes at its most."""

from __future__ import annotations

import ctypes
import re
import resource
import sys
from pathlib import Path

STATUS, RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


class Peak:
    """Measures from its creation on. Only Linux can forget an earlier peak; elsewhere work below that peak counts as none."""

    def __init__(self) -> None:
        self.linux = sys.platform == "linux"
        if self.linux:
            ctypes.CDLL(None).malloc_trim(0)  # or memory that was freed but kept would be used again unseen
            RESET.write_text("5")
        self.before = self._now("VmRSS")

    def grown_mb(self) -> float:
        """Return by how many MB of 2^20 bytes the process has been larger than at the beginning."""
        return max(0.0, self._now("VmHWM") - self.before)

    def _now(self, which: str) -> float:
        if not self.linux:
            return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        return int(re.search(rf"{which}:\s+(\d+)", STATUS.read_text())[1]) / 2**10
