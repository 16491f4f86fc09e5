import json
import re
from dataclasses import replace
from functools import partial

import pytest
import torch

from harness import cli
from harness.errors import Interrupted
from harness.random import derive_seed
from meta_train.problems import load_problem
from meta_train.selection import sweep
from meta_train.training import train
from meta_train.training.config import ESTIMATORS
from meta_train.training.estimators import Estimate
from meta_train.training.train import Config, MetaTrainer, learning_rate_factor
from meta_train.training.unroll import Optimizee, whole_run
from meta_train.training.worker import result_of
from ngopt import load_pretrained
from ngopt.metanets import FeedForward
from tests.graph_checks import assert_equal

TOY = "tests.meta_train.closed_form:Regression32"


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


def log_of(folder):
    return list(map(json.loads, (folder / "log.jsonl").read_text().splitlines()))


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
    assert_equal(whole.metanet.parameters(), resumed.metanet.parameters())
    assert_equal(whole.mean.parameters(), resumed.mean.parameters())
    logs = [log_of(tmp_path / name) for name in ("whole", "broken")]
    assert logs[0] == logs[1]
    assert [record["outer_step"] for record in logs[0]] == [2, 4, 6]


@pytest.mark.parametrize("estimator", ["tbptt", "tbptt-2", "pes"])
def test_an_interrupted_outer_step_is_repeated(tmp_path, estimator, monkeypatch):
    settings = {"estimator": estimator, "validate_every": 6}
    whole = MetaTrainer(config(tmp_path / "whole", **settings))
    whole.run()
    path = tmp_path / "broken" / "checkpoint.pt"
    broken = config(tmp_path / "broken", **settings)
    with monkeypatch.context() as patch:
        patch.setattr(MetaTrainer, "step", stopped_in_unroll(MetaTrainer.step, at=4))
        message = f"checkpoint '{path}' stands at outer step 4; the same command"
        with pytest.raises(Interrupted, match=re.escape(message)):
            train.run(broken)
    resumed = MetaTrainer(broken)
    resumed.run()
    assert_equal(whole.metanet.parameters(), resumed.metanet.parameters())
    assert [record["outer_step"] for record in resumed.log] == [6]


def test_user_metanets_are_trained_resumed_and_swept(tmp_path, capsys):
    own = {"metanet": "tests.user_classes:Halved"}
    train.run(config(tmp_path, **own))
    train.run(config(tmp_path, **own, outer_steps=8))
    best, scaled = (str(tmp_path / f"{name}.safetensors") for name in ("best", "gain"))
    assert type(load_pretrained(best).metanet).__name__ == "Halved"
    sizes = {"problems": (TOY,), "gains": (1.0, 2.0), "seeds": 1, "steps": 4}
    sweep.run(sweep.Config(weights=best, output=scaled, **own, **sizes))
    assert type(load_pretrained(scaled).metanet).__name__ == "Halved"
    message = "expected 'Own' in module 'tests.user_classes'"
    with pytest.raises(ValueError, match=message):
        train.run(config(tmp_path / "odd", metanet="tests.user_classes:Own"))


def test_messages_about_other_numbers_of_outer_steps(tmp_path, capsys):
    train.run(config(tmp_path, outer_steps=3))
    found = capsys.readouterr()
    assert "outer_steps" not in found.out + found.err
    assert "validating" in found.err
    best = tmp_path / "best.safetensors"
    assert f"best weights: {best}\n" in found.out
    assert f"meta_train.selection.sweep --weights {best} --output " in found.out
    train.run(config(tmp_path, outer_steps=4))
    found = capsys.readouterr().out
    assert "of a run of 3 outer steps. The learning rate now falls until" in found
    assert "nothing is left" not in found
    train.run(config(tmp_path, outer_steps=4))
    assert "stands at outer step 4: nothing is left" in capsys.readouterr().out
    train.run(config(tmp_path, outer_steps=2))
    found = capsys.readouterr()
    assert "stands at outer step 4: nothing is left" in found.out
    assert "4/4" in found.err


def test_a_warmup_without_an_end_warns(tmp_path, capsys):
    train.run(config(tmp_path, outer_steps=3, warmup=3))
    assert "warning: 3 outer steps are not more than" in capsys.readouterr().out


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


def test_an_interrupted_validation_is_repeated(tmp_path, monkeypatch):
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


@pytest.mark.parametrize("estimator", sorted(ESTIMATORS))
def test_every_estimator_trains(tmp_path, estimator):
    trainer = MetaTrainer(config(tmp_path, estimator=estimator, outer_steps=2))
    before = [p.detach().clone() for p in trainer.metanet.parameters()]
    trainer.run()
    after = list(trainer.metanet.parameters())
    assert not all(map(torch.equal, before, after))
    assert all(p.isfinite().all() for p in after)


def test_meta_training_learns(tmp_path):
    sizes = {"outer_steps": 60, "horizon": 20, "truncation": 10, "validate_every": 20}
    trainer = MetaTrainer(config(tmp_path, **sizes, lr=3e-3, warmup=5))
    untrained = trainer.validate()
    trainer.best = float("inf")
    trainer.run()
    losses = [record["loss"] for record in log_of(tmp_path)]
    assert min(losses[1:]) < 0.7 * untrained.loss


