import copy

import pytest
import torch
from torch import nn

from ngopt import NGOptimizer, build_graph
from tests.ngopt.soap.test_soap import noise

REAL = [torch.float64, torch.float32, torch.bfloat16]
DTYPES = [*REAL, torch.complex64, torch.complex128]


class TestOddParameters:
    def step(self, params, steps=40):
        before = [p.detach().clone() for p in params]
        opt = NGOptimizer(params)
        for step in range(steps):
            pairs = [torch.view_as_real(p) if p.is_complex() else p for p in params]
            for p, g in zip(params, noise(pairs, step), strict=True):
                p.grad = torch.view_as_complex(g) if p.is_complex() else g
            opt.step()
        for p, b in zip(params, before, strict=True):
            assert p.isfinite().all()
            assert p.numel() == 0 or not torch.equal(p, b)
        return opt

    @pytest.mark.parametrize("dtype", DTYPES)
    def test_of_every_shape_and_dtype(self, dtype):
        torch.manual_seed(0)  # a bfloat16 scalar can end exactly where it began
        shapes = [(), (1,), (3,), (0, 3), (2, 3, 4), (2, 1, 2, 2, 2), (5, 4), (1, 1)]
        shapes = [s for s in shapes if dtype in REAL or 0 not in s]
        opt = self.step([nn.Parameter(torch.randn(s, dtype=dtype)) for s in shapes])
        is_wide = dtype in (torch.float64, torch.complex128)
        expected = torch.float64 if is_wide else torch.float32
        assert {record["exp_avg_0"].dtype for record in opt.state.values()} == {
            expected
        }

    @pytest.mark.parametrize(
        "make", [lambda: nn.Conv1d(3, 4, 5), lambda: nn.Conv3d(2, 3, 2)]
    )
    def test_convolutions_of_other_dimensions(self, make):
        self.step(list(make().parameters()))


@pytest.mark.parametrize("groups", [2, 4, 8])
def test_exchanged_groups_of_a_convolution_have_exchanged_steps(groups):
    """Also where the matrix of a group does not fill its rows of a bucket."""
    torch.manual_seed(0)
    conv = nn.Conv2d(8, 8, 3, groups=groups, bias=False).double()
    other = copy.deepcopy(conv)
    order = torch.arange(8).unflatten(0, (groups, -1)).roll(1, 0).flatten()
    with torch.no_grad():
        other.weight.copy_(conv.weight[order])
    example = torch.randn(1, 8, 5, 5, dtype=torch.float64)
    optimizers = []
    for layer in (conv, other):
        graph = build_graph(layer, example)
        optimizers.append(NGOptimizer(layer.parameters(), graph=graph, total_steps=9))
    for _ in range(4):
        conv.weight.grad = torch.randn_like(conv.weight)
        other.weight.grad = conv.weight.grad[order]
        for optimizer in optimizers:
            optimizer.step()
    torch.testing.assert_close(other.weight, conv.weight[order])
