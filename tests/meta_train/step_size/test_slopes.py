"""Trainings with other steps of the last layers, and with predicted ones."""

from dataclasses import asdict, replace

import pytest
import torch

from harness.files import append_line, read_lines
from meta_train.step_size import collect_slopes, new_trainings
from meta_train.step_size.models import Constant
from meta_train.step_size.new_trainings import predicted_variants
from meta_train.step_size.role_variants import SLOPES
from meta_train.step_size.trainings import first_gradients
from ngopt import NGOptimizer
from ngopt.pretrained import save_pretrained
from tests.meta_train.step_size.test_copies import BASE
from tests.meta_train.step_size.test_models import ACTIVATIONS
from tests.predictors import learned, random_predictor


def outcome(training):
    multipliers = [0.5, 1.0, 2.0]
    losses = [[1.2, 1.2], [1.0, 1.0], [0.8, 0.8]]
    about = {"multipliers": multipliers, "first": [2.0, 2.0], "validation": losses}
    return {**asdict(training), **about}


def test_collecting_takes_each_deep_training_once(tmp_path, monkeypatch):
    monkeypatch.setattr(collect_slopes, "Ensemble", Constant)
    seeds = range(4)
    for seed in seeds:
        activation = ACTIVATIONS[seed % 3]
        training = replace(BASE, seed=seed, activation=activation, depth=seed)
        append_line(tmp_path / "outcomes.jsonl", outcome(training))
    path = tmp_path / "slopes.jsonl"
    collect_slopes.main(collect_slopes.Config(steps=7, folder=str(tmp_path)))
    assert not path.exists()
    for _ in range(2):
        collect_slopes.main(collect_slopes.Config(folder=str(tmp_path)))
    records = read_lines([path])
    assert sorted(record["seed"] for record in records) == [2, 3]
    for record in records:
        assert record["multiplier"] == pytest.approx(2.0, rel=0.1)
        assert record["variants"] == list(SLOPES)
        assert len(record["validation"]) == len(SLOPES)


def test_predicted_steps_are_those_of_the_optimizer():
    predictor = random_predictor(1.0)
    variants = predicted_variants(BASE, predictor)
    assert set(variants["unchanged"].lr) == {1.0}
    assert len(set(variants["factor"].lr)) == 1
    found = torch.tensor(variants["factor and slope"].lr).log2()

    logs = []
    for seed in (0, 1):
        model, grads = first_gradients(BASE, seed)
        opt = NGOptimizer(
            model.named_parameters(), rule=learned(predictor), total_steps=BASE.steps
        )
        for p, grad in zip(model.parameters(), grads, strict=True):
            p.grad = grad
        opt.step()
        own = [opt.state[p]["predicted"] for p in model.parameters()]
        logs.append(torch.stack(own).float().log2())
    torch.testing.assert_close(found, (logs[0] + logs[1]) / 2, atol=1e-4, rtol=1e-4)
    assert abs(found[-1] - found[0]) > 0.02


def test_new_trainings_are_measured_once_and_printed(tmp_path, capsys):
    path = tmp_path / "mine.safetensors"
    save_pretrained(learned(random_predictor()), path)
    config = new_trainings.Config(1, 1, str(path), str(tmp_path))
    for _ in range(2):
        new_trainings.main(config)
    printed = capsys.readouterr().out
    assert printed.count("1 new trainings") == 2
    assert "factor and slope" in printed
    (record,) = read_lines([tmp_path / "new_trainings.jsonl"])
    assert len(record["validation"]) == 3


def test_weights_without_a_predictor_are_an_error(tmp_path):
    config = new_trainings.Config(weights="default", folder=str(tmp_path))
    with pytest.raises(ValueError, match="expected some with a step predictor"):
        new_trainings.main(config)
