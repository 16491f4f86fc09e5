import numpy as np
import pytest
import torch
from torch import nn

from ngopt import NGOptimizer, build_graph
from ngopt.accelerator.soap import next_values
from ngopt.functional import Hyper
from ngopt.roles.from_graph import roles_of
from ngopt.soap.config import Network, SoapConfig
from ngopt.soap.schedule import ScheduledValues, StepSchedule, largest_size, role_gain

CONFIG = SoapConfig(step_size=0.02, norm=3.0, weight_decay=0.5, warmup=0.1)


def network():
    return nn.Sequential(
        nn.Embedding(5, 16), nn.Linear(16, 256), nn.LayerNorm(256), nn.Linear(256, 3)
    )


def roles():
    return roles_of(build_graph(network()))


def table(total_steps=100):
    graph = build_graph(network())
    count = len(graph.parameters)
    known = Network(graph, range(count), roles(), [], [], total_steps, torch.empty(0))
    return StepSchedule(known, CONFIG)


def fill(table, ages, now, hyper):
    return table.of_step(ages, now, hyper, on_host=False, in_place=True)


def hyper(lr=1.0, weight_decay=0.0, scheduled=False):
    return Hyper([lr] * 7, [weight_decay] * 7, scheduled)


def test_gains_by_role_and_fan():
    """By parameter: table, weight, bias, scale, shift, weight, bias."""
    found = [role_gain(role, CONFIG) for role in roles()]
    assert found == pytest.approx([2.5, 1, 1, 3, 3, 0.5, 1])


def test_scheduled_values_by_hand():
    ages = np.array([0.0, 1, 2, 30, 30, 30, 30])
    values = fill(table(), ages, 30, hyper(0.5, 2.0))
    assert values.count.tolist() == [1, 2, 3, 31, 31, 31, 31]
    corrections = pytest.approx([0.05**-0.5, (1 - 0.95**2) ** -0.5])
    assert values.rms_correction_before[1:3].tolist() == corrections
    assert values.rms_correction[:2].tolist() == corrections
    first = 1 - 0.9**2  # Nesterov's momentum of one gradient: .9 * .1 + .1
    assert values.second_moment_correction[0] == pytest.approx(first**2)
    assert values.beta2.tolist() == pytest.approx([0.999] + [0.95] * 6)
    second = 0.05 / (1 - 0.95**31)
    assert values.second_moment_correction[3] == pytest.approx(second, rel=0.1)
    assert values.damping[0] == pytest.approx((1e-4 * first) ** 2)
    heights = (values.step_size / values.peak_step_size)[[0, 3]].tolist()
    assert heights == pytest.approx([0.02 * 0.1 * 70 / 101, 0.02 * 70 / 101])
    averages = fill(table(None), ages, 30, hyper()).average_weight
    assert averages[[0, 3]].tolist() == pytest.approx([1, 11 / 41])
    peaks = [-0.5 * role_gain(role, CONFIG) for role in roles()]
    assert values.peak_step_size.tolist() == peaks
    user = 2.0 * 1e-3 / 0.02
    assert (values.peak_weight_decay / -0.5).tolist() == pytest.approx([user] * 7)
    own = table().of_step(ages, 30, hyper(0.5, None), on_host=True, in_place=True)
    assert (own.peak_weight_decay / -0.5).tolist() == [0.5, 0.5, 0, 0, 0, 0.5, 0]
    assert values.random_walk[3].item() == pytest.approx(CONFIG.path_ratio**2 * 30 / 50)
    # the step size of matrices follows their RMS in that of PyTorch's initial weights
    rms = network()[1].weight.square().mean().sqrt()
    assert values.inverse_init_rms[1] * rms.item() == pytest.approx(1, rel=0.05)
    assert (values.inverse_init_rms != 0).nonzero().flatten().tolist() == [1, 5]


def test_the_limit_of_weights_by_horizon():
    """With a horizon by its length, else by the steps so far."""
    limits = [largest_size(steps, CONFIG) for steps in (1, 1000, 2000, 1e9)]
    assert limits == pytest.approx([10, 10, 3 + 7 / 4, 3])
    for total_steps, steps in ((100, 5000), (None, 99), (4000, 10), (None, 3999)):
        values = fill(table(total_steps), np.full(7, float(steps)), steps, hyper())
        expected = largest_size(total_steps or steps + 1, CONFIG)
        assert values.largest_size == pytest.approx(expected)


@pytest.mark.parametrize(
    "total_steps, is_invariant, limit",
    [(1000, False, 10), (4000, False, 3 + 7 / 16), (4000, True, 10 / 1.4)],
)
def test_steps_grow_with_weights_up_to_the_limit(total_steps, is_invariant, limit):
    """The first steps of invariant weights are 1.4 times as long."""
    lengths = []
    for factor in (1.0, 100.0):
        torch.manual_seed(0)
        linear = nn.Linear(40, 40, bias=False)
        opt = NGOptimizer(
            linear.parameters(), weight_decay=0.0, total_steps=total_steps
        )
        for step in range(2):
            linear.weight.grad = torch.ones(40, 40)
            if is_invariant:
                weights = linear.weight.detach()
                share = weights.sum() / weights.square().sum()
                linear.weight.grad -= share * weights
            if step == 1:
                linear.weight.data *= factor
            before = linear.weight.detach().clone()
            opt.step()
        lengths.append((linear.weight.detach() - before).norm().item())
    assert lengths[1] / lengths[0] == pytest.approx(limit, rel=0.05)


def test_a_scheduler_replaces_the_schedule():
    own, ages = table(), np.full(7, 30.0)
    assert -0.02 < fill(own, ages, 30, hyper()).step_size[1] < 0
    scheduled = fill(own, ages, 30, hyper(scheduled=True))
    assert scheduled.step_size[1] == pytest.approx(-0.02)


@pytest.mark.parametrize("total_steps", [None, 40])
@pytest.mark.parametrize("scheduled", [False, True])
def test_scheduled_values_of_a_cuda_graph_equal_those_of_the_host(
    total_steps, scheduled
):
    ages = np.array([0.0, 1, 2, 7, 30, 31, 36])
    own, other = table(total_steps), table(total_steps)
    fill(own, ages, 40, hyper(0.5, 2.0, scheduled))
    for step in range(1, 8):
        found = next_values(own, hyper(0.5, 2.0, scheduled))
        expected = fill(other, ages + step, 40 + step, hyper(0.5, 2.0, scheduled))
        for name, x, y in zip(ScheduledValues._fields, found, expected, strict=True):
            y = torch.as_tensor(y, dtype=x.dtype).expand_as(x)
            torch.testing.assert_close(x, y, rtol=1e-12, atol=1e-15, msg=name)


def test_a_cuda_graph_needs_a_step_before():
    message = "expected a step of the same parameters before"
    with pytest.raises(RuntimeError, match=message):
        next_values(table(), hyper())


def test_a_learning_rate_that_is_differentiated_stays_a_tensor():
    lr = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    values = fill(table(), np.zeros(7), 0, Hyper([lr] * 3 + [2.0] * 4, [0.0] * 7))
    gains = np.array([role_gain(role, CONFIG) for role in roles()])
    assert values.peak_step_size.tolist() == [*(-0.5 * gains[:3]), *(-2.0 * gains[3:])]
    values.peak_step_size.sum().backward()
    assert lr.grad == -gains[:3].sum()
