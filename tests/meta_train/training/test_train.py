import json
import re
import subprocess
import sys
from dataclasses import replace
from functools import partial
from math import sqrt

import numpy as np
import pytest
import torch

from harness import cli
from harness.distributed import RankLost
from harness.interrupts import Interrupted
from harness.random import derive_seed
from meta_train.problems import load_problem
from meta_train.selection import sweep
from meta_train.training import train
from meta_train.training.all_reduce import clip, usable
from meta_train.training.estimators import Estimate
from meta_train.training.train import Config, MetaTrainer, learning_rate_factor
from meta_train.training.unroll import Optimizee, whole_run
from meta_train.training.worker import ESTIMATORS
from ngopt import load_pretrained
from ngopt.metanets import FeedForward
from ngopt.metanets.stepping.cooldown import Cooldown

TOY = "tests.meta_train.by_hand:Regression32"


def config(folder, **changes):
    base = Config(
        folder=str(folder),
        problems=(TOY,),
        outer_steps=6,
        optimizees=2,
        horizon=12,
        truncation=3,
        warmup=2,
        validate_every=2,
        lr=1e-3,
    )
    return replace(base, **changes)


@pytest.mark.parametrize(("estimator", "metanet"), [("pes", "ff"), ("tbptt", "ng-gnn")])
def test_resume_is_bit_identical(tmp_path, estimator, metanet):
    settings = {"estimator": estimator, "metanet": metanet, "average": 0.5}
    whole = MetaTrainer(config(tmp_path / "whole", **settings))
    whole.run()

    class Stopped(Exception):
        pass

    broken = MetaTrainer(config(tmp_path / "broken", **settings))
    real_step, done = broken.step, []

    def step():
        # after the checkpoint of outer step 4, in the middle of an optimizee's life
        if len(done) == 5:
            raise Stopped
        done.append(None)
        return real_step()

    broken.step = step
    with pytest.raises(Stopped):
        broken.run()
    resumed = MetaTrainer(config(tmp_path / "broken", **settings))
    resumed.run()
    assert resumed.outer_step == 6
    for one, other in (
        (whole.metanet, resumed.metanet),
        (whole.mean, resumed.mean),
    ):
        rows = zip(one.parameters(), other.parameters(), strict=True)
        assert all(torch.equal(a, b) for a, b in rows)
    logs = [
        [
            json.loads(line)
            for line in (tmp_path / name / "log.jsonl").read_text().splitlines()
        ]
        for name in ("whole", "broken")
    ]
    assert logs[0] == logs[1]
    assert [record["outer_step"] for record in logs[0]] == [2, 4, 6]


@pytest.mark.parametrize("estimator", ["tbptt", "tbptt-2", "pes", "imitation"])
def test_ctrl_c_in_an_outer_step_loses_that_step_alone(
    tmp_path, estimator, monkeypatch
):
    settings = {"estimator": estimator, "validate_every": 6}
    whole = MetaTrainer(config(tmp_path / "whole", **settings))
    whole.run()
    path = tmp_path / "broken" / "checkpoint.pt"
    broken = config(tmp_path / "broken", **settings)
    with monkeypatch.context() as patch:
        patch.setattr(MetaTrainer, "step", stopped_in_unroll(MetaTrainer.step, at=4))
        told = re.escape(
            f"checkpoint '{path}' stands at outer step 4; the same command"
        )
        with pytest.raises(Interrupted, match=told):
            train.run(broken)
    resumed = MetaTrainer(broken)
    resumed.run()
    rows = zip(whole.metanet.parameters(), resumed.metanet.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in rows)
    assert [record["outer_step"] for record in resumed.log] == [6]


def test_your_own_metanet_is_trained_resumed_and_swept(tmp_path, capsys):
    own = {"metanet": "tests.own:Halved"}
    train.run(config(tmp_path, **own))
    train.run(config(tmp_path, **own, outer_steps=8))
    best, scaled = (str(tmp_path / f"{name}.safetensors") for name in ("best", "gain"))
    assert type(load_pretrained(best).metanet).__name__ == "Halved"
    sizes = {"problems": (TOY,), "gains": (1.0, 2.0), "seeds": 1, "steps": 4}
    sweep.run(sweep.Config(weights=best, output=scaled, **own, **sizes))
    assert type(load_pretrained(scaled).metanet).__name__ == "Halved"
    with pytest.raises(ValueError, match="expected 'Own' in module 'tests.own'"):
        train.run(config(tmp_path / "odd", metanet="tests.own:Own"))


