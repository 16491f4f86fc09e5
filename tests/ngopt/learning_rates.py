"""Runs with learning rates, and reference runs with the same factors in `scale`."""

from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.optim import lr_scheduler

from ngopt import NGOptimizer

STEPS = 12
NEVER = STEPS + 1
assert_close = partial(torch.testing.assert_close, rtol=1e-6, atol=1e-7)


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 3)).double()


def gradients(model, t):
    inputs = torch.randn(16, 5, generator=torch.Generator().manual_seed(t))
    model.zero_grad()
    F.cross_entropy(model(inputs.double()), inputs[:, :3].argmax(1)).backward()


def weights_of(model):
    return nn.utils.parameters_to_vector(model.parameters()).detach()


def write(opt, key, values):
    """Numbers of both groups, or one number."""
    values = np.broadcast_to(values, len(opt.param_groups)).tolist()
    for group, value in zip(opt.param_groups, values, strict=True):
        group[key] = value


def follow(model, opt, rates=None, scales=None, make=None, first=0, steps=range(STEPS)):
    """Weights after every step, (steps, n).

    rates, scales: are written before every step. make: a scheduler, before step
    `first`.
    """
    weights, scheduler = [], None
    for t in steps:
        gradients(model, t)
        if make is not None and t == first:
            scheduler = make(opt)
        for key, values in (("lr", rates), ("scale", scales)):
            if values is not None:
                write(opt, key, values[t])
        opt.step()
        advance(scheduler)
        weights.append(weights_of(model))
    return torch.stack(weights)


def advance(scheduler):
    if scheduler is not None:
        is_plateau = isinstance(scheduler, lr_scheduler.ReduceLROnPlateau)
        scheduler.step(*(1.0,) if is_plateau else ())


def run(*groups, lr=None, rule="default", total_steps=None, **steps):
    """`follow` of an optimizer with two groups, the layers."""
    model = network()
    layers = [{"params": model[0].parameters()}, {"params": model[2].parameters()}]
    groups = [x | y for x, y in zip(layers, groups or ({}, {}), strict=True)]
    opt = NGOptimizer(groups, lr=lr, rule=rule, total_steps=total_steps)
    return follow(model, opt, **steps)


def made(name, *args, **settings):
    return lambda opt: getattr(lr_scheduler, name)(opt, *args, **settings)


def reference(factors, first=0, **settings):
    """first: the step from which on a scheduler replaces the built-in schedule."""
    make = made("LambdaLR", lambda t: 1.0)
    return run(scales=factors, make=make, first=first, **settings)


def rates_of(make, lr):
    """The rates of a scheduler as AdamW has them."""
    opt = torch.optim.AdamW([nn.Parameter(torch.ones(1))], lr)
    scheduler, rates = make(opt), []
    for _ in range(STEPS):
        rates.append(opt.param_groups[0]["lr"])
        opt.step()
        advance(scheduler)
    return np.array(rates)
