import json
from dataclasses import replace
from pathlib import Path
from statistics import mean, stdev

import pytest
import torch
import tyro

from meta_train import optimizers, runs
from meta_train.evaluate import Config, choose_lr, evaluate
from meta_train.report import HEADER, align, cells, markdown, notes, plot_curves, summarize
from meta_train.runs import Run, train
from ngopt.learned import LearnedOptimizer
from ngopt.models import FeedForward
from ngopt.pretrained import save_pretrained
from tests.meta_train.toy import CONTRARY, TOY


@pytest.fixture(autouse=True)
def short_grid(monkeypatch):
    spec = replace(optimizers.OPTIMIZERS["adam"], lrs=(0.0001, 0.003, 0.03))
    monkeypatch.setitem(optimizers.OPTIMIZERS, "adam", spec)


@pytest.fixture
def config(tmp_path):
    """Adam and a learned optimizer with random weights, on the toy problem."""
    torch.manual_seed(1)
    save_pretrained(LearnedOptimizer(metanet=FeedForward()), tmp_path / "ff.safetensors")
    return Config(
        problem=(TOY,),
        optimizer=("adam", str(tmp_path / "ff.safetensors")),
        seeds=3,
        steps=30,
        tuning_seeds=2,
        folder=str(tmp_path / "out"),
        curve_every=10,
    )


def record(accuracy, lr=None, loss=0.5, validation=0.0):
    return {
        "run": {"problem": "p", "optimizer": "o", "lr": lr},
        "test": {"accuracy": accuracy},
        "validation": {"accuracy": validation},
        "train_loss": loss,
        "diverged": loss is None,
        "ms_per_step": 2.0,
        "optimizer_ms_per_step": 0.25,
        "losses": [2.0, 1.0, loss],
        "curve": {"steps": [0, 3], "accuracy": [0.1, accuracy]},
    }


def test_the_learning_rate_is_chosen_on_validation(config):
    (row,) = evaluate(replace(config, problem=(CONTRARY,), optimizer=("adam",)))
    on_test = {lr: 100 - accuracy for lr, accuracy in row.tuning.items()}
    assert row.lr == max(row.tuning, key=row.tuning.get)
    assert row.lr != max(on_test, key=on_test.get)


def test_tuning_uses_every_rate_on_seeds_of_its_own(config):
    evaluate(config)
    results = json.loads(Path(config.folder, "results.json").read_text())
    tuning = [r["run"] for r in results["tuning"]]
    assert [r["lr"] for r in tuning] == [0.0001, 0.0001, 0.003, 0.003, 0.03, 0.03]
    assert {r["optimizer"] for r in tuning} == {"adam"}
    evaluated = {r["run"]["seed"] for r in results["evaluation"]}
    assert evaluated == {0, 1, 2}
    assert not evaluated & {r["seed"] for r in tuning}
    assert [row["tuning_runs"] for row in results["table"]] == [6, 0]


def test_the_table_is_the_mean_and_deviation_of_the_records(config):
    adam, learned = evaluate(config)
    results = json.loads(Path(config.folder, "results.json").read_text())
    for row in (adam, learned):
        records = [r for r in results["evaluation"] if r["run"]["optimizer"] == row.optimizer]
        accuracies = [100 * r["test"]["accuracy"] for r in records]
        assert row.accuracy_mean == pytest.approx(mean(accuracies))
        assert row.accuracy_std == pytest.approx(stdev(accuracies))
        assert row.train_loss == pytest.approx(mean(r["train_loss"] for r in records))
    again = train(Run(TOY, "adam", adam.lr, None, 2, 30, "evaluation", 10))
    assert [r["losses"] for r in results["evaluation"] if r["run"]["optimizer"] == "adam"][2] == again["losses"]


def test_a_second_call_runs_nothing_and_says_the_same(config, monkeypatch):
    rows = evaluate(config)
    folder = Path(config.folder)
    before = {name: (folder / name).read_bytes() for name in ("results.json", "table.md")}
    monkeypatch.setattr(runs, "train", lambda run: pytest.fail(f"made again: {run}"))
    assert evaluate(config) == rows
    assert {name: (folder / name).read_bytes() for name in before} == before
    assert (folder / "tests.meta_train.toy_Toy.png").read_bytes().startswith(b"\x89PNG")


