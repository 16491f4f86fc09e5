import json
import math
from collections import UserDict
from dataclasses import replace
from typing import NamedTuple

import pytest
import torch
from torch import nn

from ngopt import cli
from ngopt.race import optimizers as race_optimizers
from ngopt.race import run as race_run
from ngopt.race.optimizers import OPTIMIZERS
from ngopt.race.run import Result, smoothed, table
from ngopt.race.training import Run, load_problem, moved, train
from ngopt.race.tuning import best_lr, is_at_edge, tune
from tests.ngopt.race import parabola
from tests.ngopt.training import snapshot

PROBLEM = "tests.ngopt.race.parabola"
CPU = torch.device("cpu")


def race(tmp_path, *arguments):
    folder = ["--folder", str(tmp_path / "race")]
    return cli.main(["race", PROBLEM, *folder, "--steps", "12", *arguments])


def test_race_prints_table_and_writes_report(tmp_path, capsys):
    assert race(tmp_path, "--optimizers", "adamw", "ngopt", "--seeds", "2") == 0
    printed = capsys.readouterr()
    assert len(printed.err.split("\r")) < 5  # progress, in a log
    lines = printed.out.splitlines()
    assert lines[0].startswith("parabola, 12 steps, 2 seed(s)")
    names = {line.split()[0].strip(",") for line in lines[3:6] if line}
    assert {"adamw", "ngopt"} <= names
    assert lines[-1] == f"Report: {tmp_path / 'race' / 'race.html'}"
    files = {path.name for path in (tmp_path / "race").iterdir()}
    assert files == {"race.json", "race.png", "race.html"}
    report = json.loads((tmp_path / "race" / "race.json").read_text())
    adamw, ours = report["results"]
    assert ours["in_same_seconds"]["runs"] == ours["runs"]
    assert len(adamw["runs"]) == len(ours["runs"]) == 2
    assert adamw["lr"] in adamw["tried"]
    assert {*OPTIMIZERS["adamw"].lrs} <= {*adamw["tried"]}
    assert ours["lr"] is None


@pytest.mark.parametrize("ratio, steps", [(3.0, 36), (0.5, 6), (1.04, 12)])
def test_baseline_in_the_seconds_of_ngopt(tmp_path, monkeypatch, capsys, ratio, steps):
    """Three times faster, it makes three times as many steps in a tuned schedule."""
    trained = []

    def recorded(problem, spec, lr, seed, steps, *arguments):
        trained.append((spec.name, lr, seed, steps))
        return train(problem, spec, lr, seed, steps, *arguments)

    def set_times(loops, turns):
        steps = sum(turns)
        assert steps == 12
        for loop, ms in zip(loops, (1.0, ratio), strict=True):
            loop.ms = [ms] * steps

    monkeypatch.setattr(race_run, "train", recorded)
    monkeypatch.setattr(race_run, "step_in_turns", set_times)
    assert race(tmp_path, "--optimizers", "adamw", "ngopt") == 0
    if steps != 12:
        rates = {lr for name, lr, _, made in trained if made == steps}
        assert {*OPTIMIZERS["adamw"].lrs} <= rates
    assert {made for name, _, _, made in trained} == {12, steps}
    lines = capsys.readouterr().out.splitlines()
    (adamw,) = (line.split() for line in lines if line.startswith("adamw"))
    assert adamw[-1] == str(steps)
    (ours,) = (line.split() for line in lines if line.startswith("ngopt"))
    assert ours[-2:] == [ours[3], "12"]
    report = json.loads((tmp_path / "race" / "race.json").read_text())
    same = report["results"][0]["in_same_seconds"]
    assert adamw[-2].strip("*") == f"{same['runs'][0]['validation']:.4g}"
    assert len(same["runs"][0]["losses"]) == steps


def test_without_ngopt_there_is_no_loss_in_its_seconds(tmp_path, capsys):
    assert race(tmp_path, "--optimizers", "sgd") == 0
    (sgd,) = (x for x in capsys.readouterr().out.splitlines() if x.startswith("sgd"))
    assert sgd.split()[-2:] == ["-", "-"]


