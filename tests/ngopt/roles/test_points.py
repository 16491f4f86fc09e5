"""Tensors of points are tables: their rows have no Kronecker factor."""

import pytest
import torch
from torch import nn

from ngopt import NGOptimizer, build_graph
from ngopt.roles.from_graph import roles_of


def roles(named: dict[str, tuple[int, ...]], have_names: bool = True) -> list[str]:
    parameters = {name: nn.Parameter(torch.ones(s)) for name, s in named.items()}
    given = parameters.items() if have_names else parameters.values()
    return [role.role for role in roles_of(build_graph(list(given)))]


SCENE = {"means": (90, 3), "quats": (90, 4), "first": (90, 1, 3), "rest": (90, 5, 3)}
FACTORS = {"rows": (50, 4), "columns": (40, 4)}


@pytest.mark.parametrize("shapes", [SCENE, FACTORS, {"points": (20, 3)}])
@pytest.mark.parametrize("have_names", [True, False])
def test_rows_of_free_tensors_are_points(shapes, have_names):
    assert set(roles(shapes, have_names)) == {"embedding"}


def test_points_beside_a_network_need_a_name():
    mlp = {"0.weight": (16, 9), "0.bias": (16,), "2.weight": (3, 16), "2.bias": (3,)}
    grid = {"grid": (500, 2)}
    assert roles({**grid, **mlp}) == ["embedding", "matrix", "bias", "output", "bias"]
    assert roles({**grid, **mlp}, have_names=False)[0] == "matrix"


@pytest.mark.parametrize(
    ("shapes", "have_names"),
    [
        ({"weight": (90, 3)}, True),
        ({"weight_ih_l0": (90, 3), "weight_hh_l0": (90, 30)}, True),
        ({"points": (90, 3), "bias": (90,)}, False),
        ({"points": (12, 3)}, True),
    ],
)
def test_weights_of_layers_and_short_tensors_are_no_points(shapes, have_names):
    assert "embedding" not in roles(shapes, have_names)


@pytest.mark.parametrize("count", [20, 100, 200])
@pytest.mark.parametrize("noise", [0.0, 1.0])
def test_few_points_reach_their_targets(count, noise):
    torch.manual_seed(count)
    target = torch.randn(count, 3)
    points = nn.Parameter(0.1 * torch.randn(count, 3))
    opt = NGOptimizer([points], total_steps=200)
    for _ in range(200):
        opt.zero_grad()
        moved = points + noise * torch.randn(count, 3)
        (moved - target).square().mean().backward()
        opt.step()
    # the best of three rates of Adam: less than 0.001, and 0.013
    assert (points - target).square().mean() < (0.0015, 0.015)[noise > 0]
