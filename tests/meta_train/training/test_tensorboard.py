"""Curves of a meta-training, read back as TensorBoard reads them."""

import json

import pytest

from meta_train.training import train
from meta_train.training.train import MetaTrainer
from tests.curves import curves
from tests.meta_train.training.test_train import config


def test_curves_equal_the_log_and_continue_when_resumed(tmp_path):
    MetaTrainer(config(tmp_path, outer_steps=2)).run()
    last = MetaTrainer(config(tmp_path, outer_steps=4))
    last.run()
    found = curves(tmp_path)
    lines = (tmp_path / "log.jsonl").read_text().splitlines()
    for step, value in found["validation/loss"]:
        (record,) = [x for x in map(json.loads, lines) if x["outer_step"] == step]
        assert abs(value - record["loss"]) < 1e-5 * record["loss"]
    assert [step for step, _ in found["validation/loss"]] == [2, 4]
    assert [step for step, _ in found["meta_loss"]] == [1, 2, 3, 4]
    assert all(value > 0 for _, value in found["meta_gradient_norm"])
    names = {name for name, _ in last.metanet.named_parameters()}
    assert {tag.removeprefix("meta_gradient/") for tag in found} >= names
    shares = [rows for tag, rows in found.items() if tag.startswith("update_to_weight")]
    assert len(shares) > 1
    assert all(0 < value < 1 for rows in shares for _, value in rows)


@pytest.mark.parametrize(("horizon", "expected"), [(1, [1]), (3, [2, 1]), (9, [3, 1])])
def test_updates_are_logged_within_the_horizon(
    tmp_path, monkeypatch, horizon, expected
):
    unrolled = []
    unroll = train.unroll

    def recorded(optimizee, start, rule, steps, hyper):
        unrolled.append(steps)
        return unroll(optimizee, start, rule, steps, hyper)

    monkeypatch.setattr(train, "unroll", recorded)
    MetaTrainer(config(tmp_path, outer_steps=1, horizon=horizon, truncation=1)).run()
    assert unrolled == expected
