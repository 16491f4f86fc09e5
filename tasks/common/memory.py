"""Memory that a process has freed stays its own."""

from __future__ import annotations

import ctypes

# Parameters of mallopt(3), and the largest size that the C library of Linux takes for the second.
TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3
LARGEST_MMAP_THRESHOLD = 32 << 20
NEVER = 2**31 - 1


def keep_freed_memory() -> None:
    """Tells the C library, where it can be told,
    not to give freed memory back before the process ends.

    Else every training step asks for the pages of its tensors again; on virtual machines, where new
    pages are slow, a step of a graph network took a quarter longer.
    """
    library = ctypes.CDLL(None)
    if hasattr(library, "mallopt"):
        library.mallopt(TRIM_THRESHOLD, NEVER)
        library.mallopt(MMAP_THRESHOLD, LARGEST_MMAP_THRESHOLD)
