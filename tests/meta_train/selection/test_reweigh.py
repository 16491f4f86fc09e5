import json
from dataclasses import replace
from math import exp, inf, log, nan
from pathlib import Path

import optuna
import pytest
import torch

from meta_train.selection import reweigh
from meta_train.selection.reweigh import (
    FEATURES,
    GRAPH,
    UPDATE,
    mean_gain,
    mean_of_best,
    reweighed,
)
from ngopt import load_pretrained
from ngopt.metanets.features import NUM_FEATURES
from tests.graph_checks import assert_equal
from tests.meta_train.training.test_train import TOY


@pytest.fixture
def config(tmp_path):
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return reweigh.Config(
        weights="ff", problems=(TOY,), trials=3, population=4, checks=2, steps=4,
        folder=str(tmp_path / "reweigh"),
    )  # fmt: skip


@pytest.mark.parametrize("name", ["ff", "lstm", "nfn", "ng-gnn", "ng-t"])
def test_factors_multiply_inputs_and_outputs_of_the_head(name):
    learned = load_pretrained(name)
    names = reweigh.factor_names(learned)
    assert len(FEATURES) == NUM_FEATURES
    assert (GRAPH in names) == (name != "ff")
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(len(names), generator=generator).tolist()
    logarithms = dict(zip(names, values, strict=True))
    d = learned.metanet.d_context
    inputs = torch.randn(9, NUM_FEATURES + d, generator=generator)
    features, context = inputs.split([NUM_FEATURES, d], 1)
    metanet = reweighed(learned, logarithms).metanet
    with torch.no_grad():
        updates = metanet.updates(features, context if d else None)
        factors = torch.tensor([exp(logarithms[key]) for key in FEATURES])
        scaled = context * exp(logarithms.get(GRAPH, 0.0))
        expected = learned.metanet.updates(features * factors, scaled if d else None)
    torch.testing.assert_close(updates, expected * exp(logarithms[UPDATE]))


def test_factors_of_one_change_nothing():
    learned = load_pretrained("ng-gnn")
    same = reweighed(learned, dict.fromkeys(reweigh.factor_names(learned), 0.0))
    assert_equal(learned.metanet.parameters(), same.metanet.parameters())
    assert same.metanet.config == learned.metanet.config


def test_gain():
    assert mean_gain([1.0, 2.0], [2.0, 2.0]) == pytest.approx(log(2) / 2)
    assert mean_gain([nan], [1.0]) == mean_gain([inf], [1.0]) == reweigh.DIVERGED_SCORE


def test_mean_of_the_better_half_of_the_last_generations():
    study = optuna.create_study(direction="maximize")
    spread = {"x": optuna.distributions.FloatDistribution(-10, 10)}
    for x, value in enumerate([9.0, 1.0, 4.0, 2.0, 3.0]):
        numbers = {"params": {"x": float(x)}, "distributions": spread}
        study.add_trial(optuna.create_trial(**numbers, value=value))
    # 4 trials, of which numbers 2 and 4 are better
    assert mean_of_best(study.trials, 2) == {"x": 3.0}


def test_trials_and_mean_of_the_best_are_written(config, capsys):
    reweigh.run(config)
    reweigh.run(replace(config, trials=5))
    path = Path(config.folder, "trials.json")
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["trial"] for line in lines] == [0, 1, 2, 3, 4]
    assert set(lines[0]["numbers"].values()) == {0.0}
    assert lines[0]["score"] == 0
    assert len({line["numbers"][UPDATE] for line in lines}) == 5
    chosen = load_pretrained(Path(config.folder, "best.safetensors"))
    stage = chosen.recipe["stages"][-1]
    expected = reweighed(load_pretrained("ff"), stage["chosen"]).metanet
    assert_equal(chosen.metanet.parameters(), expected.parameters())
    gains = [row["gain"] for row in chosen.table["validation"]]
    assert len(set(gains)) == config.checks
    for row in chosen.table["validation"]:
        assert row["gain"] == pytest.approx(log(row["before"][0] / row["after"][0]))
    assert "on 2 other seeds: lower by" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"problems": ("fm-16", "c10-32")},
            "FashionMNIST, which alone chooses.*c10-32",
        ),
        ({"population": 3}, "population: expected at least 4; got 3"),
    ],
)
def test_unsuitable_settings_are_errors(config, changes, message):
    with pytest.raises(ValueError, match=message):
        replace(config, **changes)


def test_a_folder_of_other_settings_is_an_error(config):
    reweigh.search(config)
    with pytest.raises(ValueError, match="made with other settings: steps"):
        reweigh.search(replace(config, steps=5))
