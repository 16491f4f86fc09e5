"""The learned factor of the step size in several processes, against one (gloo, CPU)."""

import pytest
import torch
from torch import distributed

from ngopt import NGOptimizer
from tests.divided_networks import LENGTH, divided, network
from tests.networks import mlp
from tests.predictors import learned, random_predictor
from tests.processes import run, train

KINDS = "ddp", "fsdp"
NETWORKS = "relu", "words"  # "words": a table with rows on all ranks


def made(name):
    """In "relu", half of the hidden neurons are dead: gradients have zeros."""
    if name != "relu":
        return network(name)
    torch.manual_seed(0)
    model = mlp(LENGTH, 12, 12, 3).double()
    with torch.no_grad():
        model.get_parameter("0.bias")[::2] = -100
    return model


def factors(model, settings=None, part=()):
    """Of all parameters after the first step."""
    weights = learned(random_predictor())
    params = list(model.parameters())
    opt = NGOptimizer(params, rule=weights, total_steps=60, **(settings or {}))
    train(model, opt, range(1), *part)
    assert any((p.grad == 0).any() for p in params)
    return [opt.state[p]["predicted"].item() for p in params]


def equal_one_process(rank, size, expected):
    for kind in KINDS:
        for name in NETWORKS:
            found = factors(*divided(made(name), kind, size))
            assert found == pytest.approx(expected[name], rel=1e-10), (kind, name)
            every = [None] * size
            distributed.all_gather_object(every, found)
            assert every == [found] * size


def test_all_ranks_have_the_factor_of_one_process():
    expected = {}
    for name in NETWORKS:
        expected[name] = factors(made(name))
        assert abs(expected[name][0] - 1) > 0.02
    run(equal_one_process, 2, expected)
