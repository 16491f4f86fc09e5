"""The Triton kernels of the default in Triton's interpreter, which needs no GPU.

What Triton defines is interpreted only where the environment says so before it is
imported: this file runs itself.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from ngopt import elementwise
from ngopt.base.config import SoapConfig

ROOT = Path(__file__).parents[2]
ROWS = 19  # one program of 128 lanes and a part
CASES = [(128, torch.float32), (128, torch.bfloat16), (16, torch.bfloat16)]


def test_they_equal_the_functions():
    pytest.importorskip("triton")
    env = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-W", "ignore", __file__]
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("equal") == len(CASES)


def check(lanes, dtype):
    """With values that are not finite, and elements that never had a gradient."""
    from ngopt import soap_kernels

    torch.manual_seed(0)
    rows = ROWS * 128 // lanes + 1
    numbers = elementwise.RowNumbers(*torch.rand(7, rows, 1))
    grad, momentum, weights = torch.randn(3, rows, lanes)
    second = torch.rand(rows, lanes)
    momentum[3], grad[3] = 0, 0
    grad[0, :3] = torch.tensor([torch.nan, torch.inf, -torch.inf])
    found = []
    for module in (elementwise, soap_kernels):
        m, v = momentum.clone(), second.clone()
        own, ahead = module.accumulate(grad, m, numbers, SoapConfig(), dtype)
        kept = own.clone(), ahead.clone()
        u = module.precondition(own, ahead, v, numbers, 0.95)
        delta = module.change(u.clone(), m, weights, numbers)
        found.append([*kept, m, v, u, delta])
    near = 2e-2 if dtype == torch.bfloat16 else 1e-5
    for expected, x in zip(*found, strict=True):
        assert x.dtype == expected.dtype
        torch.testing.assert_close(x, expected, rtol=near, atol=near)


if __name__ == "__main__":
    for case in CASES:
        check(*case)
        print("equal")
