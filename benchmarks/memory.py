"""Peak resident memory of this process on Linux."""

from __future__ import annotations

import ctypes
import gc
import re
from pathlib import Path

PROCESS = Path("/proc/self")


class Peak:
    """Peak resident memory in bytes since construction, above that at construction.

    The constructor returns free memory to the system, so that its reuse is counted.
    Linux with glibc only.
    """

    def __init__(self) -> None:
        gc.collect()
        ctypes.CDLL("libc.so.6").malloc_trim(0)
        (PROCESS / "clear_refs").write_text("5")  # resets VmHWM to VmRSS
        self.before = _resident("VmRSS")

    def bytes(self) -> int:
        return _resident("VmHWM") - self.before


def _resident(key: str) -> int:
    status = (PROCESS / "status").read_text()
    found = re.search(rf"{key}:\s+(\d+) kB", status)
    assert found
    return 1024 * int(found[1])