def stopped_in_unroll(real_step, at):
    """A step in which, after so many, the second inner loss of an unroll raises."""

    def step(self):
        if self.outer_step == at:
            losses = []

            def loss(*args, real=Optimizee.loss):
                losses.append(None)
                if len(losses) == 2:
                    raise KeyboardInterrupt
                return real(*args)

            for optimizee in self.worker._optimizees.values():
                optimizee.loss = partial(loss, optimizee)
        return real_step(self)

    return step


def test_ctrl_c_in_a_validation_repeats_it(tmp_path, monkeypatch):
    settings = config(tmp_path)

    def stopped(self):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(MetaTrainer, "validate", stopped)
        with pytest.raises(Interrupted, match="stands at outer step 2;"):
            train.run(settings)
    resumed = MetaTrainer(settings)
    resumed.run()
    assert [record["outer_step"] for record in resumed.log] == [2, 4, 6]


class TestRanks:
    """Meta-training in two processes."""

    @pytest.mark.parametrize(
        "estimator", ["tbptt", pytest.param("pes", marks=pytest.mark.thorough)]
    )
    def test_their_number_changes_nothing_and_any_number_resumes(
        self, tmp_path, estimator, forked
    ):
        settings = {
            "estimator": estimator,
            "optimizees": 3,
            "outer_steps": 4,
            "validation_seeds": 2,
        }
        names = {"one": (1, 1), "two then one": (2, 1), "one then two": (1, 2)}
        for name, some in names.items():
            for steps, processes in zip((2, 4), some, strict=True):
                train.run(
                    config(
                        tmp_path / name,
                        **{**settings, "outer_steps": steps},
                        processes=processes,
                    )
                )
        found = {name: weights_of(tmp_path / name) for name in names}
        for name, weights in found.items():
            assert all(
                torch.equal(a, b) for a, b in zip(weights, found["one"], strict=True)
            ), name
        logs = {(tmp_path / name / "log.jsonl").read_text() for name in found}
        assert len(logs) == 1

    def test_torchrun_starts_them_too(self, tmp_path):
        arguments = [
            "--problems",
            TOY,
            "--outer-steps",
            "2",
            "--optimizees",
            "2",
            "--horizon",
            "12",
        ]
        arguments += [
            "--truncation",
            "3",
            "--warmup",
            "2",
            "--validate-every",
            "2",
        ]
        torchrun = [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--nproc-per-node",
            "2",
            "-m",
        ]
        folder = ["--folder", str(tmp_path / "two")]
        subprocess.run(
            [*torchrun, "meta_train.training.train", *folder, *arguments], check=True
        )
        train.run(config(tmp_path / "one", outer_steps=2))
        rows = zip(
            weights_of(tmp_path / "one"),
            weights_of(tmp_path / "two"),
            strict=True,
        )
        assert all(torch.equal(a, b) for a, b in rows)

    def test_a_rank_that_dies_ends_the_run_with_a_message(self, tmp_path):
        settings = config(
            tmp_path,
            problems=("tests.meta_train.by_hand:Deadly",),
            processes=2,
            outer_steps=50,
        )
        message = (
            r"rank \d ended with exit code .* stands at outer step (\d+); the same"
        )
        with pytest.raises(RankLost, match=message) as found:
            train.run(settings)
        stands = torch.load(tmp_path / "checkpoint.pt", weights_only=False)[
            "outer_step"
        ]
        assert re.search(message, str(found.value))[1] == str(stands)
        assert 2 <= stands <= 12  # the first rank may have been writing its newest

    def test_what_a_rank_raises_is_told(self, tmp_path, forked):
        settings = config(tmp_path, outer_steps=2)
        train.run(settings)
        with pytest.raises(
            RankLost,
            match=r"rank \d ended with ValueError: checkpoint .* lr 0.001, got 0.5",
        ):
            train.run(replace(settings, lr=0.5, processes=2))


def weights_of(folder):
    state = torch.load(folder / "checkpoint.pt", weights_only=False)["metanet"]
    return list(state.values())


def test_horizons_grow_and_are_log_uniform(tmp_path):
    trainer = MetaTrainer(config(tmp_path, shortest=10, horizon=1000, outer_steps=100))
    slot = trainer.optimizees[0]
    for step, top in ((0, 10), (25, 100), (50, 1000), (100, 1000)):
        found = []
        for slot.life in range(200):
            found.append(trainer.schedule.next_horizon(slot, step))
        assert 10 <= min(found) <= max(found) <= top
        assert np.median(found) == pytest.approx(sqrt(10 * top), rel=0.4)


