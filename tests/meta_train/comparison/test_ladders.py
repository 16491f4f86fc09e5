import json
from dataclasses import replace
from itertools import pairwise
from math import inf, log
from pathlib import Path

import pytest

from harness.tables import markdown_table
from meta_train.comparison import ladders, optimizers
from meta_train.comparison.inner_training import Run
from meta_train.comparison.ladders import (
    Cell,
    Config,
    drifts,
    overview,
    plan,
    run,
    summary,
)
from meta_train.problems import LISTS, load_problem
from meta_train.problems.ladders import AXES, FAMILIES, ladder

ROOT = Path(__file__).parents[3]


def cell(losses, value=2, axis="depth", optimizer="default"):
    return Cell("mlp", axis, value, "ladder-mlp", optimizer, losses)


def test_there_are_enough_cells():
    assert len(LISTS["ladders"]) >= 80
    for name, axis in ((name, axis) for name in FAMILIES for axis in AXES):
        rungs = list(ladder(name, axis))
        assert all(a < b for a, b in pairwise(rungs))
        problems = [load_problem(x) for x in ladder(name, axis).values()]
        if axis == "batch":
            assert [problem.batch_size for problem in problems] == rungs
        if axis == "steps":
            assert [problem.steps for problem in problems] == rungs


@pytest.mark.parametrize("name", FAMILIES)
def test_networks_grow_with_width_and_depth(name):
    for axis in ("width", "depth"):
        sizes = []
        for problem in ladder(name, axis).values():
            model = load_problem(problem).init(0)
            sizes.append(sum(p.numel() for p in model.parameters()))
        assert all(a < b for a, b in pairwise(sizes))


def test_multipliers_are_runs_of_the_default():
    runs = plan("ladder-mlp", "default", seeds=2)
    assert [run.lr for run in runs[::2]] == [0.25, 0.5, 1, 2, 4]
    assert {run.optimizer for run in runs if run.lr == 1} == {"default"}
    assert {run.optimizer for run in runs if run.lr == 0.5} == {"default:scale=0.5"}
    assert [run.seed for run in runs[:4]] == [0, 1, 0, 1]
    rates = [run.lr for run in plan("ladder-mlp", "adamw-cosine", 1)]
    assert rates == list(optimizers.ADAM_LRS)


@pytest.mark.parametrize(
    ("losses", "fits"),
    [
        ({0.5: 1.0, 1.0: 1.005, 2.0: 1.2}, True),
        ({0.5: 1.0, 1.0: 1.02, 2.0: 1.2}, False),
        ({0.25: 1.0, 0.5: 1.001, 1.0: 1.002}, False),
    ],
)
def test_a_cell_fits_if_1_is_near_the_best(losses, fits):
    assert cell(losses).fits == fits
    assert cell(losses).excess == pytest.approx(losses[1.0] - 1)


def test_drift_is_between_the_ends():
    small, large = cell({0.5: 2, 1.0: 3, 2.0: 1}), cell({0.5: 1, 1.0: 2, 2.0: 3}, 32)
    (row,) = drifts([small, cell({1.0: 1.0}, 8), large])
    assert (row["from"], row["to"], row["drift"]) == ("2: 2", "32: 0.5", "x 4")


def test_the_page_has_what_is_on_record():
    record = json.loads((ROOT / "results/ladders.json").read_text())
    cells = []
    for row in record:
        losses = {float(rate): loss for rate, loss in row.pop("losses").items()}
        cells.append(Cell(**row, losses=losses))
    page = (ROOT / "docs/results/transfer.md").read_text()
    ours = [cell for cell in cells if cell.optimizer == "default"]
    assert markdown_table(overview(ours)) in page
    assert summary(ours).split(":")[0] in page
    for row in drifts([cell for cell in cells if cell not in ours]):
        assert f"{row['from']}, {row['to']}" in page


def test_the_base_counts_once():
    losses = {0.5: 1.0, 1.0: 0.9}
    assert summary([cell(losses), cell(losses, axis="width")]).startswith(
        "1 of 1 cells"
    )


def test_a_loss_that_is_not_finite_is_counted_apart():
    diverged = replace(cell({0.5: 1.0, 1.0: inf}), problem="ladder-mlp-depth-32")
    text = summary([diverged, cell({0.5: 1.0, 1.0: 1.1})])
    assert text.endswith(
        "10.0% above the best on average. In 1 cells it is not finite."
    )
    assert not cell({0.5: 1.0, 1.0: inf}).fits


def test_a_run_writes_its_results(tmp_path, monkeypatch, capsys):
    trained = []

    def execute(runs: list[Run], folder, processes, bar):
        trained.extend(runs)
        losses = [1 + abs(log(run.lr)) for run in runs]
        return [
            {"run": {"lr": run.lr}, "validation": {"loss": loss}}
            for run, loss in zip(runs, losses, strict=True)
        ]

    monkeypatch.setattr(ladders, "execute", execute)
    run(Config(("mlp",), seeds=1, folder=str(tmp_path)))
    cells = json.loads(Path(tmp_path, "ladders.json").read_text())
    rungs = sum(map(len, FAMILIES["mlp"].rungs.values()))
    ends = 2 * len(AXES)
    assert len(cells) == rungs + len(ladders.BASELINES) * ends
    assert len(set(trained)) == len(trained)
    assert "13 of 13 cells fit" in capsys.readouterr().out
    assert Path(tmp_path, "mlp.png").stat().st_size > 1000
    assert "| mlp" in Path(tmp_path, "ladders.md").read_text()
