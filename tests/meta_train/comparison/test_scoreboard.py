"""The scoreboard of VeLO's tasks."""

import json

import pytest

from meta_train.comparison import scoreboard
from meta_train.comparison.scoreboard import Config, Score, loss_in, rows_of, summary
from tests.meta_train.small import available

TASK = "ImageMLP_FashionMnist8_Relu32"


def score(optimizer: str, losses: list[float], seconds: float) -> Score:
    steps = [10 * (i + 1) for i in range(len(losses))]
    record = {"losses": losses, "losses_every": 10, "seconds": seconds}
    made = scoreboard.score_of("task", optimizer, None, [record], 0.5)
    assert made.steps == steps
    return made


def test_steps_to_the_envelope_and_equal_seconds():
    slow = score("slow", [1.0, 0.6, 0.4, 0.2], 8.0)
    fast = score("fast", [1.0, 0.9, 0.8, 0.7], 4.0)
    assert slow.reached == 30 and fast.reached is None
    assert loss_in(slow, 4.0) == 0.6
    (row,) = rows_of([slow, fast])
    assert row["slow"] == "0.2" and row["slow, same seconds"] == "0.6"
    assert row["fast reaches it at"] == "not"
    text = summary([slow, fast])
    assert "slow reaches the envelope's loss at 10,000 steps on 1 of 1 tasks" in text
    assert "fast reaches the envelope's loss at 10,000 steps on 0 of 1 tasks." in text


def test_seeds_are_averaged_and_a_diverged_one_counts():
    records = [
        {"losses": losses, "losses_every": 5, "seconds": 1.0}
        for losses in ([1.0, 0.4], [1.0, 0.2], [1.0, 0.3])
    ]
    assert scoreboard.score_of("task", "x", 0.1, records, 0.35).final == pytest.approx(
        0.3
    )
    records[0]["losses"] = [1.0, None]
    assert scoreboard.score_of("task", "x", 0.1, records, 0.35).final == float("inf")


def test_losses_of_an_envelope_are_interpolated():
    envelopes = {"steps": [0, 100, 200], "losses": {"task": [3.0, 2.0, 1.5]}}
    assert scoreboard.loss_at(envelopes, "task", 150) == pytest.approx(1.75)


def test_a_run_writes_its_results_and_resumes(tmp_path, capsys):
    available(TASK)
    optimizers = ("default", "celo2-default")
    config = Config((TASK,), optimizers, 20, 1, 1, str(tmp_path))
    scoreboard.run(config)
    scores = json.loads((tmp_path / "scoreboard.json").read_text())
    assert [x["optimizer"] for x in scores] == ["default", "celo2-default"]
    assert all(x["losses"][-1] < x["losses"][0] for x in scores)
    assert all(
        (tmp_path / name).stat().st_size for name in ("curves.png", "reached.png")
    )
    before = (tmp_path / "records" / f"{TASK}.jsonl").read_text()
    scoreboard.run(config)
    assert (tmp_path / "records" / f"{TASK}.jsonl").read_text() == before
    assert "celo2-default reaches it at" in capsys.readouterr().out