def test_a_life_ends_at_its_horizon_and_es_takes_it_whole(tmp_path):
    trainer = MetaTrainer(
        config(tmp_path, truncation=5, optimizees=1, horizon=12, loss_limit=1e6)
    )
    ages = []
    for _ in range(4):
        trainer.step()
        ages.append(trainer.optimizees[0].age)
    assert ages == [5, 10, 0, 5]
    trainer = MetaTrainer(config(tmp_path, estimator="es", optimizees=1, horizon=12))
    assert trainer.schedule.steps(trainer.optimizees[0]) == 12
    trainer.step()
    assert (trainer.optimizees[0].life, trainer.optimizees[0].age) == (1, 0)
    with pytest.raises(ValueError, match="shortest: expected none with es"):
        MetaTrainer(config(tmp_path, estimator="es", shortest=3))


@pytest.mark.parametrize("estimator", sorted(ESTIMATORS))
def test_every_estimator_trains(tmp_path, estimator):
    trainer = MetaTrainer(
        config(tmp_path, estimator=estimator, outer_steps=2, scaling=10.0)
    )
    before = [p.detach().clone() for p in trainer.metanet.parameters()]
    trainer.run()
    assert any(
        not torch.equal(p, q)
        for p, q in zip(before, trainer.metanet.parameters(), strict=True)
    )
    assert all(p.isfinite().all() for p in trainer.metanet.parameters())


def test_meta_training_learns(tmp_path):
    settings = config(
        tmp_path,
        outer_steps=60,
        optimizees=2,
        horizon=20,
        truncation=10,
        validate_every=20,
        lr=3e-3,
        warmup=5,
    )
    trainer = MetaTrainer(settings)
    untrained = trainer.validate()
    trainer.best = float("inf")
    trainer.run()
    losses = [
        json.loads(line)["loss"]
        for line in (tmp_path / "log.jsonl").read_text().splitlines()
    ]
    assert min(losses[1:]) < 0.7 * untrained.loss


def test_best_weights_are_exported_with_config_and_recipe(tmp_path):
    trainer = MetaTrainer(config(tmp_path))
    trainer.run()
    best = load_pretrained(tmp_path / "best.safetensors")
    records = [
        json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()
    ]
    assert best.table["validation"] == min(records, key=lambda r: r["loss"])
    (stage,) = best.recipe["stages"]
    assert stage["problems"] == [TOY]
    assert stage["lr"] == 1e-3
    assert json.loads((tmp_path / "config.json").read_text())["horizon"] == 12
    assert any(path.name.startswith("events.") for path in tmp_path.iterdir())
    # weights go into the next stage, those of an FF as the head of an NG-GNN that
    # predicts the same
    second = MetaTrainer(
        config(
            tmp_path / "2",
            metanet="ng-gnn",
            init_from=str(tmp_path / "best.safetensors"),
        )
    )
    assert len(second.trained().recipe["stages"]) == 2
    torch.manual_seed(0)
    features = torch.randn(26, 14)
    graph = trainer.worker.optimizee(0).graph
    torch.testing.assert_close(
        second.metanet(features, graph), best.metanet(features, graph)
    )


@pytest.mark.parametrize("decay", [0.0, 0.75])
def test_a_running_mean_of_weights_is_validated_and_kept(tmp_path, decay):
    changes = {"average": decay, "outer_steps": 3, "validate_every": 3}
    trainer = MetaTrainer(config(tmp_path, **changes))

    def weights(module):
        return torch.cat([p.detach().flatten() for p in module.parameters()])

    expected = weights(trainer.metanet)
    real_step = trainer.step

    def step():
        nonlocal expected
        outcomes = real_step()
        expected = decay * expected + (1 - decay) * weights(trainer.metanet)
        return outcomes

    trainer.step = step
    trainer.run()
    kept = load_pretrained(tmp_path / "best.safetensors").metanet
    torch.testing.assert_close(weights(kept), expected, rtol=1e-6, atol=1e-9)
    assert torch.equal(weights(kept), weights(trainer.metanet)) == (decay == 0)
    optimizee = Optimizee(load_problem(TOY), derive_seed(trainer.config.seed, 11, 0))
    found = whole_run(optimizee, trainer.averaged, trainer.config.horizon)
    assert trainer.log[-1]["loss"] == pytest.approx(found.loss, rel=1e-6)


def test_a_mean_that_never_moves_is_refused(tmp_path):
    with pytest.raises(
        ValueError, match=r"average: expected a decay in \[0, 1\); got 1"
    ):
        config(tmp_path, average=1.0)


def test_a_file_in_place_of_the_folder_is_named(tmp_path):
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(ValueError, match=f"folder '{file}': expected a folder"):
        MetaTrainer(config(file)).run()


