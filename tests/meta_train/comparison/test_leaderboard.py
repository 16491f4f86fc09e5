import json
from dataclasses import asdict, replace
from pathlib import Path
from statistics import mean, stdev

import pytest
import tyro

from meta_train.comparison import inner_training, leaderboard, optimizers, runs
from meta_train.comparison.leaderboard import Config, compare, plan_tuning
from meta_train.comparison.runs import Run, execute, read_records, train
from meta_train.problems import LISTS, problem_names
from ngopt.metanets import NeuralFunctional
from ngopt.pretrained import save_pretrained
from ngopt.pretrained.learned_optimizer import LearnedOptimizer
from tests.meta_train.small import CONTRARY, SILENT, TOY, Toy
from tests.user_classes import Halved

REPORT = ("results.json", "table.md")


@pytest.fixture(autouse=True)
def short_grids(monkeypatch):
    for name in ("adam", "adam-cosine"):
        spec = replace(optimizers.OPTIMIZERS[name], lrs=(0.0001, 0.003, 0.03))
        monkeypatch.setitem(optimizers.OPTIMIZERS, name, spec)


@pytest.fixture
def config(tmp_path, ff_weights):
    """Adam and a learned optimizer with random weights, on the toy problem."""
    sizes = {
        "seeds": 3,
        "steps": 12,
        "tuning_seeds": 2,
        "folder": str(tmp_path / "out"),
    }
    return Config(problems=(TOY,), optimizers=("adam", ff_weights), **sizes)


def results_of(config):
    return json.loads(Path(config.folder, "results.json").read_text())


def runs_of(config):
    runs = [Run(name, "adam", None, None, 0, 1, "tuning") for name in config.problems]
    return read_records(Path(config.folder, "records"), runs)


def test_the_learning_rate_is_chosen_on_validation(config):
    (row,) = compare(replace(config, problems=(CONTRARY,), optimizers=("adam",))).rows
    assert row.lr == min(row.tuning, key=row.tuning.get)
    assert row.lr != max(row.tuning, key=row.tuning.get)
    assert row.test_loss > 5  # the opposite of validation


def test_tuning_runs_every_rate_on_other_seeds_than_evaluation(config):
    compare(config)
    made = runs_of(config)
    tuning = [run for run in made if run.phase == "tuning"]
    assert [run.lr for run in tuning] == [0.0001, 0.0001, 0.003, 0.003, 0.03, 0.03]
    assert {run.optimizer for run in tuning} == {"adam"}
    evaluated = {run.seed for run in made if run.phase == "evaluation"}
    assert evaluated == {0, 1, 2}
    assert not evaluated & {run.seed for run in tuning}
    assert [row["tuning_runs"] for row in results_of(config)["table"]] == [6, 0]


def test_the_table_is_the_mean_and_deviation_of_the_records(config):
    board = compare(config)
    made = runs_of(config)
    for row in board.rows:
        records = [
            record
            for run, record in made.items()
            if run.optimizer == row.optimizer and run.phase == "evaluation"
        ]
        accuracies = [100 * r["test"]["accuracy"] for r in records]
        losses = [r["test"]["loss"] for r in records]
        assert row.accuracy_mean == pytest.approx(mean(accuracies))
        assert row.accuracy_std == pytest.approx(stdev(accuracies))
        assert row.test_loss == pytest.approx(mean(losses))
        assert row.test_loss_std == pytest.approx(stdev(losses))
        assert row.train_loss == pytest.approx(mean(r["train_loss"] for r in records))
    run = Run(TOY, "adam", board.rows[0].lr, None, 2, 12, "evaluation", 1)
    assert made[run]["losses"] == train(run)["losses"]


def test_second_call_runs_nothing_and_returns_the_same(config, monkeypatch):
    board = compare(config)
    folder = Path(config.folder)
    before = {name: (folder / name).read_bytes() for name in REPORT}
    monkeypatch.setattr(runs, "train", lambda run: pytest.fail(f"made again: {run}"))
    assert compare(config) == board
    assert {name: (folder / name).read_bytes() for name in before} == before
    picture = folder / "tests.meta_train.small_Toy.png"
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_more_seeds_make_only_the_new_runs(config, monkeypatch):
    compare(config)
    made = []
    monkeypatch.setattr(runs, "train", lambda run: (made.append(run), train(run))[1])
    compare(replace(config, seeds=4))
    assert [(run.seed, run.phase) for run in made] == [(3, "evaluation")] * 2


@pytest.fixture
def paces(monkeypatch):
    """Milliseconds of a step by optimizer."""
    paces = {"adam": 1.0, "adam-default": 1.0, "default": 2.5}

    def set_times(loops, turns):
        assert sum(turns) == 12
        for loop, name in zip(loops, (loops[0].run.optimizer, "default"), strict=True):
            loop.ms = [paces[name]] * 12

    monkeypatch.setattr(inner_training, "step_in_turns", set_times)
    return paces


