import json
from dataclasses import replace

from harness.random import derive_seed
from meta_train.problems import load_problem
from meta_train.selection import sweep
from meta_train.training.train import MetaTrainer
from meta_train.training.unroll import Optimizee, whole_run
from ngopt import load_pretrained
from ngopt.metanets.stepping.cooldown import Cooldown
from tests.meta_train.training.test_train import TOY, config


def test_sweep_chooses_the_best_gain_on_validation(tmp_path, capsys):
    trainer = MetaTrainer(config(tmp_path))
    trainer.run()
    weights = str(tmp_path / "best.safetensors")
    output = str(tmp_path / "gain.safetensors")
    sweep.run(
        sweep.Config(
            weights, output, problems=(TOY,), gains=(0, 1, 3), seeds=2, steps=10
        )
    )
    runs = json.loads((tmp_path / "gain.json").read_text())["runs"]
    assert len(runs) == 6
    accuracy = {
        g: sum(r["accuracy"] for r in runs if r["gain"] == g) for g in (0.0, 1.0, 3.0)
    }
    best = max(accuracy, key=accuracy.get)
    old = load_pretrained(weights)
    new = load_pretrained(output)
    assert new.metanet.config.output_scale == best * old.metanet.config.output_scale
    assert new.recipe["stages"][-1]["chosen"] == {
        "gain": best,
        "cooldown": None,
    }
    assert len(set(accuracy.values())) == 3
    assert "accuracy" in capsys.readouterr().out


def test_sweep_chooses_gain_and_cooldown_of_trainings_of_known_length(tmp_path, capsys):
    MetaTrainer(config(tmp_path)).run()
    weights = str(tmp_path / "best.safetensors")
    output = str(tmp_path / "cool.safetensors")
    settings = sweep.Config(
        weights,
        output,
        problems=(TOY,),
        gains=(0, 3),
        cooldowns=(0.3, 1),
        seeds=1,
        steps=10,
    )
    found = sweep.search(settings)
    assert list(found.means) == [(0, 0.3), (3, 0.3), (0, 1), (3, 1)]
    best = max(found.means, key=lambda scale: found.means[scale].accuracy)
    old = load_pretrained(weights)
    new = load_pretrained(output)
    assert new.cooldown == Cooldown(*best)
    assert new.metanet.config == old.metanet.config
    optimizee = Optimizee(load_problem(TOY), derive_seed(0, 20, 0))
    assert whole_run(optimizee, new, 10) == found.best
    assert whole_run(optimizee, replace(new, cooldown=None), 10) != found.best
