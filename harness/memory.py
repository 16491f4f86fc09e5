"""Memory that a process has freed stays its own, and comes in large pages."""

from __future__ import annotations

import ctypes
from pathlib import Path

# Parameters of mallopt(3), and the largest size that the C library of Linux takes for
# the last.
TRIM_THRESHOLD, TOP_PAD, MMAP_THRESHOLD = -1, -2, -3
LARGEST_MMAP_THRESHOLD = 32 << 20
NEVER = 2**31 - 1
# Advice for madvise(2): pages that come will be large, and those that are there become
# so.
HUGE_PAGES, COLLAPSE = 14, 25
MAPS = Path("/proc/self/maps")
# Bytes of addresses by which the heap grows. They become memory only when they are
# written to.
GROWTH = 2**30


def keep_freed_memory() -> None:
    """Tells the C library, where it can be told, not to give freed memory back before
    the process ends, and the system to make it of large pages.

    Else every training step asks for the pages of its tensors again; on virtual
    machines, where new pages are slow, a step of a graph network took a quarter longer.
    And of small pages there are more than a processor knows by heart: another 4 % of a
    compiled step.
    """
    library = ctypes.CDLL(None)
    if hasattr(library, "mallopt"):
        library.mallopt(TRIM_THRESHOLD, NEVER)
        library.mallopt(MMAP_THRESHOLD, LARGEST_MMAP_THRESHOLD)
        if MAPS.is_file():
            _take_large_pages(library)


def _take_large_pages(library: ctypes.CDLL) -> None:
    """For the heap, which grows first, as only what is there can be told so. Nothing
    changes where the system has no large pages."""
    library.mallopt(TOP_PAD, GROWTH)
    library.malloc.restype = ctypes.c_void_p
    # more than is likely to be free at its end, and less than what is mapped on its own
    grown = library.malloc(LARGEST_MMAP_THRESHOLD // 2)
    library.free(ctypes.c_void_p(grown))
    for first, end in _heaps():
        size = ctypes.c_size_t(end - first)
        for advice in (HUGE_PAGES, COLLAPSE):
            library.madvise(ctypes.c_void_p(first), size, advice)


def _heaps() -> list[tuple[int, int]]:
    """The first address of the heap, and that after its last: one pair, if there is a
    heap."""
    found = []
    for line in MAPS.read_text().splitlines():
        if line.endswith("[heap]"):
            first, end = line.split()[0].split("-")
            found.append((int(first, 16), int(end, 16)))
    return found