def test_others_also_run_as_long_as_the_default(config, paces):
    names = ("adam", "default", "adam-default")
    config = replace(config, optimizers=names)
    board = compare(config)
    rows = {row.optimizer: row for row in board.rows}
    same = {name: row.in_same_seconds for name, row in rows.items()}
    assert {name: row.steps for name, row in rows.items()} == dict.fromkeys(names, 12)
    steps = {name: row.steps for name, row in same.items()}
    assert steps == {"adam": 30, "default": 12, "adam-default": 30}
    assert same["default"] == replace(rows["default"], in_same_seconds=None)
    assert same["adam"].tuning.keys() == rows["adam"].tuning.keys()
    assert same["adam"].lr == min(same["adam"].tuning, key=same["adam"].tuning.get)
    cells = rows["adam"].cells()
    assert cells["in the same seconds"] == same["adam"].cells()["test loss"]
    assert cells["steps in them"] == "30"
    ordered = sorted(same, key=lambda name: same[name].test_loss)
    (rankings,) = board.rankings.values()
    ranks = {ranking.optimizer: ranking.mean_equal_time_rank for ranking in rankings}
    assert ranks == {name: 1 + i for i, name in enumerate(ordered)}
    made = runs_of(config)
    rate = {run.optimizer: run.lr for run in made if run.phase == "timing"}
    assert rate == {"adam": rows["adam"].lr, "adam-default": None}
    results = results_of(config)
    assert results["table"][0]["in_same_seconds"]["steps"] == 30
    assert any(note.startswith("In the same seconds") for note in results["notes"])


def test_timings_are_read_again(config, paces, monkeypatch):
    config = replace(config, optimizers=("adam-default", "default"))
    board = compare(config)
    monkeypatch.setattr(runs, "time_in_turns", lambda run: pytest.fail(str(run)))
    assert compare(config) == board


@pytest.mark.parametrize("pace, runs_made", [(2.45, 6), (5.0, 9)])
def test_equal_times_need_no_other_runs(config, paces, pace, runs_made):
    paces["adam-default"] = pace
    config = replace(config, optimizers=("adam-default", "default"))
    (row, _) = compare(config).rows
    assert row.in_same_seconds.steps == (12 if runs_made == 6 else 6)
    assert sum(run.phase == "evaluation" for run in runs_of(config)) == runs_made


def test_without_equal_time_nothing_is_timed(config):
    names = {"optimizers": ("adam-default", "default"), "equal_time": False}
    board = compare(replace(config, **names))
    assert {row.in_same_seconds for row in board.rows} == {None}
    assert {row.cells()["in the same seconds"] for row in board.rows} == {"-"}


def test_runs_have_the_horizon_of_their_problem(config):
    board = compare(replace(config, steps=None, seeds=1, tuning_seeds=1))
    assert {row.steps for row in board.rows} == {Toy.steps}
    assert {run.steps for run in runs_of(config)} == {Toy.steps}


def test_problems_without_accuracy_are_compared_by_loss(config):
    names = {"problems": (TOY, SILENT), "optimizers": ("adam", "adam-default")}
    board = compare(replace(config, **names))
    silent = [row for row in board.rows if row.problem == SILENT]
    assert [row.accuracy_mean for row in silent] == [None, None]
    losses = [row.test_loss for row in board.rows[:2]]
    assert [row.test_loss for row in silent] == losses
    lines = Path(config.folder, "table.md").read_text().splitlines()
    assert sum(SILENT in line and "| - " in line for line in lines) == 2
    picture = Path(config.folder, f"{runs.file_name(SILENT)}.png")
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_steps_to_reference_of_the_reference_are_at_most_all(config):
    board = compare(replace(config, optimizers=("adam-cosine", "adam-default")))
    row, _ = board.rows
    assert 0 < row.reached <= 12
    (rankings,) = board.rankings.values()
    problems = {ranking.optimizer: ranking.problems for ranking in rankings}
    assert problems == {"adam-cosine": 1, "adam-default": 1}


def test_a_diverged_run_is_written_as_null(config, monkeypatch):
    explosive = replace(optimizers.OPTIMIZERS["adam-default"], lr=1e37)
    monkeypatch.setitem(optimizers.OPTIMIZERS, "adam-default", explosive)
    compare(replace(config, problems=(SILENT,), optimizers=("adam", "adam-default")))
    adam, exploded = results_of(config)["table"]
    assert exploded["diverged"] == 3
    assert exploded["test_loss"] is None
    assert adam["test_loss"] > 0


