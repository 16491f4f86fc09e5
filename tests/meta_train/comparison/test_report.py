from dataclasses import replace
from math import inf, nan

import pytest

from harness.tables import markdown_table, text_table
from meta_train.comparison.report import (
    loss_table,
    mean_validation_losses,
    notes,
    rank_optimizers,
    ranks,
    steps_to_reference,
    summarize,
)
from ngopt.race.tuning import best_lr


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
        [record(accuracy, 0.1, loss=accuracy) for accuracy in accuracies], tuning
    )
    same = summarize([record(0.5)])
    assert replace(row, reached=50, in_same_seconds=same).cells(1.5) == {
        "problem": "p",
        "optimizer": "o",
        "lr": "0.1 *",
        "steps": "100",
        "rank": "1.5",
        "test loss": "0.6333 ± 0.15",
        "in the same seconds": "0.5",
        "steps in them": "100",
        "test accuracy %": "63.33 ± 15.28",
        "validation loss": "0.25",
        "train loss": "0.6333",
        "steps to reference": "50",
        "seconds to reference": "2.0",
        "run s": "4.0",
        "ms/step": "2.0",
        "optimizer ms/step": "0.25",
        "tuning runs": "2",
        "tuning s": "8",
    }
    assert row.tuning == {0.01: 0.01, 0.1: 0.1}
    assert any("asterisk" in line for line in notes([row]))


def test_a_rate_inside_its_grid_has_no_asterisk():
    row = summarize([record(0.5, 0.1)], [record(lr=lr) for lr in (0.01, 0.1, 1)])
    cells = row.cells()
    assert (cells["lr"], cells["rank"]) == ("0.1", "-")
    assert (cells["test loss"], cells["test accuracy %"]) == ("0.5", "50.00")
    assert not any("asterisk" in line for line in notes([row]))


def test_missing_values_are_dashes():
    row = summarize([record(), record()])
    assert row.accuracy_mean is None
    missing = "lr, rank, test accuracy %, steps to reference, seconds to reference"
    dashes = {column for column, cell in row.cells().items() if cell == "-"}
    assert dashes >= set(missing.split(", "))


def test_notes_on_tuning_on_cifar():
    row = summarize([record(0.5, 0.1)], [record(0.5, 0.1)])
    note = "c10-32: never used to choose a learned optimizer; "
    note += "baselines are tuned on its validation split."
    assert note in notes([replace(row, problem="c10-32")])
    assert note not in notes([row])


def test_diverged_runs_are_counted():
    row = summarize([record(0.5, 0.1), record(0.1, 0.1, loss=None)])
    assert row.diverged == 1
    assert row.cells()["test loss"].startswith("nan")
    assert row.cells()["train loss"] == "nan"
    assert "o on p: the loss of 1 of 2 runs diverged." in notes([row])


def test_the_tried_rates_are_listed_with_their_losses():
    tuning = [record(lr=0.01, validation=0.5), record(lr=0.1, validation=None)]
    row = summarize([record(lr=0.01)], tuning)
    assert row.tuning[0.1] == pytest.approx(float("inf"))
    assert "Validation loss by lr, o on p: 0.01: 0.5, 0.1: inf." in notes([row])


EQUAL_MEANS = [(0.1, 0.5), (0.1, 0.1), (0.2, 0.2), (0.2, 0.4), (0.3, 0.9), (0.3, 0.05)]


@pytest.mark.parametrize(
    ("tried", "best"),
    [
        (EQUAL_MEANS, 0.1),
        ([*EQUAL_MEANS, (0.4, 0.29)], 0.4),
        ([(0.1, 0.5), (0.2, 0.1), (0.2, None)], 0.1),  # .2 diverged once
        ([], None),
    ],
)
def test_chosen_rate_has_the_lowest_mean_loss_first_of_equals(tried, best):
    records = [record(lr=lr, validation=loss) for lr, loss in tried]
    assert best_lr(mean_validation_losses(records)) == best


def test_tables_are_aligned_and_escaped():
    assert text_table([{"a": "ccc", "bb": "d"}]) == "a    bb\nccc  d "
    expected = "| a    | b    |\n| ---  | ---  |\n| 1 \\* | x\\|y |"
    assert markdown_table([{"a": "1 *", "b": "x|y"}]) == expected


def row(problem, optimizer, loss, tuning_runs=5, ms=2.0, reached=50.0):
    names = {"problem": problem, "optimizer": optimizer, "diverged": int(loss != loss)}
    losses = dict.fromkeys(("test_loss", "validation_loss", "train_loss"), loss)
    tuning = {"tuning_runs": tuning_runs, "tuning_seconds": 60.0 * tuning_runs}
    times = {"ms_per_step": ms, "reached": reached}
    return replace(summarize([record()]), **names, **losses, **tuning, **times)


