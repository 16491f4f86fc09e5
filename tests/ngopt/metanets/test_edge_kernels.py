"""The Triton kernels of PNA in Triton's interpreter, which needs no GPU.

The file runs itself: see `tests.ngopt.interpreter`.
"""

import torch

from ngopt.metanets.graph_data.graph_tensors import EdgeChunk
from ngopt.metanets.layers import pna
from ngopt.metanets.layers.graph_layer import EndTerms
from tests.ngopt import interpreter

# Shapes (groups, n_target, n_source, tiles), width and dtype: parts of programs, one
# edge in each group, several splits. The interpreter has no products of bfloat16.
CASES = [
    ((2, 3, 11, 2), 16, torch.float32),
    ((5, 1, 1, 1), 32, torch.float32),
    ((1, 9, 150, 1), 32, torch.float16),
]


def test_kernels_equal_the_layer():
    assert interpreter.run(__file__).count("equal") == len(CASES)


def check(shape, width, dtype):
    torch.manual_seed(0)
    groups, targets, sources, _ = shape
    layer = pna.PNALayer(width, 4.0).to(dtype)
    # parts of larger tensors
    edges = torch.randn(*shape, width).to(dtype)
    chunk = EdgeChunk(
        0, 0, slice(0, groups), slice(1, 1 + targets), slice(2, 2 + sources), None
    )
    target = torch.randn(groups, targets + 1, 3 * width).to(dtype)
    source = torch.randn(groups, sources + 2, 3 * width).to(dtype)
    to_messages = slice(0, 2 * width)
    to_edges = slice(2 * width, None)
    found = []
    for has_kernels, exact in ((True, dtype), (False, torch.float64)):
        layer = layer.to(exact)
        pna.can_use_kernels = lambda _, has_kernels=has_kernels: has_kernels
        ends = [x.to(exact) for x in (target, source)]
        with torch.no_grad():
            terms = EndTerms(*(x[..., to_messages] for x in ends))
            forward, backward = layer.messages(edges.to(exact), terms, chunk)
            terms = EndTerms(*(x[..., to_edges] for x in ends))
            new = layer.next_edges(edges.to(exact), terms, chunk)
        found.append([new, *forward[1:], *backward[1:]])
    near = 1e-2 if dtype == torch.float16 else 1e-5
    for x, expected in zip(*found, strict=True):
        assert x.dtype == dtype
        torch.testing.assert_close(x.double(), expected, rtol=near, atol=near)
    print("equal")


if __name__ == "__main__":
    for case in CASES:
        check(*case)
