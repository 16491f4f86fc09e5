"""Functions of torch that multiply neurons by parameters."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from ngopt import build_graph
from ngopt.graph.connectivity import unconnected
from tests.automorphisms import count_automorphisms
from tests.graph_checks import check, check_symmetries
from tests.networks import FromFunction


def parts(h):
    """Neurons (rows, 8) as a batch of two parts, (2, rows, 4)."""
    return h.view(-1, 2, 4).transpose(0, 1)


def joined(y):
    """The inverse of `parts`."""
    return y.transpose(0, 1).reshape(-1, 8)


def each_row(function):
    """Applies a function of vectors to every row of neurons."""
    return lambda m, h: torch.stack([function(m, row) for row in h])


def scaled(function):
    """Multiplies neurons by a number (rows,) that is computed of them."""
    return lambda m, h: function(m, h)[:, None] * h


# a function of a module and eight neurons, (3, 8), that returns as many, and the shapes
# of its parameters
PRODUCTS = {
    "mv": (scaled(lambda m, h: torch.mv(h, m.w)), (8,)),
    "W x": (each_row(lambda m, row: m.w @ row), (8, 8)),
    "mv of a row": (each_row(lambda m, row: torch.mv(m.w, row)), (8, 8)),
    "dot": (scaled(each_row(lambda m, row: torch.dot(row, m.w))), (8,)),
    "outer": (lambda m, h: torch.outer(h.sum(1), m.w), (8,)),
    "inner": (lambda m, h: torch.inner(h, m.w), (8, 8)),
    "tensordot": (lambda m, h: torch.tensordot(h.view(-1, 2, 4), m.w, 2), (2, 4, 8)),
    "tensordot, weight first": (
        lambda m, h: torch.tensordot(m.w, h.view(-1, 2, 4), ([1, 0], [1, 2])).T,
        (4, 2, 8),
    ),
    "multi_dot": (lambda m, h: torch.linalg.multi_dot([h, m.w, m.v]), (8, 5), (5, 8)),
    "chain_matmul": (lambda m, h: torch.chain_matmul(h, m.w, m.v), (8, 5), (5, 8)),
    "addmm": (lambda m, h: torch.addmm(m.v, h, m.w), (8, 8), (8,)),
    "addmm of neurons": (lambda m, h: torch.addmm(h, h, m.w, alpha=0.5), (8, 8)),
    "addmm of constants": (
        lambda m, h: torch.addmm(torch.arange(8).double(), h, m.w), (8, 8),
    ),
    "addmv": (scaled(lambda m, h: torch.addmv(m.v, h, m.w)), (8,), (1,)),
    "addr": (lambda m, h: torch.addr(m.v, h.sum(1), m.w), (8,), (8,)),
    "baddbmm": (
        lambda m, h: joined(torch.baddbmm(m.v[:, None], parts(h), m.w)),
        (2, 4, 4), (2, 4),
    ),
    "baddbmm of neurons": (
        lambda m, h: joined(torch.baddbmm(parts(h), parts(h), m.w, beta=2)), (2, 4, 4),
    ),
    "addbmm": (lambda m, h: torch.addbmm(m.v, parts(h), m.w), (2, 4, 8), (8,)),
    "einsum of three": (
        lambda m, h: torch.einsum("ij,jk,bk->bi", m.w, m.v, h), (8, 5), (5, 8),
    ),
    "einsum with a diagonal": (
        lambda m, h: torch.einsum("bi,i,ij", h, m.w, m.v), (8,), (8, 8),
    ),
    "einsum of both sides": (
        lambda m, h: torch.einsum(
            "bij,ik,jl->bkl", h.view(-1, 2, 4), m.w, m.v
        ).flatten(1),
        (2, 2), (4, 4),
    ),
    "einsum with axes in between": (
        lambda m, h: torch.einsum("...i,ij->...j", h, m.w), (8, 8),
    ),
    "kron": (lambda m, h: h @ torch.kron(m.w, m.v), (2, 2), (4, 4)),
    "kron, transposed": (
        lambda m, h: F.linear(h, torch.kron(m.w, m.v).t()), (2, 2), (4, 4),
    ),
    "product of weights": (lambda m, h: F.linear(h, m.w @ m.v), (8, 5), (5, 8)),
    "sum of weights": (
        lambda m, h: (torch.einsum("ri,ro->io", m.w, m.v).T @ h.T).T, (5, 8), (5, 8),
    ),
}  # fmt: skip
# the neurons of the first layer, and those between two weights, where they are free
COUNTS = dict.fromkeys(
    ("multi_dot", "einsum of three", "product of weights", "sum of weights"),
    40320 * 120,
)
COUNTS["inner"] = 40320


def network(function, *shapes):
    torch.manual_seed(0)
    weights = [nn.Parameter(torch.randn(*shape)) for shape in shapes]
    model = FromFunction(
        lambda m, x: m.last(torch.tanh(function(m, torch.tanh(m.first(x))))),
        first=(3, 8),
        last=(8, 2),
        **dict(zip("wv", weights, strict=False)),
    )
    return model.double(), torch.randn(3, 3, dtype=torch.double)


@pytest.mark.parametrize("name", PRODUCTS)
def test_weights_in_products_have_a_place(name):
    function, *shapes = PRODUCTS[name]
    graph = check(network(function, *shapes))
    assert not unconnected(graph)
    assert not any(group.is_pinned for group in graph.groups)
    if name in COUNTS:
        # neurons behind the last weight are exchanged, too
        assert count_automorphisms(graph) == COUNTS[name] * 40320


def test_neurons_whose_weights_share_elements_otherwise_are_pinned():
    def by_hand(m, h):
        return h @ (m.w[:, None, :, None] * m.v[None, :, None, :]).reshape(8, 8)

    model, example = network(by_hand, (2, 2), (4, 4))
    graph = build_graph(model, example)
    pinned = [group.name for group in graph.groups if group.is_pinned]
    assert pinned == ["first", "v"]
    check_symmetries((model, example), graph)
