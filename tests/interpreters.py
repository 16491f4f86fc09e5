"""New interpreters, in which nothing is imported yet."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def printed(code: str) -> str:
    """What code prints in a new interpreter; AssertionError, with its errors, if it
    fails."""
    command = [sys.executable, "-c", code]
    process = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert process.returncode == 0, process.stderr
    return process.stdout
