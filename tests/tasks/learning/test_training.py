import re
from dataclasses import replace
from math import nan

import pytest
import torch
from torch import nn

from harness.checkpoint import checkpoint_message
from harness.errors import Interrupted
from tasks.learning.training import Trainer, TrainingConfig, rate_factor
from tests.curves import curves


class Line:
    """A line is fitted to a line; scores are given, or negative distances."""

    def __init__(self, scores=None):
        torch.manual_seed(0)
        self.model = nn.Linear(2, 1)
        self.scores = scores
        self.steps = []

    def begin(self, share):
        return 0

    def loss(self, step):
        self.steps.append(step)
        x = torch.randn(8, 2)
        return (self.model(x) - x.sum(1, keepdim=True)).square().mean()

    def score(self):
        if self.scores:
            return self.scores.pop(0)
        return -(self.model.weight - 1).abs().max().item()


pytestmark = pytest.mark.usefixtures("clock")
CONFIG = TrainingConfig(minutes=1, validations=6, lr=0.05)


def trained(folder, task=None, config=CONFIG, **settings):
    task = task or Line()
    trainer = Trainer(task, config, folder, settings)
    trainer.run()
    return task, trainer.progress


def test_a_budget_is_used_up_in_equal_distances(tmp_path):
    task, progress = trained(tmp_path)
    assert task.steps == list(range(62))  # the first two are not counted
    assert progress.seconds == progress.counted == 60
    assert len(progress.scores) == 6
    assert progress.scores[-1] > -0.1


class TwoStages(Line):
    """In two stages."""

    share = 0.0

    def begin(self, share):
        self.share = share
        return int(share >= 0.5)


def test_the_first_steps_of_another_stage_are_not_counted(tmp_path):
    task, progress = trained(tmp_path, TwoStages())
    assert task.steps == list(range(64))
    assert progress.seconds == progress.counted == 60
    assert task.share == pytest.approx(59 / 60)


def test_the_best_model_is_one_of_the_last_stage(tmp_path):
    config = replace(CONFIG, patience=2)
    scores = [0.8, 0.9, 0.7, 0.3, 0.5, 0.4]
    task, progress = trained(tmp_path, TwoStages(list(scores)), config)
    assert progress.scores == scores
    assert progress.top == 0.5
    assert torch.equal(task.model.weight, progress.best["weight"])


@pytest.mark.parametrize(
    ("scores", "top"),
    [([0.1, 0.9, 0.3, 0.2, 0.4, 0.5], 0.9), ([nan, 0.1, nan, 0.3, 0.2, 0.2], 0.3)],
    ids=["numbers", "nan is the worst"],
)
def test_the_best_model_stays(tmp_path, scores, top):
    task, progress = trained(tmp_path, Line(list(scores)))
    assert progress.top == top
    assert torch.equal(task.model.weight, progress.best["weight"])
    assert (task.model.weight - 1).abs().max() > 0.05  # it was not the last


def test_without_a_better_model_training_ends(tmp_path):
    config = replace(CONFIG, patience=2)
    _, progress = trained(tmp_path, Line([0.5, 0.4, 0.3, 0.2, 0.9]), config)
    assert progress.scores == [0.5, 0.4, 0.3]


def test_a_run_resumes_where_it_stopped(tmp_path):
    class Stopped(Line):
        def loss(self, step):
            if step == 35:
                raise KeyboardInterrupt
            return super().loss(step)

    whole, _ = trained(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path / "parts", Stopped())
    rest, progress = trained(tmp_path / "parts")
    assert 20 < rest.steps[0] <= 35
    assert torch.equal(rest.model.weight, whole.model.weight)
    assert len(progress.scores) == 6
    shown = curves(tmp_path / "parts")
    assert [step for step, _ in shown["loss"]] == list(range(1, progress.steps + 1))
    assert len(shown["validation"]) == 6


def test_a_folder_with_other_settings_is_refused(tmp_path):
    trained(tmp_path, data="a")
    path = tmp_path / "checkpoint.pt"
    message = f"checkpoint '{path}': made with other settings: data 'a', got 'b'"
    with pytest.raises(ValueError, match=message):
        trained(tmp_path, data="b")


def test_a_damaged_checkpoint_is_named(tmp_path):
    trained(tmp_path)
    path = tmp_path / "checkpoint.pt"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ValueError, match=f"file '{path}': expected tensors"):
        trained(tmp_path)


def test_the_default_optimizer_trains_without_a_learning_rate(tmp_path):
    _, progress = trained(tmp_path, config=replace(CONFIG, trainer="ngopt"))
    assert progress.scores[-1] > progress.scores[0]


def test_the_learning_rate_rises_and_falls():
    factors = [round(rate_factor(share), 6) for share in [0, 0.025, 0.05, 0.525, 1]]
    assert factors == [0.02, 0.5, 1.0, 0.5, 0.0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"trainer": "sgd"}, "trainer: expected one of adamw, ngopt; got 'sgd'"),
        ({"minutes": 0}, "minutes: expected more than 0; got 0"),
    ],
)
def test_invalid_settings_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        replace(CONFIG, **change)


class Stopping(Line):
    """With running statistics; Ctrl-C comes in the loss of a step, after the forward
    pass."""

    def __init__(self, at=None):
        super().__init__()
        self.model = nn.Sequential(nn.Linear(2, 1), nn.BatchNorm1d(1))
        self.at = at

    def loss(self, step):
        loss = super().loss(step)
        if step == self.at:
            raise KeyboardInterrupt
        return loss

    def score(self):
        if self.at == "validation":
            raise KeyboardInterrupt
        return -self.model[0].weight.abs().max().item()


@pytest.mark.parametrize("at, steps", [(5, 5), (40, 40), ("validation", 12)])
def test_ctrl_c_keeps_all_finished_steps(tmp_path, at, steps):
    path = tmp_path / "broken" / "checkpoint.pt"
    message = f"'{path}' stands at step {steps}; the same command with --folder"
    with pytest.raises(Interrupted, match=re.escape(f"checkpoint {message}")):
        trained(tmp_path / "broken", Stopping(at))
    broken, progress = trained(tmp_path / "broken", Stopping())
    assert broken.steps[0] == steps
    # a new process does not count its first two steps
    whole, _ = trained(tmp_path / "whole", Stopping())
    assert whole.steps == list(range(62)) and broken.steps[-1] == 63
    assert len(progress.scores) == 6


def test_ctrl_c_changes_no_step(tmp_path):
    trainer = Trainer(Stopping(5), CONFIG, tmp_path / "broken", {})
    with pytest.raises(Interrupted):
        trainer.run()
    resumed = Trainer(Stopping(), CONFIG, tmp_path / "broken", {})
    resumed.load_checkpoint()
    whole = Trainer(Stopping(), CONFIG, tmp_path / "whole", {})
    for _ in range(5):
        whole.step()
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, resumed.model.state_dict()[name]), name
    assert whole.progress.steps == resumed.progress.steps


def test_an_interruption_before_the_first_checkpoint(tmp_path):
    trainer = Trainer(Stopping(), CONFIG, tmp_path, {})
    message = checkpoint_message(tmp_path, trainer.saved_step)
    assert "was not written yet" in message
    assert not (tmp_path / "checkpoint.pt").exists()