def test_rankings_are_over_each_list_and_all_problems():
    names = problem_names(("paper", "fm-16", "meta-test"))
    assert names == ("fm-16", "c10-32", *LISTS["meta-test"])
    assert list(Config(problems=("paper",)).groups()) == ["paper"]
    assert list(Config(problems=("fm-16", "fm-8")).groups()) == ["all problems"]
    groups = Config(problems=("paper", "meta-test", "fm-8")).groups()
    assert list(groups) == ["paper", "meta-test", "all problems"]
    assert groups["all problems"] == [*groups["paper"], *groups["meta-test"], "fm-8"]


def test_standings_of_a_group_are_over_its_problems(config):
    names = {"problems": (TOY, SILENT), "optimizers": ("adam", "adam-default")}
    config = replace(config, **names)
    compare(config)
    made = leaderboard.Runs()
    for run, record in runs_of(config).items():
        records_of_phase = getattr(made, run.phase)
        records_of_phase.setdefault((run.problem, run.optimizer), []).append(record)
    groups = {"one": [TOY], "two": [TOY, SILENT]}
    board = leaderboard.summarize_all(made, leaderboard.Runs(), groups)
    assert {ranking.problems for ranking in board.rankings["one"]} == {1}
    assert {ranking.problems for ranking in board.rankings["two"]} == {2}
    tuned = {s.optimizer: s.tuning_runs for s in board.rankings["one"]}
    assert tuned == {"adam": 6, "adam-default": 0}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"problems": ("fm-17",)}, "problem 'fm-17': expected a known name"),
        ({"optimizers": ("adamm",)}, "'adamm': expected one of adam, adam-cosine"),
        ({"seeds": 0}, "seeds: expected 1 or more; got 0"),
        ({"steps": 0}, "steps: expected 1 or more; got 0"),
        ({"seeds": 1_000_001}, "seeds: expected at most 1000000"),
        (
            {"optimizers": ("adam", "adam")},
            "optimizers: expected at least one name, each once",
        ),
        ({"problems": ()}, "problems: expected at least one name"),
    ],
)
def test_unknown_names_and_counts_out_of_range_are_errors_before_any_run(
    config, change, message
):
    with pytest.raises(ValueError, match=message):
        compare(replace(config, **change))
    assert not Path(config.folder).exists()


def test_names_on_the_command_line_are_separated_by_spaces():
    args = "--problems fm-16 c10-32 --optimizers adam ff --tuning-seeds 2".split()
    config = tyro.cli(Config, args=args)
    assert config.problems == ("fm-16", "c10-32")
    assert config.optimizers == ("adam", "ff")
    assert config.tuning_seeds == 2


def test_default_optimizers_and_problems():
    config = Config()
    specs = [optimizers.load_optimizer(name) for name in config.optimizers]
    untuned = {spec.name for spec in specs if not spec.lrs}
    assert untuned == {"adam-default", "muon-default", "ng-gnn", "default"}
    assert problem_names(config.problems) == ("fm-16", "c10-32", *LISTS["meta-test"])
    assert leaderboard.REFERENCE in config.optimizers


def test_execute_keeps_the_order_of_runs(config, tmp_path):
    planned = plan_tuning(TOY, optimizers.load_optimizer("adam"), 12, 2)
    with runs.tqdm(disable=True) as bar:
        records = execute(planned[::-1], tmp_path, 1, bar)
    assert [r["run"]["lr"] for r in records] == [run.lr for run in planned[::-1]]


def test_optimizers_that_cannot_train_a_network_are_in_the_notes(config, tmp_path):
    path = str(tmp_path / "nfn.safetensors")
    save_pretrained(LearnedOptimizer(NeuralFunctional()), path)
    board = compare(replace(config, optimizers=("adam-default", path)))
    assert [row.optimizer for row in board.rows] == ["adam-default"]
    (refusal,) = board.refusals
    assert refusal.startswith(f"{path} on {TOY}: nfn: expected")
    assert refusal in results_of(config)["notes"]


def test_records_of_inferred_graphs_are_not_read_for_traced_ones(config, tmp_path):
    spec = optimizers.load_optimizer("ng-gnn")
    (run, *_) = leaderboard.plan_evaluation(TOY, spec, 12, None, config)
    assert run.traced
    with pytest.raises(ValueError, match="run with traced=True; got False"):
        runs.train(replace(run, traced=False))
    known = {"run": {**asdict(run), "traced": False}}
    del known["run"]["traced"]  # as records from before are
    runs.record_path(tmp_path, run).write_text(json.dumps(known) + "\n")
    assert run not in runs.read_records(tmp_path, [run])


@pytest.mark.slow
def test_processes_import_your_own_metanet(config, tmp_path, forked):
    path = str(tmp_path / "own.safetensors")
    save_pretrained(LearnedOptimizer(Halved()), path)
    names = {
        "optimizers": ("adam-default", path),
        "metanet": "tests.user_classes:Halved",
    }
    board = compare(replace(config, **names, processes=2))
    assert {row.optimizer for row in board.rows} == {"adam-default", path}
