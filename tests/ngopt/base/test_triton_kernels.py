"""The Triton kernels of the default in Triton's interpreter, which needs no GPU.

The file runs itself: see `tests.ngopt.interpreter`.
"""

import torch

from ngopt.base import elementwise
from ngopt.base.config import SoapConfig
from tests.ngopt import interpreter

ROWS = 19  # one program of 128 lanes and a part
CASES = [(128, torch.float32), (128, torch.bfloat16), (16, torch.bfloat16)]


def test_they_equal_the_functions():
    assert interpreter.run(__file__).count("equal") == len(CASES)


def check(lanes, dtype):
    """With values that are not finite, and elements that never had a gradient."""
    from ngopt.base import triton_kernels as soap_kernels

    torch.manual_seed(0)
    rows = ROWS * 128 // lanes + 1
    numbers = elementwise.StepScalars(*torch.rand(7, rows, 1))
    grad, momentum, weights = torch.randn(3, rows, lanes)
    second = torch.rand(rows, lanes)
    momentum[3], grad[3] = 0, 0
    grad[0, :3] = torch.tensor([torch.nan, torch.inf, -torch.inf])
    found = []
    for module in (elementwise, soap_kernels):
        m, v = momentum.clone(), second.clone()
        own, ahead = module.accumulate(grad, m, numbers, SoapConfig(), dtype)
        kept = own.clone(), ahead.clone()
        u = module.precondition(own, ahead, v, numbers)
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
