"""Steps under `torch.compile`."""

import copy
import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch._dynamo import lookup_backend

from ngopt import NGOptimizer
from ngopt.soap import elementwise
from ngopt.soap.config import SoapConfig

HORIZON = 20
LIMIT = 3  # of compiling a step again; torch has 8


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
        self.step, self.graphs = self.compiled.step, []
        self._seeds = itertools.count()

    def compile(self, **options):
        """Steps are compiled from now on; the first one, which makes the state, need
        not be."""

        def backend(module, inputs):
            self.graphs.append(module)
            return lookup_backend("aot_eager")(module, inputs)

        self.step = torch.compile(self.compiled.step, backend=backend, **options)

    def train(self, steps):
        """How many graphs there are after each step."""
        counts = []
        for _ in range(steps):
            seed = next(self._seeds)
            for model in self.models:
                generator = torch.Generator().manual_seed(seed)
                inputs = torch.randn(6, 7, generator=generator)
                F.cross_entropy(model(inputs), torch.arange(6) % 3).backward()
            self.step()
            self.eager.step()
            counts.append(len(self.graphs))
        return counts

    def check(self):
        for p, q in zip(*(m.parameters() for m in self.models), strict=True):
            torch.testing.assert_close(p, q, rtol=1e-3, atol=1e-5)


def test_a_compiled_step_is_one_graph_and_is_not_compiled_again():
    pair = Pair(rule="ff")
    pair.train(1)
    pair.compile(fullgraph=True)
    assert pair.train(26) == [1] * 26
    pair.check()


@pytest.mark.filterwarnings("ignore:NGOptimizer. step 22:UserWarning")
def test_steps_between_those_that_read_the_neural_graph_are_one_graph():
    """Every eighth step reads it, and runs as it is."""
    pair = Pair(rule="ng-gnn", total_steps=HORIZON)
    pair.train(1)
    pair.compile()
    assert pair.train(26) == [1] * 26
    pair.check()


@pytest.mark.thorough
@torch._dynamo.config.patch(recompile_limit=LIMIT)
def test_compiled_steps_follow_a_scheduler():
    """Whether or not steps of other learning rates are compiled again."""
    pair = Pair(rule="ng-gnn")
    optimizers = pair.compiled, pair.eager
    schedulers = [torch.optim.lr_scheduler.ExponentialLR(o, 0.8) for o in optimizers]
    pair.train(1)
    pair.compile()
    counts = []
    for _ in range(LIMIT + 6):
        counts += pair.train(1)
        for scheduler in schedulers:
            scheduler.step()
    assert 0 < counts[-1] == counts[LIMIT + 1]
    pair.check()


def test_compiled_steps_follow_loaded_state():
    """With the first step compiled, too."""
    pair = Pair(rule="ng-gnn")
    pair.compile()
    assert pair.train(2) == [0, 1]
    young = [copy.deepcopy(o.state_dict()) for o in (pair.compiled, pair.eager)]
    assert pair.train(10) == [1] * 10
    for optimizer, state in zip((pair.compiled, pair.eager), young, strict=True):
        optimizer.load_state_dict(state)
    pair.train(10)
    steps = {float(state["step"]) for state in pair.compiled.state.values()}
    assert steps == {12.0}
    pair.check()


def test_a_compiled_step_warns_once_beyond_the_horizon():
    pair = Pair(rule="ff", total_steps=2)
    pair.eager.step = lambda: None
    pair.train(1)
    pair.compile()
    pair.train(2)
    with pytest.warns(UserWarning, match=r"step 4 exceeds total_steps=2"):
        pair.train(1)
    pair.train(2)


class TestDefault:
    """Its step is not compiled within a compiled one; its elementwise functions are."""

    def test_a_compiled_step_is_the_eager_one(self):
        pair = Pair(rule="default", total_steps=HORIZON)
        pair.compile()
        pair.train(12)
        assert not pair.graphs
        for p, q in zip(*(m.parameters() for m in pair.models), strict=True):
            assert torch.equal(p, q)

    @torch.no_grad()
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_compiled_functions_are_the_eager_ones(self, dtype):
        """They are not compiled again for buckets of other sizes."""
        config, graphs = SoapConfig(), []

        def backend(module, inputs):
            graphs.append(module)
            return lookup_backend("aot_eager")(module, inputs)

        functions = elementwise.accumulate, elementwise.precondition, elementwise.change
        compiled = {
            function: torch.compile(function, dynamic=True, backend=backend)
            for function in functions
        }

        def all_three(fuse, rows, lanes):
            torch.manual_seed(0)
            numbers = elementwise.StepScalars(*torch.rand(7, rows, 1).add(0.1))
            grad, momentum, second, weights = torch.randn(4, rows, lanes)
            second.square_()
            given = grad, momentum, numbers, config, dtype
            grad, ahead = fuse(elementwise.accumulate)(*given)
            given = grad, ahead, second, numbers, 9
            u, inverse_roots = fuse(elementwise.precondition)(*given)
            delta = fuse(elementwise.change)(u, momentum, weights, numbers)
            return grad, momentum, second, u, inverse_roots, delta

        counts = []
        for shape in ((40, 16), (33, 128), (70, 16), (90, 128), (50, 16)):
            expected = all_three(lambda function: function, *shape)
            torch.testing.assert_close(all_three(compiled.get, *shape), expected)
            counts.append(len(graphs))
        assert counts[1:] == [counts[1]] * 4
