import json
from dataclasses import replace
from pathlib import Path

import optuna
import pytest

from meta_train.selection import search, sweep
from ngopt import load_pretrained
from tests.meta_train.training.test_train import TOY

pytestmark = pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")


@pytest.fixture
def config(tmp_path, monkeypatch):
    optuna.logging.set_verbosity(optuna.logging.WARNING)

    def short(trial, config, real=search.suggested):
        return replace(real(trial, config), outer_steps=2)

    monkeypatch.setattr(search, "suggested", short)
    sizes = {"truncation": 4, "most_outer_steps": 12, "horizon": 8, "gain_seeds": 1}
    options = {**sizes, "gains": (0.5, 1.0), "trials": 2}
    folder = str(tmp_path / "search")
    return search.Config(metanet="lstm", problems=(TOY,), folder=folder, **options)


def test_trials_are_kept_and_the_best_is_written(config, capsys):
    search.run(config)
    search.run(replace(config, trials=3))
    lines = Path(config.folder, "trials.json").read_text().splitlines()
    lines = list(map(json.loads, lines))
    assert [line["trial"] for line in lines] == [0, 1, 2]
    assert len({line["numbers"]["lr"] for line in lines}) == 3
    best = max(lines, key=lambda line: line["score"])
    chosen = load_pretrained(f"{config.folder}/best.safetensors")
    assert chosen.metanet.config.width == best["numbers"]["width"]
    trained, scaled = chosen.recipe["stages"][-2:]
    assert scaled["chosen"]["gain"] == best["gain"]
    assert trained["horizon"] == scaled["steps"] == 8
    # scored by the validation accuracy of its gain
    (row,) = (r for r in chosen.table["validation"] if r["gain"] == best["gain"])
    assert row["accuracy"] == best["score"]
    assert "Best: trial" in capsys.readouterr().out


def test_given_numbers_are_fixed_in_all_trials():
    config = search.Config(tail=0.5, metanet_config={"width": 24, "graph_every": 8})
    chosen = {"layers": 2, "d_out": 8, "outer_steps": 10, "lr": 1e-4}
    trial = optuna.trial.FixedTrial({**chosen, "weight_decay": 1e-4})
    settings = search.suggested(trial, config)
    assert set(trial.distributions) == {*chosen, "weight_decay"}
    assert settings.tail == 0.5
    expected = {"width": 24, "graph_every": 8, "layers": 2, "d_out": 8}
    assert settings.metanet_config == expected


@pytest.mark.parametrize("other", ["c10-32", "cnn-gn-c16", "siren-rgb", "mlp-small-m7"])
def test_problems_of_other_data_are_errors(other):
    search.Config(problems=("fm-16", "fm14-32", "fm-cnns", "vit-fm28"))
    message = f"problems: expected those of FashionMNIST.*got \\['{other}'\\]"
    with pytest.raises(ValueError, match=message):
        search.Config(problems=("fm-16", other))


@pytest.mark.parametrize(
    ("name", "count", "least"), [("most_outer_steps", 9, 10), ("horizon", 0, 1)]
)
def test_counts_below_the_minimum_are_errors(name, count, least):
    message = f"{name}: expected {least} or more; got {count}"
    with pytest.raises(ValueError, match=message):
        search.Config(**{name: count})


def test_a_folder_of_other_settings_is_an_error(config):
    search.run(config)
    with pytest.raises(ValueError, match="other settings: truncation 4, got 8"):
        search.run(replace(config, truncation=8, trials=3))


def test_interrupted_trials_do_not_count(config, monkeypatch, capsys):
    def killed(settings):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(search.train, "run", killed)
        with pytest.raises(KeyboardInterrupt):
            search.run(config)
    study = search.search(config)
    assert [t.state.name for t in study.trials] == ["FAIL", "COMPLETE", "COMPLETE"]


def test_diverged_trial_has_the_lowest_score(config, monkeypatch, capsys):
    with monkeypatch.context() as patch:
        patch.setattr(search.train, "run", lambda settings: None)
        search.search(replace(config, trials=1))
    search.run(config)
    assert "diverged" in capsys.readouterr().out


def test_score_without_accuracy_is_the_negative_loss():
    assert sweep.score(sweep.Metrics(0.3, None)) == -0.3
    assert sweep.score(sweep.Metrics(0.3, 0.9)) == 0.9
