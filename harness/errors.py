"""Which errors programs print as one line, without a traceback."""

from __future__ import annotations

import sysconfig
import traceback
from pathlib import Path

_ROOT = Path(__file__).parents[1]
_OWN = ("benchmarks", "harness", "meta_train", "ngopt", "tasks")
_FOLDERS = (
    *(_ROOT / name for name in _OWN),
    *map(Path, map(sysconfig.get_path, ("stdlib", "purelib", "platlib"))),
)


class PlainError(RuntimeError):
    """An error that programs print as one line, without a traceback."""


def passes_user_code(error: BaseException) -> bool:
    """Whether a file of the user is in the traceback: one outside of our packages, of
    Python and of installed packages."""
    for frame in traceback.extract_tb(error.__traceback__):
        path = Path(frame.filename)
        is_generated = frame.filename.startswith("<")
        if not is_generated and not any(map(path.is_relative_to, _FOLDERS)):
            return True
    return False
