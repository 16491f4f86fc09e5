import json
from dataclasses import replace
from statistics import fmean

import pytest
import torch
from tqdm import tqdm

from harness.random import seeded
from meta_train.comparison import inner_training, runs
from meta_train.comparison.optimizers import load_optimizer
from meta_train.comparison.runs import Run, execute, read_records, record_path, train
from meta_train.training.unroll import Optimizee, unroll
from ngopt import load_pretrained
from ngopt.pretrained import weights_hash
from tests.meta_train.small import SILENT, TOY, Toy

ADAM = Run(TOY, "adam", 0.01, None, seed=0, steps=12, phase="evaluation", curve_every=5)
TIMES = ("ms_per_step", "optimizer_ms_per_step", "seconds")


@pytest.fixture
def bar():
    with tqdm(disable=True) as bar:
        yield bar


@pytest.fixture
def learned(ff_weights):
    """A run with random weights, and its learned optimizer."""
    learned = load_pretrained(ff_weights)
    run = replace(ADAM, optimizer=ff_weights, lr=None, weights=weights_hash(learned))
    return run, learned


def without_times(record):
    return {key: value for key, value in record.items() if key not in TIMES}


def plain_losses(model, optimizer, steps):
    """Of a loop as a user writes it, with the batches and dropout of seed 0."""
    losses = []
    for step in range(steps):
        with seeded(0, 2, step):
            loss = Toy().loss(model, Toy().batch(0, step))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def test_initial_weights_batches_and_dropout_depend_on_the_seed_alone(learned):
    # At learning rate 0 the weights stay, so every loss shows the batch and the dropout
    # of its step.
    runs = [ADAM, replace(ADAM, optimizer="muon-cosine"), learned[0]]
    first, *others = [train(replace(run, lr=0.0))["losses"] for run in runs]
    assert len(set(first)) == ADAM.steps
    assert all(losses == first for losses in others)
    assert train(replace(ADAM, lr=0.0, seed=1))["losses"][0] != first[0]


def test_run_of_a_metanet_equals_the_unroll_of_meta_training(learned):
    run, optimizer = learned
    optimizee = Optimizee(Toy(), run.seed)
    rule = optimizer.bind(optimizee.graph, run.steps)
    inner, losses = unroll(optimizee, optimizee.start(rule), rule, run.steps)
    record = train(run)
    torch.testing.assert_close(torch.tensor(record["losses"]), losses)
    expected = Toy().evaluate(optimizee.model_at(inner), "test")
    assert record["test"]["accuracy"] == expected.accuracy


def test_record_equals_a_plain_training_loop():
    problem, model = Toy(), Toy().init(0)
    losses = plain_losses(model, torch.optim.Adam(model.parameters(), lr=0.01), 60)
    record = train(replace(ADAM, steps=60, curve_every=25))
    assert record["losses"] == losses
    assert record["train_loss"] == pytest.approx(fmean(losses[10:]))
    assert record["curve"]["steps"] == [0, 25, 50, 60]
    for split in ("validation", "test"):
        assert record[split] == problem.evaluate(model.eval(), split)._asdict()
    assert record["curve"]["accuracy"][-1] == record["validation"]["accuracy"]
    assert record["curve"]["loss"][-1] == record["validation"]["loss"]
    assert 0 < record["optimizer_ms_per_step"] < record["ms_per_step"]


def test_a_problem_without_accuracy_is_recorded_by_its_loss():
    silent = train(replace(ADAM, problem=SILENT))
    spoken = train(ADAM)
    assert silent["test"] == {"loss": spoken["test"]["loss"], "accuracy": None}
    assert silent["curve"]["accuracy"] == [None] * 4
    assert silent["curve"]["loss"] == spoken["curve"]["loss"]


def test_averaged_weights_are_evaluated():
    run = replace(ADAM, optimizer="schedule-free", steps=30, curve_every=0)
    record = train(run)
    problem, model = Toy(), Toy().init(0)
    optimizer, _ = load_optimizer("schedule-free").build(model, run.lr, 30)
    assert record["losses"][-1] == plain_losses(model, optimizer, 30)[-1]
    training_weights = [p.detach().clone() for p in model.parameters()]
    optimizer.eval()
    assert not torch.equal(training_weights[0], next(model.parameters()))
    with seeded(0, 5):  # running statistics of the averaged weights
        for step in range(inner_training.STATISTICS_BATCHES):
            problem.loss(model, problem.batch(0, step))
    expected = problem.evaluate(model.eval(), "validation")
    assert record["validation"]["loss"] == pytest.approx(expected.loss, rel=1e-6)


def test_evaluation_of_averaged_weights_does_not_change_the_run():
    run = replace(ADAM, optimizer="schedule-free", steps=30)
    watched = train(replace(run, curve_every=3))["losses"]
    plain = train(replace(run, curve_every=0))["losses"]
    assert watched == pytest.approx(plain, rel=1e-4)