ROWS = [
    row("a", "adam-cosine", 1.0),
    row("a", "muon-cosine", 0.5),
    row("a", "soap-cosine", 0.8),
    row("a", "ours", 0.55, tuning_runs=0, ms=3.0),
    row("a", "other", nan, tuning_runs=0, reached=None),
    row("b", "adam-cosine", 2.0),
    row("b", "muon-cosine", 1.5),
    row("b", "soap-cosine", nan),
    row("b", "ours", 1.2, tuning_runs=0, ms=5.0),
    row("b", "other", 1.2, tuning_runs=0),
]


def by_name():
    return {one.optimizer: one for one in rank_optimizers(ROWS)}


def test_ranks_by_hand():
    rows = [row("p", str(k), loss) for k, loss in enumerate([0.2, 0.1, nan, 0.2, nan])]
    assert ranks(rows) == [2.5, 1, 4.5, 2.5, 4.5]


def test_standings_by_hand():
    ours = by_name()["ours"]
    assert ours.mean_rank == (2 + 1.5) / 2
    assert ours.mean_untuned_rank == (1 + 1.5) / 2
    assert ours.mean_excess == pytest.approx((0.55 / 0.5 - 1 + 1.2 / 1.5 - 1) / 2)
    assert ours.reference_wins == 2
    assert ours.rival_wins == 1  # on b, where one rival diverged
    assert ours.steps_share == 0.5
    assert ours.step_time == 2
    assert (ours.tuning_runs, ours.diverged, ours.problems) == (0, 0, 2)


def test_diverged_optimizer_is_last_with_infinite_excess():
    other = by_name()["other"]
    assert other.mean_rank == (5 + 1.5) / 2
    assert other.mean_excess == inf
    assert other.diverged == 1
    assert other.reference_wins == 1
    assert other.steps_share == inf
    assert other.cells()["steps to adam-cosine's loss"] == "never"


def test_tuned_rows_are_not_ranked_among_the_untuned():
    adam = by_name()["adam-cosine"]
    muon = by_name()["muon-cosine"]
    assert adam.mean_untuned_rank is None
    assert adam.reference_wins is None
    assert adam.rival_wins == 0
    assert muon.rival_wins is None
    assert (adam.tuning_runs, adam.tuning_seconds) == (10, 600)


def test_the_best_mean_rank_comes_first():
    rankings = rank_optimizers(ROWS)
    assert rankings[0].optimizer == "ours"
    mean_ranks = [ranking.mean_rank for ranking in rankings]
    assert mean_ranks == sorted(mean_ranks)


def test_rankings_without_the_reference_have_none_of_its_columns():
    (standing,) = rank_optimizers([row("a", "ours", 1.0, tuning_runs=0, reached=None)])
    assert standing.reference_wins is None
    assert standing.steps_share is None
    assert standing.mean_excess is None
    assert list(standing.cells().values()).count("-") == 7


def test_the_table_has_losses_and_ranks():
    table = loss_table([*ROWS[:2], row("b", "adam-cosine", 2.0)])
    assert table == [
        {"problem": "a", "adam-cosine": "1 (2)", "muon-cosine": "0.5 (1)"},
        {"problem": "b", "adam-cosine": "2 (1)", "muon-cosine": "-"},
    ]


def curve(seed, losses):
    steps = list(range(0, 10 * len(losses), 10))
    return {"run": {"seed": seed}, "curve": {"steps": steps, "loss": losses}}


def test_steps_to_the_reference_by_hand():
    references = [curve(0, [9.0, 5.0, 3.0]), curve(1, [9.0, 4.0, 2.0])]
    assert steps_to_reference(references, references) == 20
    first = curve(0, [9.0, 3.5, 2.5])
    second = curve(1, [9.0, 1.0, 1.0])
    assert steps_to_reference([first], references) == 15
    assert steps_to_reference([second], references) == 8.75
    assert steps_to_reference([first, second], references) == (15 + 8.75) / 2


def test_a_reference_that_is_not_reached_is_none():
    references = [curve(seed, [9.0, 5.0, 3.0]) for seed in range(3)]
    never = curve(0, [9.0, 5.0, 4.0])
    others = [curve(1, [9.0, None, None]), curve(2, [9.0, 1.0])]
    assert steps_to_reference([never, *others], references) is None
    assert steps_to_reference([curve(2, [9.0, None, 3.0])], references) == 20
    assert steps_to_reference([curve(7, [1.0])], references) is None
    assert steps_to_reference([never], [curve(0, [9.0, None])]) is None
