import json
from dataclasses import replace
from types import SimpleNamespace

import pytest

from harness.random import derive_seed
from meta_train.problems import load_problem
from meta_train.selection import sweep
from meta_train.training.train import MetaTrainer
from meta_train.training.unroll import Optimizee, whole_run
from ngopt import load_pretrained
from ngopt.metanets import FeedForward
from ngopt.metanets.stepping.cooldown import Cooldown
from ngopt.pretrained.learned_optimizer import LearnedOptimizer
from tests.meta_train.small import TOY as SMALL
from tests.meta_train.training.test_train import TOY, config


@pytest.fixture
def weights(tmp_path):
    """The best of a short meta-training."""
    MetaTrainer(config(tmp_path)).run()
    return str(tmp_path / "best.safetensors")


def test_sweep_chooses_the_best_gain_on_validation(weights, tmp_path, capsys):
    output = str(tmp_path / "gain.safetensors")
    gains = (0, 1, 3)
    settings = {"problems": (TOY,), "gains": gains, "seeds": 2, "steps": 10}
    sweep.run(sweep.Config(weights, output, **settings))
    runs = json.loads((tmp_path / "gain.json").read_text())["runs"]
    assert len(runs) == 6
    accuracy = {
        g: sum(run["accuracy"] for run in runs if run["gain"] == g) for g in gains
    }
    best = max(accuracy, key=accuracy.get)
    old, new = load_pretrained(weights), load_pretrained(output)
    assert new.metanet.config.output_scale == best * old.metanet.config.output_scale
    assert new.recipe["stages"][-1]["chosen"] == {"gain": best, "cooldown": None}
    assert len(set(accuracy.values())) == 3
    assert "accuracy" in capsys.readouterr().out


def test_sweep_chooses_gain_and_cooldown_for_runs_of_known_length(
    weights, tmp_path, capsys
):
    output = str(tmp_path / "cool.safetensors")
    scales = {"gains": (0, 3), "cooldowns": (0.3, 1)}
    sizes = {"problems": (TOY,), "seeds": 1, "steps": 10}
    best, means = sweep.search(sweep.Config(weights, output, **scales, **sizes))
    assert list(means) == [(0, 0.3), (3, 0.3), (0, 1), (3, 1)]
    assert best == max(means, key=lambda scale: means[scale].accuracy)
    old, new = load_pretrained(weights), load_pretrained(output)
    assert new.cooldown == Cooldown(*best)
    assert new.metanet.config == old.metanet.config
    optimizee = Optimizee(load_problem(TOY), derive_seed(0, 20, 0))
    assert whole_run(optimizee, new, 10) == means[best]
    assert whole_run(optimizee, replace(new, cooldown=None), 10) != means[best]


def test_advice_for_a_gain_at_the_edge():
    advice = sweep.edge_advice(2.8, (1, 2, 2.8))
    assert "2.8 is the largest of the gains" in advice
    assert "Add 5.6 to --gains" in advice
    assert "0.5 is the smallest" in sweep.edge_advice(0.5, (2, 0.5))
    for gain, gains in ((2, (1, 2, 2.8)), (1, (1,)), (1, (1, 1)), (0, (0, 1))):
        assert sweep.edge_advice(gain, gains) is None


def test_steps_are_the_horizon_of_each_problem(weights, tmp_path, monkeypatch, capsys):
    steps_of_runs = []

    def run(optimizee, learned, steps, real=whole_run):
        steps_of_runs.append(steps)
        return real(optimizee, learned, 2)

    monkeypatch.setattr(sweep, "whole_run", run)
    output = str(tmp_path / "gain.safetensors")
    sizes = {"problems": (TOY, SMALL), "gains": (1, 2), "seeds": 1}
    sweep.run(sweep.Config(weights, output, **sizes))
    assert steps_of_runs == [12, 40] * 2
    assert "of the gains, so a better one may lie beyond" in capsys.readouterr().out
    config = sweep.Config(
        weights, str(tmp_path / "three.safetensors"), **sizes, steps=3
    )
    sweep.run(config)
    assert steps_of_runs[4:] == [3] * 4


def test_an_output_is_a_new_weights_file(weights, tmp_path):
    path = tmp_path / "gain.safetensors"
    path.touch()
    with pytest.raises(ValueError, match="output: expected a new file; got "):
        sweep.run(sweep.Config(weights, str(path)))
    with pytest.raises(ValueError, match="that ends in .safetensors; got 'runs'"):
        sweep.Config(weights, "runs")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": 0}, "steps: expected 1 or more; got 0"),
        ({"gains": ()}, "gains: expected at least one; got none"),
    ],
)
def test_settings_out_of_range_are_errors(changes, message):
    with pytest.raises(ValueError, match=message):
        sweep.Config("ff", "out.safetensors", **changes)


def test_metanet_without_an_output_scale_is_an_error():
    metanet = FeedForward()
    metanet.config = SimpleNamespace(nominal_step=1e-3)
    message = "FeedForward: expected a config with output_scale"
    with pytest.raises(ValueError, match=message):
        sweep.with_gain(LearnedOptimizer(metanet), sweep.OutputGain(2))
