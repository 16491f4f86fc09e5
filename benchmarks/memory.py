"""How far resident memory rises, as Linux counts it."""

from __future__ import annotations

import ctypes
import gc
import re
from pathlib import Path

PROCESS = Path("/proc/self")


class Peak:
    """Highest resident memory since this was made, beyond what there was then.

    Memory that is free already is given back to the system before, or what a step takes
    of it would not show. Bytes; Linux with glibc only.
    """

    def __init__(self) -> None:
        gc.collect()
        ctypes.CDLL("libc.so.6").malloc_trim(0)
        (PROCESS / "clear_refs").write_text("5")  # sets VmHWM back to VmRSS
        self.before = _resident("VmRSS")

    def bytes(self) -> int:
        return _resident("VmHWM") - self.before


def _resident(key: str) -> int:
    status = (PROCESS / "status").read_text()
    found = re.search(rf"{key}:\s+(\d+) kB", status)
    assert found
    return 1024 * int(found[1])
