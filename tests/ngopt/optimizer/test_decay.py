"""Runs whose step size never decays to zero are told so once."""

import logging
import warnings

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR, MultiStepLR

from ngopt import NGOptimizer
from ngopt.optimizer.learning_rates import LONG_RUN

STEPS = 40


def train(p, opt, steps, scheduler=None):
    for _ in range(steps):
        p.grad = torch.ones_like(p)
        opt.step()
        if scheduler is not None:
            scheduler.step()


def made(**settings):
    p = nn.Parameter(torch.zeros(3))
    return p, NGOptimizer([p], **settings)


def test_a_scheduler_that_only_warms_up():
    p, opt = made(total_steps=STEPS)
    scheduler = LambdaLR(opt, lambda step: min(1.0, (step + 1) / 8))
    with pytest.warns(UserWarning, match="for 38 steps, in place of the decay") as said:
        train(p, opt, STEPS, scheduler)
    assert [warning.filename for warning in said] == [__file__]


@pytest.mark.parametrize(
    ("steps", "milestone"), [(STEPS, 30), (STEPS, 37), (10, 20)], ids=str
)
def test_schedulers_that_fall_and_short_runs_are_not_warned_of(steps, milestone):
    p, opt = made(total_steps=steps)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train(p, opt, steps, MultiStepLR(opt, [milestone]))


@pytest.mark.parametrize(
    ("settings", "is_read", "count"),
    [({}, False, 1), ({}, True, 0), ({"total_steps": 2 * LONG_RUN}, False, 0)],
    ids=["unread", "read", "with a horizon"],
)
def test_a_long_run_without_a_horizon_is_reminded_of_the_average(
    settings, is_read, count, caplog
):
    p, opt = made(**settings)
    train(p, opt, 1)
    if is_read:
        with opt.averaged():
            pass
    with caplog.at_level(logging.WARNING, "ngopt"):
        train(p, opt, LONG_RUN + 10)
    assert caplog.text.count("end with opt.load_average()") == count


def test_a_scheduler_that_falls_needs_no_average(caplog):
    p, opt = made()
    train(p, opt, LONG_RUN + 10, LambdaLR(opt, lambda step: 1 - step / 400))
    assert "load_average" not in caplog.text
