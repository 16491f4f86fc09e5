"""Steps under `torch.compile`."""

import copy
import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch._dynamo import lookup_backend

from ngopt import NGOptimizer
from ngopt.base.measure import EARLY

WEIGHTS = ["default", "ff", "ng-gnn"]
DECIDED_ON_THE_HOST = ["default", "ng-gnn"]
HORIZON = 20
FORGETS_NOT = tuple(map(int, torch.__version__.split(".")[:2])) < (2, 15)
WHY = "torch 2.14 remembers between frames what was a constant: it compiles for every learning rate"


@pytest.fixture(autouse=True)
def _anew():
    torch.compiler.reset()


class Pair:
    """A network stepped by a compiled step, and the same one by an eager one."""

    def __init__(self, **settings):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(7, 12), nn.Tanh(), nn.Linear(12, 3))
        self.models = model, copy.deepcopy(model)
        self.compiled, self.eager = (
            NGOptimizer(m.parameters(), **settings) for m in self.models
        )
        self.graphs = []
        self._seeds = itertools.count()

    def compile(self, **options):
        def backend(module, inputs):
            self.graphs.append(module)
            return lookup_backend("aot_eager")(module, inputs)

        self.step = torch.compile(
            self.compiled.step, backend=backend, **options
        )

    def train(self, steps):
        """How many graphs there are after each step."""
        counts = []
        for _ in range(steps):
            seed = next(self._seeds)
            for model in self.models:
                model.zero_grad()
                inputs = torch.randn(
                    6, 7, generator=torch.Generator().manual_seed(seed)
                )
                F.cross_entropy(model(inputs), torch.arange(6) % 3).backward()
            self.step()
            self.eager.step()
            counts.append(len(self.graphs))
        return counts

    def check(self):
        for p, q in zip(*(m.parameters() for m in self.models), strict=True):
            torch.testing.assert_close(p, q, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("total_steps", [None, HORIZON])
@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.filterwarnings("ignore:NGOptimizer. step 21:UserWarning")
def test_a_compiled_step_is_one_graph_and_is_not_compiled_again(
    weights, total_steps
):
    pair = Pair(weights=weights, total_steps=total_steps)
    pair.compile()
    counts = pair.train(26)
    if weights == "default":
        # the host looks at the first gradients; then bases are renewed in turn
        assert counts == [0] * (EARLY + 2) + [1] * (24 - EARLY)
    else:  # the first step makes the state; every eighth looks at the neural graph
        assert counts == [1] + [2] * 25
    pair.check()


@pytest.mark.parametrize("weights", WEIGHTS)
def test_a_compiled_step_has_no_break(weights):
    pair = Pair(weights=weights, total_steps=HORIZON)
    pair.step = pair.compiled.step
    pair.train(EARLY + 2)
    pair.compile(fullgraph=True)
    pair.train(3)
    pair.check()


@pytest.mark.parametrize(
    "weights",
    [
        pytest.param(
            "default", marks=pytest.mark.xfail(FORGETS_NOT, reason=WHY)
        ),
        "ng-gnn",
    ],
)
def test_a_scheduler_is_followed(weights):
    pair = Pair(weights=weights)
    schedulers = [
        torch.optim.lr_scheduler.ExponentialLR(o, 0.8)
        for o in (pair.compiled, pair.eager)
    ]
    pair.compile()
    counts = []
    for _ in range(14):
        counts += pair.train(1)
        for scheduler in schedulers:
            scheduler.step()
    assert counts[-1] == counts[9]
    pair.check()


@pytest.mark.parametrize("weights", DECIDED_ON_THE_HOST)
def test_a_state_that_was_loaded_is_followed(weights):
    pair = Pair(weights=weights)
    pair.compile()
    pair.train(2)
    young = [copy.deepcopy(o.state_dict()) for o in (pair.compiled, pair.eager)]
    pair.train(10)
    for optimizer, state in zip(
        (pair.compiled, pair.eager), young, strict=True
    ):
        optimizer.load_state_dict(state)
    pair.train(10)
    steps = {float(state["step"]) for state in pair.compiled.state.values()}
    assert steps == {12.0}
    pair.check()


@pytest.mark.parametrize("weights", DECIDED_ON_THE_HOST)
def test_it_warns_once_past_the_horizon(weights):
    pair = Pair(weights=weights, total_steps=8)
    pair.compile()
    pair.eager.step = lambda: None
    pair.train(8)
    with pytest.warns(UserWarning, match=r"step 9 of total_steps=8"):
        pair.train(1)
    pair.train(2)


def test_a_gradient_that_is_not_finite_is_left_out():
    pair = Pair()
    pair.compile()
    pair.train(8)
    before = [p.detach().clone() for p in pair.models[0].parameters()]
    for p in pair.models[0].parameters():
        p.grad = torch.full_like(p, torch.nan)
    pair.step()
    for p, old in zip(pair.models[0].parameters(), before, strict=True):
        assert (p - old).abs().max() < 1e-4 * old.abs().max()  # weight decay
        assert pair.compiled.state[p]["skipped"] == 1
