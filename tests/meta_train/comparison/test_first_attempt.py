"""Problems of LightBench, each tried once."""

import pytest
import torch
from torch import nn

from harness.files import read_json
from meta_train.comparison import first_attempt
from meta_train.comparison.first_attempt import (
    Config,
    OnCpu,
    Problem,
    attempt,
    load_problem,
    measure,
    run,
    summary,
)


class Bowl(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.param = nn.Parameter(torch.ones(4))

    def forward(self) -> torch.Tensor:
        return self.param.square().sum()


def bowl(target: float) -> Problem:
    return Problem(Bowl(), None, None, lambda model, loss: (loss <= target, {}))


def test_the_step_is_the_first_whose_loss_solves_the_problem():
    config = Config(steps=20)
    assert attempt(bowl(4.0), "adamw-default", config) == 1
    # the loss is 4 (1 - .001 k)^2 before step k + 1
    assert attempt(bowl(3.97), "adamw-default", config) == 5
    assert attempt(bowl(1.0), "adamw-default", config) is None


def test_a_loss_that_is_not_finite_ends_the_attempt():
    problem = bowl(-1.0)
    problem.model.param.data.fill_(float("inf"))
    assert attempt(problem, "adamw-default", Config(steps=10**9)) is None


def test_harder_problems_are_tried_after_easier_ones_are_solved(tmp_path, monkeypatch):
    targets = {"trivial": 4.0, "easy": 1e-9, "hard": 4.0}
    loaded = []

    def load(name: str, difficulty: str, seed: int) -> Problem | None:
        loaded.append((name, difficulty, seed))
        return bowl(targets[difficulty]) if difficulty in targets else None

    monkeypatch.setattr(first_attempt, "load_problem", load)
    monkeypatch.setattr(first_attempt, "PROBLEMS", ["bowl"])
    config = Config(
        optimizers=("adamw-default",), steps=2, seeds=1, folder=str(tmp_path)
    )
    made = measure(config)
    assert [(x.difficulty, x.solved_at) for x in made] == [
        ("trivial", 1),
        ("easy", None),
        ("hard", None),
    ]
    assert "adamw-default solves 33.3% of 3 problems" in summary(made)
    loaded.clear()
    assert measure(config) == made
    assert not loaded
    assert len(read_json(tmp_path / "first_attempt.json", "attempts")) == 3


def test_tensors_for_a_gpu_are_made_on_the_cpu():
    with OnCpu():
        assert torch.zeros(2, device="cuda").is_cpu
        assert torch.zeros(2).cuda().is_cpu
        assert next(nn.Linear(2, 2).cuda().parameters()).is_cpu


def test_a_missing_package_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr(first_attempt, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="pip install lightbench"):
        run(Config(folder=str(tmp_path)))


def test_problems_of_the_package_can_be_solved():
    pytest.importorskip("lightbench")
    with OnCpu():
        problem = load_problem("plateau_navigation", "trivial", 0)
        assert problem is not None
        assert attempt(problem, "default", Config(steps=60)) is not None
        assert load_problem("beale", "hard", 0) is None