def test_json_is_one_line_of_losses(tmp_path, capsys):
    assert race(tmp_path, "--optimizers", "sgd", "ngopt", "--json") == 0
    losses = json.loads(capsys.readouterr().out)
    assert 0 < losses["sgd"]["loss"] < 2
    assert losses["ngopt"]["loss"] == losses["ngopt"]["in the same seconds"]


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--optimizers", "adam"], "expected optimizers of ngopt, adamw"),
        (["--seeds", "0"], "expected seeds of 1 or more; got 0"),
        (["--device", "abacus"], "expected a device that torch can use; got 'abacus'"),
    ],
)
def test_invalid_arguments_are_errors_of_one_line(tmp_path, capsys, arguments, message):
    assert race(tmp_path, *arguments) == cli.FAILED
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and message in lines[0]


def test_incomplete_problems():
    with pytest.raises(ValueError, match="cannot import 'nowhere'"):
        load_problem("nowhere")
    with pytest.raises(ValueError, match="got no model, batches, loss"):
        load_problem("math")


@pytest.mark.parametrize("name", ["batches", "validation_batches"])
def test_empty_batches(name):
    problem = replace(load_problem(PROBLEM), name="empty", **{name: list})
    with pytest.raises(ValueError, match=f"expected {name} in 'empty'; got none"):
        train(problem, OPTIMIZERS["ngopt"], None, 0, 1, CPU, print)


class Pair(NamedTuple):
    rows: torch.Tensor
    name: str


class Encoding(UserDict):
    """As transformers' `BatchEncoding`: not a dict, but with a method `to`."""

    def to(self, device):
        return Encoding({key: value.to(device) for key, value in self.items()})


def test_batches_of_any_kind_are_moved():
    rows = torch.zeros(2)
    batch = [Pair(rows, "a"), {"x": (rows, 1)}, Encoding(x=rows)]
    pair, mapping, encoding = moved(batch, torch.device("meta"))
    assert pair.rows.is_meta and pair.name == "a"
    assert mapping["x"][0].is_meta and mapping["x"][1] == 1
    assert isinstance(encoding, Encoding) and encoding["x"].is_meta


def test_first_loss_is_the_same_for_all_optimizers():
    problem = load_problem(PROBLEM)
    first_losses = set()
    for spec in OPTIMIZERS.values():
        lr = spec.lrs[0] if spec.lrs else None
        run = train(problem, spec, lr, 3, 2, CPU, lambda loss: None)
        first_losses.add(run.losses[0])
    assert len(first_losses) == 1


def test_muon_updates_kernels_and_vectors():
    model = nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.Conv2d(4, 4, 3), nn.Flatten(), nn.Linear(4, 2)
    )
    before = snapshot(model)
    optimizer, _ = OPTIMIZERS["muon"].build(model, 0.1, 10)
    model(torch.randn(3, 2, 5, 5)).square().sum().backward()
    optimizer.step()
    assert not any(map(torch.equal, model.parameters(), before))


def test_diverged_run_is_last():
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
    losses = tune([0.003, 0.01, 0.03], lambda lr: abs(math.log(lr / best)))
    assert list(losses) == tried
    assert best_lr(losses) == min(best, tried[-1])
    assert is_at_edge(best_lr(losses), losses) == at_edge


def test_grid_of_diverged_runs_grows_downwards():
    losses = tune([0.01, 0.03], lambda lr: math.inf)
    assert list(losses) == [0.0003, 0.001, 0.003, 0.01, 0.03]
    assert best_lr(losses) == 0.0003 and is_at_edge(0.0003, losses)


def test_best_rate_at_the_edge_is_marked():
    run = Run("adamw", 0.1, 0, [1.0], [1.0])
    text = table([Result("adamw", 0.1, [0.03, 0.1], [run], at_edge=True)])
    assert "0.1*" in text and "largest or smallest rate tried" in text


def test_missing_module_is_an_error_before_training(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(race_optimizers, "find_spec", lambda name: None)
    monkeypatch.setattr(parabola, "loss", None)  # nothing is trained
    assert race(tmp_path, "--optimizers", "adamw", "soap") == cli.FAILED
    assert "'soap' needs heavyball" in capsys.readouterr().err


def test_help_lists_optimizers_and_defaults(capsys):
    with pytest.raises(SystemExit):
        cli.main(["race", "--help"])
    text = capsys.readouterr().out
    assert all(name in text for name in OPTIMIZERS) and "default: 300" in text


def test_smoothing_of_a_constant_is_the_constant():
    assert smoothed([2.0] * 5) == pytest.approx([2.0] * 5)