def test_the_scheduler_acts_after_each_step():
    # twelve steps have one of warm-up; the first two rates are whole, the third is the
    # first less
    names = "adam", "adam-cosine"
    constant, cosine = (
        train(replace(ADAM, optimizer=name))["losses"] for name in names
    )
    assert cosine[:3] == constant[:3]
    assert cosine[3] != constant[3]


def test_tuning_does_not_evaluate_the_test_split(monkeypatch):
    splits, evaluate = set(), Toy.evaluate

    def spy(self, model, split, limit=None):
        splits.add(split)
        return evaluate(self, model, split, limit)

    monkeypatch.setattr(Toy, "evaluate", spy)
    assert "test" not in train(replace(ADAM, phase="tuning"))
    assert splits == {"validation"}
    train(ADAM)
    assert splits == {"validation", "test"}


def test_a_run_that_diverges_is_recorded():
    record = train(replace(ADAM, lr=1e37))
    assert record["diverged"]
    assert record["train_loss"] is None
    assert None in record["losses"]
    assert 0 <= record["test"]["accuracy"] <= 1
    json.dumps(record, allow_nan=False)
    assert not train(ADAM)["diverged"]


def test_timing_is_of_a_step_of_both():
    timing = inner_training.time_in_turns(
        replace(ADAM, phase="timing", weights=load_optimizer("default").weights)
    )
    assert timing["ms_per_step"] > 0 and timing["default_ms_per_step"] > 0
    json.dumps(timing, allow_nan=False)
    with pytest.raises(ValueError, match="'default': expected weights None; got"):
        inner_training.time_in_turns(replace(ADAM, phase="timing"))


def test_weights_with_another_hash_are_an_error(learned):
    with pytest.raises(ValueError, match="expected weights abc; got"):
        train(replace(learned[0], weights="abc"))


def test_finished_runs_are_read_and_the_others_made(tmp_path, bar, monkeypatch):
    other = replace(ADAM, seed=1)
    (first,) = execute([ADAM], tmp_path, 1, bar)
    made = []
    monkeypatch.setattr(runs, "train", lambda run: (made.append(run), train(run))[1])
    again, second = execute([ADAM, other], tmp_path, 1, bar)
    assert made == [other]
    assert again == first
    assert second["run"]["seed"] == 1


def test_an_interruption_keeps_what_was_finished(tmp_path, bar, monkeypatch):
    other = replace(ADAM, seed=1)

    def interrupted(run):
        if run == other:
            raise KeyboardInterrupt
        return train(run)

    monkeypatch.setattr(runs, "train", interrupted)
    with pytest.raises(KeyboardInterrupt):
        execute([ADAM, other], tmp_path, 1, bar)
    assert list(read_records(tmp_path, [ADAM, other])) == [ADAM]


def test_truncated_line_is_run_again(tmp_path, bar):
    other = replace(ADAM, seed=1)
    third = replace(ADAM, seed=2)
    expected = execute([ADAM, other], tmp_path, 1, bar)
    path = record_path(tmp_path, ADAM)
    path.write_text(path.read_text()[:-100])
    assert list(read_records(tmp_path, [ADAM])) == [ADAM]
    execute([third], tmp_path, 1, bar)
    again = execute([ADAM, other, third], tmp_path, 1, bar)
    assert list(map(without_times, again[:2])) == list(map(without_times, expected))
    assert path.read_text().count("\n") == 4


def test_long_runs_keep_mean_losses(monkeypatch):
    single = train(ADAM)["losses"]
    monkeypatch.setattr(inner_training, "LOSS_POINTS", 2)
    record = train(replace(ADAM, steps=11))
    assert record["losses_every"] == 5
    parts = single[:5], single[5:10], single[10:11]
    assert record["losses"] == pytest.approx(list(map(fmean, parts)))


def test_runs_differ_by_every_field(tmp_path, bar):
    execute([ADAM], tmp_path, 1, bar)
    names = {"problem": "a", "optimizer": "b", "weights": "c", "phase": "tuning"}
    numbers = {"lr": 1.0, "seed": 9, "steps": 9, "curve_every": 9}
    for field, value in {**names, **numbers}.items():
        other = replace(ADAM, **{field: value})
        assert other not in read_records(tmp_path, [ADAM, other]), field


@pytest.mark.slow
def test_processes_change_nothing_but_the_times(tmp_path, bar, forked):
    pending = [replace(ADAM, seed=seed) for seed in range(3)]
    spread = execute(pending, tmp_path, 2, bar)
    alone = [train(run) for run in pending]
    for a, b in zip(spread, alone, strict=True):
        assert {**without_times(a), "threads": 0} == {**without_times(b), "threads": 0}
    assert {record["threads"] for record in spread} == {1}
