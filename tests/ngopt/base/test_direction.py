"""Directions: of vectors by hand (Adam with Nesterov's momentum), of many parameters at once."""

from functools import partial
from math import prod

import pytest
import torch
from torch import nn

from ngopt import build_graph
from ngopt.base.arrays import column, of_all
from ngopt.base.batch import Batch
from ngopt.base.config import DirectionConfig, SoapConfig
from ngopt.base.direction import corrections, init_direction, step_numbers
from ngopt.base.layout import MatrixLayout
from ngopt.base.measure import measure, root_mean_squares, sizes_at
from ngopt.base.modes import Channels, Kernel, Rows
from ngopt.base.soap import Soap
from ngopt.base.step import Turn, shared
from ngopt.functional import Hyper, update_all
from ngopt.graph.core import View


def gradients(size, steps, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(steps, size, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("total_steps", [None, 10])
@pytest.mark.parametrize("nesterov", [1.0, 0.0, 0.5])
def test_a_bias_is_adam_by_hand(total_steps, nesterov):
    config = SoapConfig(nesterov=nesterov, bias=0.7, epsilon=1e-3)
    linear = nn.Linear(3, 4, dtype=torch.float64)
    rule = Soap(config).bind(build_graph(linear), total_steps=total_steps)
    p = linear.bias.detach().clone()
    x = linear.bias.detach().clone().numpy()
    state = rule.init([linear.weight.detach(), p])
    m, v, size, average = 0.0, 0.0, 0.0, 0.0
    scale = 2.0 ** round(
        float((gradients(4, 8)[0].square().mean().sqrt()).log2())
    )
    for t, grad in enumerate(gradients(4, 8), start=1):
        grads = [torch.zeros(4, 3, dtype=torch.float64), grad]
        deltas, state = update_all(
            rule,
            grads,
            state,
            [linear.weight.detach(), p],
            Hyper([2.0] * 2, [0.0] * 2),
        )
        p = p + deltas[1]

        g = grad.numpy() / scale
        m = 0.9 * m + 0.1 * g
        v = 0.95 * v + 0.05 * g**2
        size = 0.95 * size + 0.05 * (g**2).mean()
        ahead = nesterov * (0.9 * m + 0.1 * g) + (1 - nesterov) * m
        mean_square = size / (1 - 0.95**t)
        weights = nesterov * (1 - 0.9 ** (t + 1)) + (1 - nesterov) * (
            1 - 0.9**t
        )
        u = ahead / weights / (v / (1 - 0.95**t) + 1e-6 * mean_square) ** 0.5
        if total_steps is None:
            step_size = (
                SoapConfig().open_step_size
                * min(1, t / 30)
                / (1 + (t - 1) / 50) ** 0.5
            )
        else:
            step_size = SoapConfig().step_size * min(1, t / 1) * (1 - t / 11)
        x = x - 2.0 * 0.7 * step_size * u
        torch.testing.assert_close(p, torch.from_numpy(x), rtol=1e-6, atol=2e-8)
        share = 11 / (t + 10)
        average = (1 - share) * average + share * x
        if total_steps is None:
            torch.testing.assert_close(
                state[1]["average"],
                torch.from_numpy(average),
                rtol=1e-6,
                atol=2e-8,
            )
        else:
            assert "average" not in state[1]


SHAPES = [(3,), (), (0,), (2, 2)]
KINDS = {
    "vectors": [(MatrixLayout((1, 1, 1, prod(shape))),) for shape in SHAPES],
    "matrices of one layout": [
        (MatrixLayout((2, 3, 1, 4), (Rows(1, 3), Channels(2, 2))),)
    ]
    * 3,
    "matrices of several": [
        (MatrixLayout((1, 4, 3, 5), (Rows(2, 2), Kernel(3))),),
        (MatrixLayout((1, 2, 1, 6), (Channels(1, 6),)),),
        (MatrixLayout((1, 4, 3, 5), (Rows(2, 2), Kernel(3))),),
    ],
    "both": [
        (MatrixLayout((1, 2, 1, 6), (Channels(1, 6),)),),
        (MatrixLayout((1, 1, 1, 5)),),
        (MatrixLayout((1, 1, 1, 1)),),
    ],
    "two layouts in a parameter": [
        (
            MatrixLayout(
                (1, 2, 1, 3), (Rows(1, 2),), View(0, (1, 2, 3), (0, 6, 1), 0)
            ),
            MatrixLayout(
                (1, 2, 1, 3), (Rows(1, 2),), View(0, (1, 2, 3), (0, 6, 1), 3)
            ),
        ),
        (MatrixLayout((1, 2, 1, 6), (Rows(1, 2),)),),
    ],
    "two layouts without modes": [
        (
            MatrixLayout((1, 1, 1, 2), (), View(0, (1, 1, 2), (0, 2, 1), 0)),
            MatrixLayout((1, 1, 1, 2), (), View(0, (1, 1, 2), (0, 2, 1), 2)),
        ),
        (MatrixLayout((1, 1, 1, 3)),),
    ],
}


def numbers_of(config, rms, scale, size, early, kept, shrink, damping):
    measured = measure(rms, scale, size, early, kept, clip=10.0)
    return (
        measured.scale,
        measured.size,
        measured.active,
        *step_numbers(measured, shrink, damping, config),
    )


@pytest.fixture(params=["on the host", "followed by autograd"])
def place(request):
    with torch.set_grad_enabled(request.param != "on the host"):
        yield


@pytest.mark.usefixtures("place")
@pytest.mark.parametrize("kind", KINDS)
def test_many_at_once_are_what_each_is_alone(kind):
    shapes, layouts = SHAPES, KINDS[kind]
    if kind != "vectors":
        shapes = [(sum(prod(one.shape) for one in some),) for some in layouts]
    config = DirectionConfig()
    records = [
        init_direction(torch.zeros(shape), some, torch.float32)
        for shape, some in zip(shapes, layouts, strict=True)
    ]
    shapes = list(map(torch.Size, shapes))
    batch = Batch(shapes, layouts, torch.device("cpu"))
    generator = torch.Generator().manual_seed(0)
    sizes = None
    for step in range(4):
        grads = [torch.randn(shape, generator=generator) for shape in shapes]
        grads[0][1] = 0  # an element without any gradient
        if step == 2:
            grads[-1].view(-1)[0] = torch.nan
        rms = root_mean_squares(grads)
        given = [
            column([x] * len(grads), rms)
            for x in (*sizes_at(step), *corrections(step, config))
        ]
        sizes = sizes or [column([0.0] * len(grads), rms)] * 2
        scale, size, active, *found = of_all(
            partial(numbers_of, config), rms, *sizes, *given
        )
        sizes = scale, size
        numbers = [*found, active, active, active]
        turns = [
            Turn(record, step == 0, step > 0 and i != 1)
            for i, record in enumerate(records)
        ]
        new = [{} for _ in records]
        together = shared(numbers, slice(None), grads[0], True)
        values = batch.directions(grads, turns, new, together, config)
        for i, value in enumerate(batch.flat.split(values)):
            own, alone = Batch([value.shape], [layouts[i]], value.device), {}
            single = shared(numbers, slice(i, i + 1), grads[0], True)
            expected = own.directions(
                [grads[i]], [turns[i]], [alone], single, config
            )
            torch.testing.assert_close(
                value, expected.view(value.shape), rtol=1e-5, atol=1e-6
            )
            assert new[i].keys() == alone.keys() == records[i].keys()
            for key, expected in alone.items():
                torch.testing.assert_close(
                    new[i][key], expected, rtol=1e-5, atol=1e-6
                )
        assert values[1] == 0, step
        records = new
