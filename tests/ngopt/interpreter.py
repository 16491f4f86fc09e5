"""Runs a test file as a program in Triton's interpreter, which needs no GPU.

Kernels are interpreted only if the environment is set before they are defined.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def run(path: str) -> str:
    """What the file prints. Skips the test without Triton, fails it with the file."""
    pytest.importorskip("triton")
    env = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-W", "ignore", path]
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout
