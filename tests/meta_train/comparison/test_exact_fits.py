import json
from dataclasses import replace
from math import exp, inf, nan
from pathlib import Path

import pytest

from meta_train.comparison import exact_fits
from meta_train.comparison.exact_fits import Config, lbfgs, log_loss, run, train_all
from meta_train.comparison.stacked_adam import train_copies
from meta_train.problems import load_problem

NAME = "gelu-sines"
LOSSES = {"adam": -4.0, "l-bfgs": -9.0, "total_steps": -3.5, "plain": -3.0}


@pytest.fixture
def config(tmp_path):
    return Config((NAME,), (4,), seeds=2, folder=str(tmp_path))


def results(config):
    return json.loads(Path(config.folder, "exact_fits.json").read_text())


@pytest.fixture
def trained(config, monkeypatch):
    """What is trained from now on, in place of which losses are invented."""
    trained = []

    def instead(name):
        def train(problem, steps, seeds):
            trained.append(name)
            losses = [LOSSES[name] + seed for seed in range(seeds)]
            result = {"log_losses": losses, "lr": 0.1, "beta1": 0.9}
            return {**result, "averaged": losses}

        return train

    for group in (exact_fits.BASELINES, exact_fits.OURS):
        for name in group:
            monkeypatch.setitem(group, name, instead(name))
    return trained


def test_losses_are_bounded():
    assert log_loss(exp(2)) == 2
    assert log_loss(0.0) == log_loss(1e-30) == -20
    assert log_loss(inf) == log_loss(nan) == 20


def test_adam_has_its_best_settings(config):
    (row,) = train_all(config)
    result = results(config)["baselines"][f"{NAME} 4 adam"]
    assert row["adam"] == pytest.approx(min(result["grid"]), abs=0.006)
    assert len(result["grid"]) == 22
    for seed in range(2):
        chosen = [(result["lr"], result["beta1"])]
        (loss,) = train_copies(load_problem(NAME), seed, chosen, 4)[-1]
        assert result["log_losses"][seed] == log_loss(loss.item())


def test_lbfgs_minimizes():
    problem = load_problem(NAME)
    (few,), (many,) = (lbfgs(problem, steps, 1)["log_losses"] for steps in (1, 30))
    first = problem.loss(problem.init(0), problem.batch(0, 0)).item()
    assert many < few - 1 < log_loss(first)


def test_schedule_and_average_differ_from_raw_weights(config):
    train_all(replace(config, horizons=(30,)))
    ours = results(config)["ours"]
    plain, scheduled = ours[f"{NAME} 30 plain"], ours[f"{NAME} 30 total_steps"]
    assert scheduled["averaged"] == scheduled["log_losses"]
    assert plain["averaged"] != plain["log_losses"] != scheduled["log_losses"]


def test_finished_cells_are_read(config, trained):
    names = ["adam", "l-bfgs", "total_steps", "plain"]
    rows = train_all(config)
    assert trained == names
    assert rows == train_all(config)
    train_all(replace(config, horizons=(4, 5)))
    assert trained == 2 * names
    train_all(replace(config, seeds=1))
    assert trained == 3 * names


def test_another_rule_trains_the_default_alone(config, trained, monkeypatch):
    train_all(config)
    del trained[:]
    train_all(replace(config, renew=True))
    assert trained == ["total_steps", "plain"]
    monkeypatch.setattr(exact_fits, "weights_hash", lambda rule: "other")
    train_all(config)
    assert trained == 2 * ["total_steps", "plain"]
    assert results(config)["weights"] == "other"


def test_table_and_summary(config, trained, capsys):
    (row,) = train_all(config)
    assert row["adam"] == LOSSES["adam"] + 0.5  # the mean over two seeds
    assert row["excess"] == 0.5
    run(config)
    page = Path(config.folder, "exact_fits.md").read_text()
    for text in (capsys.readouterr().out, page):
        assert "1 cells: with total_steps 0% at or below" in text
        assert "largest excess 0.50 (gelu-sines, 4 steps)" in text
        assert "plain 100% at most 1 above" in text
    assert "| gelu-sines | 4 " in page
