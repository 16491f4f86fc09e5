import json
from dataclasses import replace
from math import log

import pytest
import torch

from tasks.learning.task import run_task
from tasks.learning.training import TrainingConfig
from tasks.represent import (
    Config,
    Representation,
    contrastive_loss,
    regression_targets,
    ridge_regression,
)


@pytest.fixture
def config(data, tmp_path, clock):
    training = TrainingConfig(minutes=0.1, batch=8, validations=2)
    options = {"sizes": {"width": 8, "layers": 1}, "training": training}
    folders = str(data / "inr-sines"), str(tmp_path / "run")
    return Config(*folders, dimension=6, **options)


def test_a_run_writes_results_of_linear_regressions(config, tmp_path, data):
    run_task(config, Representation)
    result = json.loads((tmp_path / "run" / "result.json").read_text())["test"]
    assert 0 < result["mse"] < 100
    folders = {"data": str(data / "inr-mnist"), "folder": str(tmp_path / "images")}
    run_task(replace(config, **folders), Representation)
    result = json.loads((tmp_path / "images" / "result.json").read_text())["test"]
    assert 0 <= result["accuracy"] <= 1


def test_the_loss_of_equal_pairs_is_zero_and_of_equal_networks_that_of_guessing():
    corners, same = torch.eye(4), torch.ones(4, 1)
    loss = contrastive_loss(corners, corners, temperature=0.01)
    assert loss.item() == pytest.approx(0, abs=1e-6)
    loss = contrastive_loss(same, same, temperature=0.5)
    assert loss.item() == pytest.approx(log(7))


def test_a_copy_has_a_share_of_parameters_at_their_means(config):
    task = Representation(replace(config, noise=0.0, masked=0.3))
    stack = task.stacks["train"]
    copy = task.noisy_copy(stack).params[2]
    is_kept = copy == stack.params[2]
    is_mean = copy == task.means[2]
    assert (is_kept | is_mean).all()
    assert 0.6 < is_kept.double().mean() < 0.8


def test_the_regression_finds_the_linear_map_of_the_targets():
    inputs = torch.randn(50, 4, dtype=torch.float64)
    weights = torch.randn(4, 2, dtype=torch.float64)
    solution = ridge_regression(inputs, inputs @ weights)
    torch.testing.assert_close(solution, weights, rtol=1e-2, atol=1e-2)


def test_networks_without_targets_are_refused():
    message = "expected columns amplitude, frequency, or label; got psnr"
    with pytest.raises(ValueError, match=message):
        regression_targets({"psnr": torch.ones(2)})


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"temperature": 0}, "temperature: expected more than 0; got 0"),
        ({"noise": -1}, "noise: expected 0 or more; got -1"),
        ({"masked": 1}, "masked: expected 0 to less than 1; got 1"),
        ({"training": TrainingConfig(batch=1)}, "batch: .*; got 1"),
    ],
)
def test_invalid_settings_are_refused(config, changes, message):
    with pytest.raises(ValueError, match=message):
        replace(config, **changes)