def test_best_weights_are_exported_with_config_and_recipe(tmp_path):
    trainer = MetaTrainer(config(tmp_path))
    trainer.run()
    best = load_pretrained(tmp_path / "best.safetensors")
    lowest = min(log_of(tmp_path), key=lambda record: record["loss"])
    assert best.table["validation"] == lowest
    (stage,) = best.recipe["stages"]
    assert stage["problems"] == [TOY]
    assert stage["lr"] == 1e-3
    assert json.loads((tmp_path / "config.json").read_text())["horizon"] == 12
    assert any(path.name.startswith("events.") for path in tmp_path.iterdir())
    # weights go into the next stage, those of an FF as the head of an NG-GNN that
    # predicts the same
    start = {"metanet": "ng-gnn", "init_from": str(tmp_path / "best.safetensors")}
    second = MetaTrainer(config(tmp_path / "2", **start))
    assert len(second.trained().recipe["stages"]) == 2
    torch.manual_seed(0)
    inputs = torch.randn(26, 14), trainer.worker.optimizee(0).graph
    torch.testing.assert_close(second.metanet(*inputs), best.metanet(*inputs))


@pytest.mark.parametrize("decay", [0.0, 0.75])
def test_a_running_mean_of_weights_is_validated_and_stored(tmp_path, decay):
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


def test_a_file_in_place_of_the_folder_is_refused(tmp_path):
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(ValueError, match=f"folder '{file}': expected a folder"):
        MetaTrainer(config(file)).run()


def reduced_to(gradient, meta_loss=1.0, inner_loss=1.0):
    estimate = Estimate(*map(torch.tensor, (gradient, meta_loss, inner_loss)))
    return result_of(estimate, 1.0, 1.0)


def test_unusable_estimates_and_clipping():
    assert reduced_to([1.0, 1.0]).is_usable
    assert not reduced_to([1.0, 1.0], meta_loss=float("nan")).is_usable
    assert not reduced_to([1.0, 1.0], inner_loss=float("inf")).is_usable
    assert not reduced_to([1.0, float("inf")]).is_usable
    clipped = reduced_to([3.0, 4.0])
    torch.testing.assert_close(clipped.meta_gradient, torch.tensor([0.6, 0.8]))
    assert clipped.norm == 5
    short = torch.tensor([0.3, 0.4])
    assert torch.equal(reduced_to(short.tolist()).meta_gradient, short)


def test_learning_rate_schedule(tmp_path):
    settings = config(tmp_path, outer_steps=102, warmup=2)
    factors = [learning_rate_factor(step, settings) for step in (1, 2, 52, 102)]
    assert factors == pytest.approx([0.5, 1.0, 0.505, 0.01])


class TestErrors:
    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            (
                {"metanet": "adam"},
                "metanet 'adam': expected one of ff, lstm, nfn, ng-gnn, ng-t",
            ),
            (
                {"problems": ("fm-17",)},
                "problem .fm-17.: expected a known name.*Nearest: fm-16.*--names",
            ),
            ({"problems": ("no.module:make",)}, r"problem 'no.module:make'.*no"),
            (
                {"estimator": "rl"},
                "estimator: expected one of tbptt, tbptt-2, pes, es; got 'rl'",
            ),
            ({"average": 1.0}, r"average: expected a decay in \[0, 1\); got 1"),
            ({"estimator": "es", "shortest": 3}, "shortest: expected none with es"),
            (
                {"metanet_config": {"heads": 2}},
                "metanet_config: expected some of hidden, output_scale.*; got 'heads'",
            ),
        ],
    )
    def test_settings(self, tmp_path, changes, message):
        with pytest.raises(ValueError, match=message):
            MetaTrainer(config(tmp_path, **changes))

    def test_weights_of_another_metanet(self, tmp_path):
        MetaTrainer(config(tmp_path, metanet="ng-gnn", outer_steps=1)).run()
        other = config(tmp_path / "2", init_from=str(tmp_path / "best.safetensors"))
        with pytest.raises(ValueError, match="expected metanet 'ff'; got 'ng-gnn'"):
            MetaTrainer(other)

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
        folder = str(tmp_path / "new")
        monkeypatch.setattr("sys.argv", ["train", "--folder", folder, *arguments])
        with pytest.raises(SystemExit) as caught:
            cli.main(Config, train.run, None)
        assert caught.value.code == 2
        assert message in capsys.readouterr().err
        assert not (tmp_path / "new").exists()


def test_overrides_reach_the_metanet(tmp_path):
    own = {"output_scale": 0.5, "hidden": 8}
    trainer = MetaTrainer(config(tmp_path, metanet_config=own))
    assert isinstance(trainer.metanet, FeedForward)
    assert trainer.metanet.head.output_scale == 0.5
    assert trainer.metanet.config.hidden == (8, 8)
    own = {"width": 16, "layers": 1}
    settings = {"metanet": "ng-t", "init_from": "ff", "metanet_config": own}
    wide = MetaTrainer(config(tmp_path, **settings)).metanet
    assert (wide.config.width, len(wide.transformer.layers)) == (16, 1)