def test_more_seeds_make_only_the_new_runs(config, monkeypatch):
    evaluate(config)
    made = []
    monkeypatch.setattr(runs, "train", lambda run: (made.append(run), train(run))[1])
    evaluate(replace(config, seeds=4))
    assert [(run.seed, run.phase) for run in made] == [(3, "evaluation")] * 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"problem": ("fm-17",)}, "problem 'fm-17': expected one of fm-16"),
        ({"optimizer": ("adam", "adamm")}, "optimizer 'adamm': expected one of adam, adam-cosine"),
    ],
)
def test_unknown_names_are_refused_before_anything_runs(config, change, message):
    with pytest.raises(ValueError, match=message):
        evaluate(replace(config, **change))
    assert not Path(config.folder).exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seeds": 0}, "seeds: expected 1 or more; got 0"),
        ({"curve_every": 0}, "curve_every: expected 1 or more; got 0"),
        ({"seeds": 1_000_001}, "seeds: expected at most 1000000"),
        ({"optimizer": ("adam", "adam")}, "optimizer: expected at least one name, each once"),
        ({"problem": ()}, "problem: expected at least one name"),
    ],
)
def test_settings_out_of_range_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        Config(**change)


def test_names_on_the_command_line_are_separated_by_spaces():
    args = ["--problem", "fm-16", "c10-32", "--optimizer", "adam", "ff", "--tuning-seeds", "2"]
    config = tyro.cli(Config, args=args)
    assert (config.problem, config.optimizer, config.tuning_seeds) == (("fm-16", "c10-32"), ("adam", "ff"), 2)


def test_the_best_mean_validation_accuracy_wins_and_of_equals_the_first():
    tried = [(0.1, 0.5), (0.1, 0.9), (0.2, 0.8), (0.2, 0.6), (0.3, 0.1), (0.3, 0.95)]
    assert choose_lr([record(0, lr, validation=v) for lr, v in tried]) == 0.1
    assert choose_lr([*(record(0, lr, validation=v) for lr, v in tried), record(0, 0.4, validation=0.71)]) == 0.4
    assert choose_lr([]) is None


def test_a_row_by_hand():
    row = summarize([record(a, 0.1) for a in (0.5, 0.6, 0.8)], [record(0, lr, validation=lr) for lr in (0.01, 0.1)])
    assert cells(row) == ["p", "o", "0.1 *", "63.33 ± 15.28", "0.5000", "2.0", "0.25", "2"]
    assert any("asterisk" in line for line in notes([row], 100))
    inside = summarize([record(0.5, 0.1)], [record(0, lr) for lr in (0.01, 0.1, 1)])
    assert cells(inside)[2:4] == ["0.1", "50.00"]
    assert not any("asterisk" in line for line in notes([inside], 100))
    assert cells(summarize([record(0.5)]))[2] == "-"


def test_the_table_says_what_cifar_was_used_for():
    row = summarize([record(0.5, 0.1)], [record(0, 0.1)])
    said = "c10-32: never used to choose a learned optimizer; baselines are tuned on its validation split."
    assert said in notes([replace(row, problem="c10-32")], 100)
    assert said not in notes([row], 100)


def test_diverged_runs_are_counted_and_drawn(tmp_path):
    records = [record(0.5, 0.1), record(0.1, 0.1, loss=None)]
    row = summarize(records)
    assert row.diverged == 1
    assert cells(row)[4] == "nan"
    assert "o on p: the loss of 1 of 2 runs diverged." in notes([row], 100)
    plot_curves(tmp_path / "a.png", "title", {"o": records, "p": [record(0.2)]})
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")


def test_tables_are_aligned_and_escaped():
    assert align(["a", "bb"], [["ccc", "d"]]) == ["a    bb", "ccc  d "]
    assert markdown(["a", "b"], [["1 *", "x|y"]]) == ["| a    | b    |", "| ---  | ---  |", r"| 1 \* | x\|y |"]
    row = summarize([record(0.5)])
    assert len(cells(row)) == len(HEADER)
