import json

import pytest
import torch
from torch import nn

pytest.importorskip("torchvision")

from benchmarks import step
from meta_train.problems import Metrics
from ngopt import NGOptimizer


class Line:
    """A problem with a small network and constant batches."""

    name, steps = "line", 10

    def init(self, seed):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 1))

    def batch(self, seed, step):
        return torch.full((2, 4), float(step))

    def loss(self, model, batch):
        return model(batch).square().mean()

    def evaluate(self, model, split, limit=None):
        return Metrics(0.0, None)


def line():
    return Line()


def test_whole_steps(tmp_path, capsys):
    output = tmp_path / "new" / "records.json"
    problem = "tests.benchmarks.test_step:line"
    options = f"--problems {problem} --networks --threads 1 2 --steps 5 --skip 1"
    step.main([*options.split(), "--output", str(output)])
    assert len({len(line) for line in capsys.readouterr().out.splitlines()}) == 1
    records = json.loads(output.read_text())["problems"]
    assert [record["optimizer"] for record in records] == ["adamw", "default"] * 2
    assert [record["threads"] for record in records] == [1, 1, 2, 2]
    assert [record["parameters"] for record in records] == [19] * 4
    for adamw, default in (records[:2], records[2:]):
        assert adamw["ratio"] == 1
        assert default["ratio"] == default["step_ms"] / adamw["step_ms"]
    for record in records:
        assert 0 < record["optimizer_ms"] <= record["optimizer_worst_ms"]
        assert record["optimizer_ms"] < record["step_ms"]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("weights", ["default", "ff", "ng-gnn"])
def test_networks(weights, monkeypatch):
    monkeypatch.setattr(step, "SECONDS", 0.01)
    network = nn.Sequential(nn.Linear(40, 30), nn.Linear(30, 20))
    monkeypatch.setitem(step.NETWORKS, "small", lambda: (network, torch.randn(2, 40)))
    record = step.network_steps("small", weights, torch.get_num_threads())
    assert record["parameters"] == 40 * 30 + 30 + 30 * 20 + 20
    assert record["later_ms"] > 0


def test_state_size_equals_the_elements_of_the_state():
    model = Line().init(0)
    optimizer = NGOptimizer(model.named_parameters(), total_steps=step.HORIZON)
    Line().loss(model, Line().batch(0, 1)).backward()
    optimizer.step()
    records = optimizer.state.values()
    elements = sum(x.numel() for record in records for x in record.values())
    assert step.state_size(optimizer.graph, "default") == elements / 19
