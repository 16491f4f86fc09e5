"""The Triton kernels of the default in Triton's interpreter, which needs no GPU.

The file runs itself: see `tests.ngopt.interpreter`.
"""

import copy

import torch
from torch import nn

from ngopt import NGOptimizer
from ngopt.accelerator import soap
from ngopt.accelerator.cuda_graphs import GraphCache
from ngopt.roles import buckets
from ngopt.soap import elementwise
from ngopt.soap.config import SoapConfig
from ngopt.soap.soap import SoapRule
from tests.ngopt import interpreter
from tests.ngopt.accelerator.test_cuda_graphs import FIRST, captured
from tests.ngopt.training import step_with_noise

ROWS = 19  # one program of 128 lanes and a part
CASES = [(128, torch.float32), (128, torch.bfloat16), (16, torch.bfloat16)]
STEPS = FIRST + 3


def test_they_equal_the_functions():
    assert interpreter.run(__file__).count("equal") == len(CASES) + 1


def check(lanes, dtype):
    """With values that are not finite, and elements that never had a gradient."""
    from ngopt.accelerator import triton_kernels as soap_kernels

    torch.manual_seed(0)
    rows = ROWS * 128 // lanes + 1
    numbers = elementwise.StepScalars(*torch.rand(7, rows, 1))
    grad, momentum, weights = torch.randn(3, rows, lanes)
    second = torch.rand(rows, lanes)
    momentum[3], grad[3] = 0, 0
    grad[0, :3] = torch.tensor([torch.nan, torch.inf, -torch.inf])
    results = []
    for module in (elementwise, soap_kernels):
        m, v = momentum.clone(), second.clone()
        g, ahead = module.accumulate(grad, m, numbers, SoapConfig(), dtype)
        kept = g.clone(), ahead.clone()
        u, inverse_roots = module.precondition(g, ahead, v, numbers, 1)
        changes = module.change(u.clone(), m, weights, numbers)
        results.append([*kept, m, v, u, inverse_roots, changes])
    near = 2e-2 if dtype == torch.bfloat16 else 1e-5
    for expected, x in zip(*results, strict=True):
        assert x.dtype == expected.dtype
        torch.testing.assert_close(x, expected, rtol=near, atol=near)


def check_replayed_steps():
    """Of matrices that end within a row, and of biases, which lie in few rows."""
    from ngopt.accelerator import triton_kernels as soap_kernels

    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 5, 3), nn.Flatten(), nn.Linear(45, 9))
    changed = []
    kernels = soap_kernels.ELEMENTWISE

    def counted(u, *arguments):
        changed.append(len(u))
        return soap_kernels.change_weights(u, *arguments)

    # weights of the linear layer are not measured
    buckets.MEASURED_ELEMENTS = 100
    expected = train(copy.deepcopy(model))
    kernels = kernels._replace(change_weights=counted)
    soap.fast_elementwise = lambda device, dtype: kernels
    soap.supports_cuda_graphs = lambda like, count: True
    SoapRule.make_update = soap.AcceleratedUpdate
    GraphCache._capture = captured
    replayed = train(model)
    assert len(changed) >= STEPS - FIRST
    torch.testing.assert_close(replayed, expected, rtol=1e-4, atol=1e-5)


def train(model):
    params = list(model.parameters())
    opt = NGOptimizer(params, total_steps=100)
    step_with_noise(opt, params, range(STEPS))
    return params


if __name__ == "__main__":
    for case in CASES:
        check(*case)
        print("equal")
    check_replayed_steps()
    print("equal")
