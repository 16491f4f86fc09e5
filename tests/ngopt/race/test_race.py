import json
import math
from collections import UserDict
from typing import NamedTuple

import pytest
import torch
from torch import nn

from ngopt import cli
from ngopt.race import optimizers as race_optimizers
from ngopt.race.optimizers import CONTESTANTS, tuned
from ngopt.race.run import Result, smoothed, table
from ngopt.race.training import Problem, Run, load_problem, moved, train
from tests.ngopt.race import parabola

PROBLEM = "tests.ngopt.race.parabola"
CPU = torch.device("cpu")


def race(tmp_path, *arguments):
    folder = ["--folder", str(tmp_path / "race")]
    return cli.main(["race", PROBLEM, *folder, "--steps", "12", *arguments])


def test_a_race_prints_a_table_and_writes_a_report(tmp_path, capsys):
    assert race(tmp_path, "--optimizers", "adamw", "ngopt", "--seeds", "2") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("parabola, 12 steps, 2 seed(s)")
    assert {line.split()[0] for line in lines[3:5]} == {"adamw", "ngopt"}
    files = {path.name for path in (tmp_path / "race").iterdir()}
    assert files == {"race.json", "race.png", "race.html"}
    found = json.loads((tmp_path / "race" / "race.json").read_text())["results"]
    assert [len(one["runs"]) for one in found] == [2, 2]
    assert found[0]["lr"] in found[0]["tried"]
    assert {*CONTESTANTS["adamw"].rates} <= {*found[0]["tried"]}
    assert found[1]["lr"] is None


def test_json_is_one_line_of_losses(tmp_path, capsys):
    assert race(tmp_path, "--optimizers", "sgd", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert 0 < found["sgd"] < 2


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--optimizers", "adam"], "expected optimizers of ngopt, adamw"),
        (["--seeds", "0"], "expected seeds of 1 or more; got 0"),
        (["--device", "abacus"], "expected a device that torch can use; got 'abacus'"),
    ],
)
def test_mistakes_are_one_line(tmp_path, capsys, arguments, message):
    assert race(tmp_path, *arguments) == cli.FAILED
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and message in lines[0]


def test_problems_that_lack_something():
    with pytest.raises(ValueError, match="cannot import 'nowhere'"):
        load_problem("nowhere")
    with pytest.raises(ValueError, match="got no model, batches, loss"):
        load_problem("math")
    empty = Problem("empty", parabola.model, lambda: [], parabola.loss)
    with pytest.raises(ValueError, match="expected batches in 'empty'; got none"):
        train(empty, CONTESTANTS["ngopt"], None, 0, 1, CPU, print)


def test_validation_batches_that_are_empty():
    functions = parabola.model, parabola.batches, parabola.loss
    with pytest.raises(ValueError, match="expected validation_batches in 'empty'"):
        train(
            Problem("empty", *functions, lambda: []),
            CONTESTANTS["ngopt"],
            None,
            0,
            1,
            CPU,
            print,
        )


class Pair(NamedTuple):
    rows: torch.Tensor
    name: str


class Encoding(UserDict):
    """As transformers' `BatchEncoding`: no dictionary, but with a method `to`."""

    def to(self, device):
        return Encoding({key: value.to(device) for key, value in self.items()})


def test_batches_of_any_kind_are_moved():
    rows = torch.zeros(2)
    batch = [Pair(rows, "a"), {"x": (rows, 1)}, Encoding(x=rows)]
    pair, mapping, encoding = moved(batch, torch.device("meta"))
    assert pair.rows.is_meta and pair.name == "a"
    assert mapping["x"][0].is_meta and mapping["x"][1] == 1
    assert isinstance(encoding, Encoding) and encoding["x"].is_meta


def test_all_start_from_the_same_weights_and_batches():
    problem = load_problem(PROBLEM)
    firsts = set()
    for name in ("adamw", "muon", "ngopt", "sgd"):
        contestant = CONTESTANTS[name]
        lr = contestant.rates[0] if contestant.rates else None
        run = train(problem, contestant, lr, 3, 2, CPU, lambda loss: None)
        firsts.add(run.losses[0])
    assert len(firsts) == 1


def test_muon_moves_kernels_and_vectors():
    model = nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.Conv2d(4, 4, 3), nn.Flatten(), nn.Linear(4, 2)
    )
    before = [p.detach().clone() for p in model.parameters()]
    optimizer = CONTESTANTS["muon"].make(model, 0.1)
    model(torch.randn(3, 2, 5, 5)).square().sum().backward()
    optimizer.step()
    for p, old in zip(model.parameters(), before, strict=True):
        assert not torch.equal(p, old)


def test_a_run_that_diverges_is_the_worst():
    good = Run("good", 0.1, 0, [1.0, 0.5], [1.0, 2.0])
    bad = Run("bad", 10.0, 0, [1.0, float("nan")], [1.0, 2.0])
    assert min([bad, good], key=lambda run: run.score) is good
    text = table([Result("bad", 10.0, [10.0], [bad]), Result("good", 0.1, [], [good])])
    assert text.splitlines()[1].startswith("good")


@pytest.mark.parametrize(
    "best, tried, at_edge",
    [
        (0.01, [0.003, 0.01, 0.03], False),
        (0.1, [0.003, 0.01, 0.03, 0.1, 0.3], False),
        (0.001, [0.0003, 0.001, 0.003, 0.01, 0.03], False),
        (100.0, [0.003, 0.01, 0.03, 0.1, 0.3, 1.0], True),
    ],
)
def test_grids_grow_until_the_best_rate_is_inside(best, tried, at_edge):
    found = tuned([0.003, 0.01, 0.03], lambda rate: abs(math.log(rate / best)))
    assert found[0] == tried and found[2] == at_edge
    assert found[1] == min(best, tried[-1])


def test_a_grid_on_which_all_runs_diverge_grows_downwards():
    tried, best, at_edge = tuned([0.01, 0.03], lambda rate: math.inf)
    assert tried == [0.0003, 0.001, 0.003, 0.01, 0.03]
    assert best == 0.0003 and at_edge


def test_a_best_rate_at_the_edge_is_marked():
    run = Run("adamw", 0.1, 0, [1.0], [1.0])
    text = table([Result("adamw", 0.1, [0.03, 0.1], [run], at_edge=True)])
    assert "0.1*" in text and "largest or smallest rate tried" in text


def test_a_missing_module_is_found_before_training(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(race_optimizers, "find_spec", lambda name: None)
    monkeypatch.setattr(parabola, "loss", None)  # nothing is trained
    assert race(tmp_path, "--optimizers", "adamw", "soap") == cli.FAILED
    assert "soap needs heavyball" in capsys.readouterr().err


def test_progress_does_not_flood_a_log(tmp_path, capsys):
    assert race(tmp_path, "--optimizers", "adamw", "ngopt") == 0
    assert len(capsys.readouterr().err.split("\r")) < 5


def test_help_lists_optimizers_and_defaults(capsys):
    with pytest.raises(SystemExit):
        cli.main(["race", "--help"])
    text = capsys.readouterr().out
    assert all(name in text for name in CONTESTANTS) and "default: 300" in text


def test_smoothing_of_a_constant_is_the_constant():
    assert smoothed([2.0] * 5) == pytest.approx([2.0] * 5)
