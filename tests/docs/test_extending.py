"""The problem and the metanet of docs/extending.md are meta-trained."""

import re
from pathlib import Path

import pytest
import torch

from meta_train.selection import sweep
from meta_train.training.train import Config, MetaTrainer
from ngopt import NGOptimizer

PAGE = Path(__file__).parents[2] / "docs" / "extending.md"


@pytest.fixture
def example(tmp_path, monkeypatch):
    """Writes the block with a class to a file, and returns "module:Class"."""
    monkeypatch.syspath_prepend(tmp_path)
    # new processes of other tests would import them, too
    monkeypatch.setattr("ngopt.metanets.imported._imported", [])

    def write(module, name):
        blocks = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.M | re.S)
        (code,) = (block for block in blocks if f"class {name}" in block)
        assert len(code.splitlines()) <= 30
        (tmp_path / f"{module}.py").write_text(code)
        return f"{module}:{name}"

    return write


def test_problem_and_metanet_are_meta_trained(tmp_path, example):
    problem = example("extending_task", "Toy")
    metanet = example("extending_metanet", "Small")
    folder = tmp_path / "run"
    sizes = {"outer_steps": 3, "horizon": 20, "truncation": 10, "validate_every": 3}
    names = {"metanet": metanet, "problems": (problem,)}
    trainer = MetaTrainer(Config(str(folder), warmup=1, **names, **sizes))
    before = [p.detach().clone() for p in trainer.metanet.parameters()]
    trainer.run()
    after = trainer.metanet.parameters()
    assert not any(map(torch.equal, before, after))
    weights = str(folder / "best.safetensors")
    swept = str(folder / "swept.safetensors")
    sizes = {"gains": (1, 2), "seeds": 1, "steps": 5}
    sweep.search(sweep.Config(weights, swept, problems=(problem,), **sizes))
    p = torch.nn.Parameter(torch.ones(3))
    p.grad = torch.ones(3)
    NGOptimizer([p], rule=swept).step()
    assert (p != 1).all()
