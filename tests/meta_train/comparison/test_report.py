from dataclasses import replace

import pytest

from harness.tables import markdown_table, text_table
from meta_train.comparison.report import notes, summarize


def record(accuracy=None, lr=None, loss=0.5, validation=0.25):
    return {
        "run": {"problem": "p", "optimizer": "o", "lr": lr, "steps": 100},
        "test": {"accuracy": accuracy, "loss": loss},
        "validation": {"accuracy": accuracy, "loss": validation},
        "train_loss": loss,
        "diverged": loss is None,
        "ms_per_step": 2.0,
        "optimizer_ms_per_step": 0.25,
        "seconds": 4.0,
    }


def test_a_row_by_hand():
    tuning = [record(lr=lr, validation=lr) for lr in (0.01, 0.1)]
    accuracies = (0.5, 0.6, 0.8)
    row = summarize(
        [record(accuracy, 0.1, loss=accuracy) for accuracy in accuracies],
        tuning,
    )
    assert list(replace(row, reached=50).cells(1.5).values()) == [
        *(
            "p",
            "o",
            "0.1 *",
            "1.5",
            "0.6333 ± 0.15",
            "63.33 ± 15.28",
            "0.25",
            "0.6333",
        ),
        *("50", "2.0", "4.0", "2.0", "0.25", "2", "8"),
    ]
    assert row.tuning == {0.01: 0.01, 0.1: 0.1}
    assert any("asterisk" in line for line in notes([row], "adam"))


def test_a_rate_inside_its_grid_has_no_asterisk():
    tuning = [record(lr=lr) for lr in (0.01, 0.1, 1)]
    row = summarize([record(0.5, 0.1)], tuning)
    assert list(row.cells().values())[2:6] == ["0.1", "-", "0.5", "50.00"]
    assert not any("asterisk" in line for line in notes([row], "adam"))


def test_what_is_not_there_is_a_dash():
    row = summarize([record(), record()])
    assert row.accuracy_mean is None
    text = list(row.cells().values())
    assert text[2:4] == ["-", "-"]
    assert text[5] == "-"
    assert text[8:10] == ["-", "-"]


def test_the_table_says_what_cifar_was_used_for():
    row = summarize([record(0.5, 0.1)], [record(0.5, 0.1)])
    said = "c10-32: never used to choose a learned optimizer; "
    said += "baselines are tuned on its validation split."
    assert said in notes([replace(row, problem="c10-32")], "adam")
    assert said not in notes([row], "adam")


def test_diverged_runs_are_counted():
    row = summarize([record(0.5, 0.1), record(0.1, 0.1, loss=None)])
    assert row.diverged == 1
    assert list(row.cells().values())[4].startswith("nan")
    assert list(row.cells().values())[7] == "nan"
    assert "o on p: the loss of 1 of 2 runs diverged." in notes([row], "adam")


def test_the_tried_rates_are_listed_with_their_losses():
    tuning = [record(lr=0.01, validation=0.5), record(lr=0.1, validation=None)]
    row = summarize([record(lr=0.01)], tuning)
    assert row.tuning[0.1] == pytest.approx(float("inf"))
    assert "Validation loss by lr, o on p: 0.01: 0.5, 0.1: inf." in notes([row], "adam")


def test_tables_are_aligned_and_escaped():
    assert text_table([{"a": "ccc", "bb": "d"}]) == "a    bb\nccc  d "
    expected = "| a    | b    |\n| ---  | ---  |\n| 1 \\* | x\\|y |"
    assert markdown_table([{"a": "1 *", "b": "x|y"}]) == expected
