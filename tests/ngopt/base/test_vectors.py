"""Vectors by hand: Adam with Nesterov's momentum, in the scale of the gradients."""

import pytest
import torch
from torch import nn

from ngopt import build_graph
from ngopt.base.direction import DirectionConfig, direction, init_direction
from ngopt.base.layout import MatrixLayout
from ngopt.base.measure import measure
from ngopt.base.soap import Soap, SoapConfig
from ngopt.base.vectors import vector_directions
from ngopt.functional import Hyper, update_all


def gradients(size, steps, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(steps, size, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("total_steps", [None, 10])
@pytest.mark.parametrize("nesterov", [1.0, 0.0, 0.5])
def test_a_bias_is_adam_by_hand(total_steps, nesterov):
    config = SoapConfig(nesterov=nesterov, bias=0.7, epsilon=1e-3)
    linear = nn.Linear(3, 4, dtype=torch.float64)
    rule = Soap(config).bind(build_graph(linear), total_steps=total_steps)
    p, x = linear.bias.detach().clone(), linear.bias.detach().clone().numpy()
    state = rule.init([linear.weight.detach(), p])
    m, v, size, average = 0.0, 0.0, 0.0, 0.0
    scale = 2.0 ** round(float((gradients(4, 8)[0].square().mean().sqrt()).log2()))
    for t, grad in enumerate(gradients(4, 8), start=1):
        grads = [torch.zeros(4, 3, dtype=torch.float64), grad]
        deltas, state = update_all(rule, grads, state, [linear.weight.detach(), p], Hyper([2.0] * 2, [0.0] * 2))
        p = p + deltas[1]

        g = grad.numpy() / scale
        m = 0.9 * m + 0.1 * g
        v = 0.95 * v + 0.05 * g**2
        size = 0.95 * size + 0.05 * (g**2).mean()
        ahead = nesterov * (0.9 * m + 0.1 * g) + (1 - nesterov) * m
        mean_square = size / (1 - 0.95**t)
        weights = nesterov * (1 - 0.9 ** (t + 1)) + (1 - nesterov) * (1 - 0.9**t)
        u = ahead / weights / (v / (1 - 0.95**t) + 1e-6 * mean_square) ** 0.5
        if total_steps is None:
            step_size = SoapConfig().open_step_size * min(1, t / 30) / (1 + (t - 1) / 50) ** 0.5
        else:
            step_size = SoapConfig().step_size * min(1, t / 1) * (1 - t / 11)
        x = x - 2.0 * 0.7 * step_size * u
        torch.testing.assert_close(p, torch.from_numpy(x), rtol=1e-6, atol=2e-8)
        share = 11 / (t + 10)
        average = (1 - share) * average + share * x
        if total_steps is None:
            torch.testing.assert_close(state[1]["average"], torch.from_numpy(average), rtol=1e-6, atol=2e-8)
        else:
            assert "average" not in state[1]


def test_many_at_once_are_what_each_is_alone():
    shapes = [(3,), (), (0,), (2, 2)]
    config = DirectionConfig()
    params = [torch.zeros(shape) for shape in shapes]
    layouts = [(MatrixLayout((1, 1, 1, p.numel())),) for p in params]
    records = [
        {"step": torch.zeros(()), "scale": torch.zeros(()), "size": torch.zeros(()), **init_direction(p, rows, p.dtype)}
        for p, rows in zip(params, layouts, strict=True)
    ]
    generator = torch.Generator().manual_seed(0)
    for step in range(4):
        grads = [torch.randn(shape, generator=generator) for shape in shapes]
        grads[0][1] = 0  # an element without any gradient
        measured = measure(grads, records, 10.0)
        together = vector_directions(grads, records, measured, config)
        for i, (value, new) in enumerate(together):
            expected, state = direction(grads[i], records[i], layouts[i], measured[i], config, renew=True)
            torch.testing.assert_close(value, expected, rtol=1e-5, atol=1e-7)
            assert new.keys() == state.keys()
            for key in new:
                torch.testing.assert_close(new[key], state[key], rtol=1e-6, atol=0)
            records[i] |= new
            records[i] |= {"step": records[i]["step"] + 1, "scale": measured[i].scale, "size": measured[i].size}
        assert together[0][0][1] == 0, step