def test_diverged_optimizees_are_begun_anew_and_skipped(tmp_path):
    trainer = MetaTrainer(config(tmp_path))
    with torch.no_grad():
        trainer.metanet.head.layers[-1].bias.fill_(1e6)
    trainer.step()
    assert [slot.life for slot in trainer.optimizees] == [1, 1]
    assert all(slot.state is None for slot in trainer.optimizees)
    assert all(p.isfinite().all() for p in trainer.metanet.parameters())


def test_optimizees_have_different_ages(tmp_path):
    trainer = MetaTrainer(config(tmp_path, optimizees=4, loss_limit=1e6))
    for _ in range(6):
        trainer.step()
    assert len({slot.age for slot in trainer.optimizees}) == 4
    assert len({trainer.schedule.seed(slot) for slot in trainer.optimizees}) == 4


def estimate(gradient, meta_loss=1.0, inner_loss=1.0):
    return Estimate(*map(torch.tensor, (gradient, meta_loss, inner_loss)))


def test_unusable_estimates_and_clipping():
    assert usable(estimate([1.0, 1.0]))
    assert not usable(estimate([1.0, 1.0], meta_loss=float("nan")))
    assert not usable(estimate([1.0, 1.0], inner_loss=float("inf")))
    assert not usable(estimate([1.0, float("inf")]))
    torch.testing.assert_close(
        clip(torch.tensor([3.0, 4.0]), 1.0), torch.tensor([0.6, 0.8])
    )
    assert torch.equal(clip(torch.tensor([0.3, 0.4]), 1.0), torch.tensor([0.3, 0.4]))


def test_learning_rate_schedule(tmp_path):
    settings = config(tmp_path, outer_steps=102, warmup=2)
    factors = [learning_rate_factor(step, settings) for step in (1, 2, 52, 102)]
    assert factors == pytest.approx([0.5, 1.0, 0.505, 0.01])


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


class TestErrors:
    def test_names(self, tmp_path):
        with pytest.raises(
            ValueError,
            match="metanet 'adam': expected one of ff, lstm, nfn, ng-gnn, ng-t",
        ):
            MetaTrainer(config(tmp_path, metanet="adam"))
        with pytest.raises(
            ValueError,
            match="problem 'fm-17': expected one of fm-16, fm-8, mlp-fm28",
        ):
            MetaTrainer(config(tmp_path, problems=("fm-17",)))
        with pytest.raises(ValueError, match=r"problem 'no.module:make'.*no"):
            load_problem("no.module:make")
        with pytest.raises(
            ValueError,
            match="estimator 'rl': expected one of tbptt, tbptt-2, pes, es, imitation",
        ):
            MetaTrainer(config(tmp_path, estimator="rl"))

    def test_weights_of_another_metanet(self, tmp_path):
        MetaTrainer(config(tmp_path, metanet="ng-gnn", outer_steps=1)).run()
        with pytest.raises(ValueError, match="expected metanet 'ff'; got 'ng-gnn'"):
            MetaTrainer(
                config(tmp_path / "2", init_from=str(tmp_path / "best.safetensors"))
            )

    def test_checkpoint_of_other_settings(self, tmp_path):
        MetaTrainer(config(tmp_path, outer_steps=2)).run()
        with pytest.raises(ValueError, match=r"checkpoint .* lr 0.001, got 0.5"):
            MetaTrainer(config(tmp_path, outer_steps=2, lr=0.5)).run()

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["--learning-rate", "1"], "learning-rate"),
            (["--metanet", "adam"], "metanet 'adam'"),
        ],
    )
    def test_mistakes_on_the_command_line(
        self, tmp_path, monkeypatch, capsys, arguments, message
    ):
        monkeypatch.setattr(
            "sys.argv", ["train", "--folder", str(tmp_path / "new"), *arguments]
        )
        with pytest.raises(SystemExit) as caught:
            cli.main(Config, train.run, None)
        assert caught.value.code == 2
        assert message in capsys.readouterr().err
        assert not (tmp_path / "new").exists()


def test_overrides_reach_the_metanet(tmp_path):
    trainer = MetaTrainer(
        config(tmp_path, metanet_config={"output_scale": 0.5, "hidden": 8})
    )
    assert isinstance(trainer.metanet, FeedForward)
    assert trainer.metanet.head.output_scale == 0.5
    assert trainer.metanet.config.hidden == (8, 8)
    wide = MetaTrainer(
        config(
            tmp_path,
            metanet="ng-t",
            init_from="ff",
            metanet_config={"width": 16, "layers": 1},
        )
    )
    assert (
        wide.metanet.config.width,
        len(wide.metanet.transformer.layers),
    ) == (16, 1)
    with pytest.raises(
        ValueError,
        match="metanet_config: expected some of hidden, output_scale.*; got 'heads'",
    ):
        MetaTrainer(config(tmp_path, metanet_config={"heads": 2}))
