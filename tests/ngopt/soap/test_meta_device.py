"""Steps of metanets on torch's meta device, which counts as an accelerator: nothing is
computed there, a value that the host reads raises an error, and what is dispatched is
what a GPU gets."""

from functools import partial
from itertools import product

import pytest
import torch
from torch import nn

from benchmarks.launches import MIB, Counts, quiet
from benchmarks.shapes import NETWORKS, Gpt
from ngopt import NGOptimizer, list_pretrained, load_pretrained
from ngopt.metanets.feedforward import FeedForward, FeedForwardConfig
from ngopt.metanets.update_mlp import Predictor
from ngopt.pretrained import LearnedOptimizer
from tests.selection import quick_first

RULES = {name: load_pretrained(name) for name in list_pretrained()}
NAMES = [k for k, rule in RULES.items() if isinstance(rule, LearnedOptimizer)]


def chain():
    """Which all metanets read; its layers are those of the bundled "nfn"."""
    convolutions = [nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU()]
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10)]
    return nn.Sequential(*convolutions, nn.Conv2d(8, 8, 3), nn.ReLU(), *head)


def large_kernels():
    """Kernels that metanets read in tiles, of several groups, and a small one."""
    layers = [nn.Conv2d(3, 12, 7), nn.BatchNorm2d(12), nn.Conv2d(12, 12, 5, groups=3)]
    return nn.Sequential(*layers, nn.Conv2d(12, 8, 2), nn.Flatten(), nn.Linear(8, 4))


TRANSFORMER = partial(Gpt, 50, 12, 16, 2, 2)
MODELS = {
    "chain": chain,
    "large kernels": large_kernels,
    "transformer": partial(Gpt, 50, 12, 16, 2, 1),
}
# with a kernel of the update MLP and, where one network is enough, without
CASES = [*((model, torch.bfloat16) for model in MODELS), ("chain", torch.float64)]
ALL = [(name, *case) for name, case in product(NAMES, CASES)]
SLOW = [("ng-t", "chain", torch.bfloat16), ("ng-t", "large kernels", torch.bfloat16)]


def optimizer(make, weights, **settings):
    with torch.device("meta"):
        params = list(make().parameters())
    for p in params:
        p.grad = torch.empty_like(p)
    return params, NGOptimizer(params, rule=weights, total_steps=100, **settings)


def counted(opt):
    with Counts() as counts, quiet():
        opt.step()
    return counts


@pytest.mark.parametrize(
    ("weights", "model", "dtype"), quick_first(ALL, [x for x in ALL if x not in SLOW])
)
def test_nothing_is_read(weights, model, dtype):
    """With a parameter that is absent now and then, whose own steps are fewer."""
    if weights == "nfn" and model != "chain":
        pytest.skip("nfn reads chains of its own layers")
    params, opt = optimizer(MODELS[model], weights, compute_dtype=dtype)
    copies, steps = [], 9 if weights == "ng-gnn" else 3
    for step in range(steps):
        grad = params[1].grad
        if step == 1:
            params[1].grad = None
        copies.append(counted(opt).copies)
        params[1].grad = grad
    assert not any(copies[1:])
    assert opt.state[params[0]]["step"] == steps
    assert opt.state[params[1]]["step"] == steps - 1
    assert opt.state[params[0]]["exp_avg_0"].is_meta


def tied():
    """A table that is its own output layer: each of its elements has two places."""
    model = TRANSFORMER()
    model.lm_head.weight = model.wte.weight
    return model


@pytest.mark.parametrize("weights", ["ff", "ng-gnn"])
def test_nothing_is_read_of_a_traced_network(weights):
    with torch.device("meta"):
        model = tied()
    opt = NGOptimizer(
        model.parameters(), model=model, rule=weights, compute_dtype=torch.bfloat16
    )
    model(torch.zeros(2, 8, dtype=torch.long, device="meta")).sum().backward()
    assert counted(opt).ops
    assert not counted(opt).copies


class TestCounts:
    """Of steps; those of a network of the same depth and any width are the same."""

    def ops(self, weights, steps=10):
        _, opt = optimizer(TRANSFORMER, weights, compute_dtype=torch.bfloat16)
        return [counted(opt).ops for _ in range(steps)]

    def test_ff(self):
        for ops in self.ops("ff", 3)[1:]:
            # seven columns of all parameters, which are small, side by side
            assert ops == {
                "_foreach_clamp_min": 1,
                "_foreach_clamp_max_": 1,
                "_foreach_lerp_": 1,
                "cat": 7,
                "mlp_updates": 1,
                "_foreach_add_": 1,
            }

    def test_ng_gnn(self):
        every = self.ops("ng-gnn")
        between = every[1:8]
        assert {ops.total() for ops in between} == {13}
        assert all(ops["mlp_updates"] == 1 for ops in between)
        look = every[8]
        # of 16 weights, in two layers, both ways
        assert look["var_mean"] == look["aminmax"] == 64
        assert look.total() <= 1850


@pytest.mark.parametrize("weights", quick_first(["ff", "ng-gnn"], ["ff"]))
def test_gpt2(weights):
    """The counts behind the figures of shared/reference/gpu.md."""
    most = {"ff": (120, 300), "ng-gnn": (13_500, 1_800)}
    params, opt = optimizer(
        NETWORKS["GPT-2 124M"], weights, compute_dtype=torch.bfloat16
    )
    assert sum(p.numel() for p in params) > 160e6
    counted(opt)
    between = counted(opt)
    assert between.ops.total() <= 120
    assert between.memory.peak <= 300 * MIB
    assert between.ops["mlp_updates"] <= 52
    for p in params:
        opt.state[p]["step"].fill_(16)
    look = counted(opt)
    assert look.ops.total() <= most[weights][0]
    assert look.memory.peak <= most[weights][1] * MIB
    assert not look.copies


def test_an_mlp_without_a_kernel():
    """Of other layers than two of 16, 32 or 64."""
    for hidden, has_kernel in (((32, 32), True), ((32,), False), ((20, 20), False)):
        metanet = FeedForward(FeedForwardConfig(hidden=hidden))
        _, opt = optimizer(TRANSFORMER, metanet)
        for _ in range(2):
            ops = counted(opt).ops
        assert (ops["mlp_updates"] > 0) == has_kernel
        assert (ops["mm"] > 0) != has_kernel
        assert Predictor(metanet.to("meta").head, 7).has_kernel == has_kernel
