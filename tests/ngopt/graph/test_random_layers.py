import random

import numpy as np
import pytest
import torch
from torch import nn

from ngopt import NGOptimizer, build_graph
from ngopt.graph.connectivity import unconnected
from tests.networks import FromFunction


def generators():
    state = np.random.get_state()
    return (
        random.getstate(),
        (state[0], state[1].tolist(), *state[2:]),
        torch.get_rng_state().tolist(),
    )


@pytest.mark.parametrize("branches", [False, True])
def test_random_generators_are_as_before(branches):
    class Random(nn.Linear):
        def __init__(self):
            super().__init__(3, 4)
            self.own = random.Random(0)
            self.of_torch = torch.Generator().manual_seed(0)

        def forward(self, x):
            noise = random.random() + np.random.rand() + self.own.random()
            noise += torch.rand((), generator=self.of_torch)
            x = nn.functional.dropout(super().forward(x) + noise)
            return x if not branches or x.sum() < 1e9 else -x

    model = Random()
    before = generators(), model.own.getstate(), model.of_torch.get_state().tolist()
    build_graph(model, torch.randn(2, 3, generator=torch.Generator()))
    after = generators(), model.own.getstate(), model.of_torch.get_state().tolist()
    assert after == before


def test_generators_of_gpus_are_not_seeded(monkeypatch):
    calls = []
    monkeypatch.setattr(torch.cuda, "manual_seed_all", calls.append)
    build_graph(nn.Sequential(nn.Linear(8, 16), nn.ReLU()), torch.randn(2, 8))
    assert calls == []


class TestLayersSkippedAtRandom:
    class Skipping(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.ModuleList(nn.Linear(8, 8) for _ in range(6))
            self.head = nn.Linear(8, 4)

        def forward(self, x):
            for layer in self.layers:
                if not self.training or self.takes():
                    x = x + layer(x).relu()
            return self.head(x)

        def takes(self):
            return torch.rand([]) > 0.5

    def test_are_in_the_graph(self):
        for seed in range(3):
            torch.manual_seed(seed)
            model = self.Skipping()
            opt = NGOptimizer(model.parameters(), model=model)
            model(torch.randn(4, 8)).sum().backward()
            opt.step()
            assert unconnected(opt.graph) == []
            assert all(module.training for module in model.modules())

    @pytest.mark.parametrize("draw", [random.random, np.random.rand])
    def test_by_other_generators(self, draw):
        model = self.Skipping()
        model.takes = lambda: draw() > 0.7
        assert unconnected(build_graph(model, torch.randn(4, 8))) == []

    def test_heads_of_training_mode_alone_stay_in_the_graph(self):
        def forward(m, x):
            x = m.body(x).relu()
            return (m.head(x), m.auxiliary(x)) if m.training else m.head(x)

        heads = {"head": (8, 4), "auxiliary": (8, 4), "unused": (3, 2)}
        model = FromFunction(forward, body=(8, 8), **heads)
        graph = build_graph(model, torch.randn(4, 8))
        assert unconnected(graph) == ["unused.weight", "unused.bias"]
