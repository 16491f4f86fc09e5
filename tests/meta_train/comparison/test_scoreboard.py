"""The scoreboard of VeLO's tasks."""

import json
from dataclasses import replace

import pytest

from meta_train.comparison import scoreboard
from meta_train.comparison.inner_training import Run
from meta_train.comparison.optimizers import CELO2_LRS
from meta_train.comparison.scoreboard import (
    Config,
    Score,
    full_rows,
    short_rows,
    summary,
    summary_rows,
)
from tests.meta_train.small import available

TASK = "ImageMLP_FashionMnist8_Relu32"


def run_of(optimizer: str, lr: float | None = None) -> Run:
    return Run("task", optimizer, lr, None, 0, 40, "tuning")


def score(optimizer: str, losses: list[float], every: int = 10) -> Score:
    record = {"losses": losses, "losses_every": every, "train_loss": 2 * losses[-1]}
    return scoreboard.score_of(run_of(optimizer), [record], [record], 1.0, 0.5)


def test_rows_of_losses_and_ranks():
    better = score("better", [1.0, 0.6, 0.4, 0.2])
    worse = score("worse", [1.0, 0.9, 0.8, 0.7])
    assert better.steps == [10, 20, 30, 40]
    (row,) = short_rows([better, worse], lambda score: score.final)
    assert row == {"task": "task", "better": "0.2", "worse": "0.7"}
    (row,) = short_rows([better, worse], lambda score: score.same_seconds)
    assert row == {"task": "task", "better": "0.4", "worse": "1.4"}
    first, second = summary_rows([worse, better])
    assert first["optimizer"] == "better" and first["mean rank"] == "1.0"
    assert second["lowest loss"] == "0 of 1" and second["mean rank"] == "2.0"


def test_graphs_of_metanets_are_traced(monkeypatch):
    def losses(runs: list[Run], config: Config) -> dict:
        return {run: {"losses": [1.0]} for run in runs}

    monkeypatch.setattr(scoreboard, "execute_all", losses)
    config = Config(problems=(TASK,))
    first, second = scoreboard.best_rates(config, ["default", "ng-gnn"], steps=10)
    assert not first.traced and second.traced


def test_runs_as_long_as_the_fastest():
    slow, fast = run_of("slow", 0.1), run_of("fast")
    other = replace(slow, problem="other")
    runs = scoreboard.equally_long({slow: 2.0, fast: 0.5, other: 1.5})
    assert runs == {slow: replace(slow, steps=10), fast: fast, other: other}


def test_steps_to_the_envelope_of_full_runs():
    reaching = score("default", [1.0, 0.6, 0.5, 0.2], every=2500)
    missing = score("default", [1.0, 0.9, 0.8, 0.7], every=2500)
    short = score("default", [0.4], every=2000)
    rows = full_rows([reaching, missing])
    assert [row["reached at"] for row in rows] == ["7,500", "not"]
    text = summary([reaching, missing, short])
    assert "is reached on 1 of 2 tasks with 10,000 steps" in text
    text = summary([reaching, reaching, missing])
    assert text.endswith("on the median task after 75 % of the steps.")


def test_seeds_are_averaged_and_a_diverged_one_counts():
    records = [
        {"losses": [1.0, loss], "losses_every": 5, "train_loss": loss / 2}
        for loss in (0.4, 0.2, 0.3)
    ]
    run = run_of("x", 0.1)
    made = scoreboard.score_of(run, records, records, 1.0, 0.35)
    assert made.final == pytest.approx(0.3) and made.same_seconds == 0.15
    diverged = [{"losses": [1.0, None], "losses_every": 5, "train_loss": None}]
    made = scoreboard.score_of(run, records[1:] + diverged, diverged, 1.0, 0.35)
    assert made.final == made.same_seconds == float("inf")


def test_seed_0_chooses_the_learning_rate(monkeypatch):
    def trained(runs, config):
        final = dict(zip(CELO2_LRS, (0.5, None, 0.2, 0.4, 0.9), strict=True))
        return {run: {"losses": [1.0, final[run.lr]]} for run in runs}

    monkeypatch.setattr(scoreboard, "execute_all", trained)
    (best,) = scoreboard.best_rates(Config((TASK,)), ("celo2",), 20)
    assert best.lr == CELO2_LRS[2] and best.seed == 0


def test_losses_of_an_envelope_are_interpolated():
    envelopes = {"steps": [0, 100, 200], "losses": {"task": [3.0, 2.0, 1.5]}}
    assert scoreboard.loss_at(envelopes, "task", 150) == pytest.approx(1.75)


def test_a_run_writes_its_results_and_resumes(tmp_path, capsys, monkeypatch):
    available(TASK)
    optimizers = ("default", "celo2-default")
    config = Config((TASK,), optimizers, 20, False, 1, 1, str(tmp_path))
    scoreboard.run(config)
    scores = json.loads((tmp_path / "short.json").read_text())
    assert [x["optimizer"] for x in scores] == ["default", "celo2-default"]
    assert all(x["losses"][-1] < x["losses"][0] for x in scores)
    assert scores[0]["time"] == 1 and scores[1]["time"] > 0
    before = (tmp_path / "records" / f"{TASK}.jsonl").read_text()
    scoreboard.run(config)
    assert (tmp_path / "records" / f"{TASK}.jsonl").read_text() == before
    assert (tmp_path / "curves.png").stat().st_size
    assert "Training loss after 20 steps" in capsys.readouterr().out
    full = score("default", [1.0, 0.6, 0.5, 0.2], every=2500)
    monkeypatch.setattr(scoreboard, "measure", lambda config, names, steps: [full])
    scoreboard.run(replace(config, full=True))
    assert (tmp_path / "reached.png").stat().st_size
    assert "Full runs: " in (tmp_path / "scoreboard.md").read_text()
