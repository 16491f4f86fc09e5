import json
from pathlib import Path

import optuna
import pytest

from meta_train.selection import tune
from ngopt.pretrained import load_pretrained
from ngopt.soap.config import SoapConfig
from tests.meta_train.small import TOY

pytestmark = pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")


@pytest.fixture
def config(tmp_path, monkeypatch):
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    monkeypatch.setattr(tune, "DEVELOPMENT", (TOY,))
    return tune.Config(problems=(TOY,), trials=3, folder=str(tmp_path / "tune"))


def test_begins_with_the_present_numbers_and_resumes(config, tmp_path):
    study = tune.search(config)
    first, *others = study.trials
    assert first.value == 0
    assert first.params == {
        name: getattr(SoapConfig(), name) for name in tune.search_space()
    }
    assert all(trial.params != first.params for trial in others)
    before = [trial.params for trial in study.trials]
    again = tune.search(tune.Config(config.problems, trials=5, folder=config.folder))
    assert [trial.params for trial in again.trials[:3]] == before
    assert len(again.trials) == 5


def test_writes_the_best_numbers_and_every_trial(config):
    tune.run(config)
    path = Path(config.folder, "best.safetensors")
    lines = [
        json.loads(line)
        for line in (path.parent / "trials.json").read_text().splitlines()
    ]
    assert [line["trial"] for line in lines] == [0, 1, 2]
    best = max(lines, key=lambda line: line["score"])
    found = load_pretrained(path)
    assert {
        name: getattr(found.base.config, name) for name in tune.search_space()
    } == best["numbers"]
    assert found.recipe["stages"][-1]["trial"] == best["trial"]


def test_nothing_is_chosen_on_other_problems():
    with pytest.raises(ValueError, match=r"development list; got \['c10-32'\]"):
        tune.Config(problems=("fm-16", "c10-32"))
    with pytest.raises(ValueError, match="development list"):
        tune.Config(problems=("meta-validation",))
