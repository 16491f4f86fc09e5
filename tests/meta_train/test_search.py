import json
from pathlib import Path

import optuna
import pytest

from meta_train import search, sweep, train
from ngopt import load_pretrained
from tests.meta_train.test_train import TOY

pytestmark = pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")


@pytest.fixture
def config(tmp_path, monkeypatch):
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    real = search.suggested

    def short(trial, config):
        settings = vars(real(trial, config))
        return train.Config(**{**settings, "horizon": 8, "outer_steps": 2})

    monkeypatch.setattr(search, "suggested", short)
    return search.Config(
        metanet="lstm", problems=(TOY,), truncation=4, most_outer_steps=12, gains=(0.5, 1.0),
        gain_seeds=1, trials=2, folder=str(tmp_path / "search"),
    )  # fmt: skip


def test_trials_are_kept_and_the_best_is_written(config, capsys):
    search.run(config)
    more = search.Config(**{**vars(config), "trials": 3})
    search.run(more)
    lines = [
        json.loads(line)
        for line in Path(config.folder, "trials.json").read_text().splitlines()
    ]
    assert [line["trial"] for line in lines] == [0, 1, 2]
    assert len({line["numbers"]["lr"] for line in lines}) == 3
    best = max(lines, key=lambda line: line["score"])
    found = load_pretrained(f"{config.folder}/best.safetensors")
    assert found.metanet.config.width == best["numbers"]["width"]
    assert found.recipe["stages"][-1]["chosen"]["gain"] == best["gain"]
    # scored by the validation accuracy of its gain
    (own,) = (r for r in found.table["validation"] if r["gain"] == best["gain"])
    assert own["accuracy"] == best["score"]
    assert "Best: trial" in capsys.readouterr().out


def test_cifar_chooses_nothing():
    with pytest.raises(ValueError, match="problems: expected none of CIFAR-10"):
        search.Config(problems=("fm-16", "c10-32"))
    with pytest.raises(ValueError, match="problems: expected none of CIFAR-10"):
        search.Config(problems=("fm-16", "cnn-gn-c16"))


def test_a_loss_is_the_score_where_there_is_no_accuracy():
    assert sweep.score(sweep.Metrics(0.3, None)) == -0.3
    assert sweep.score(sweep.Metrics(0.3, 0.9)) == 0.9
