import math

import pytest
import torch

from ngopt.devices import norms
from ngopt.soap.scalars import COMPARED_STEPS, GradientScale, gradient_scale
from ngopt.soap.schedule import DECAY

ONE = torch.ones(5)


def rms_of(grads, in_place=False):
    roots = torch.tensor([max(g.numel(), 1) for g in grads], dtype=torch.float64).sqrt()
    return norms(grads, roots.dtype, in_place) / roots


def follow(grads, clip=10.0):
    """`GradientScale` of one gradient after the other, of one parameter."""
    found = []
    scale = running = torch.zeros(1, dtype=torch.float64)
    for step, grad in enumerate(grads):
        past = DECAY**step
        before, after = (1 - past + 1e-30) ** -0.5, (1 - DECAY * past) ** -0.5
        corrections = torch.tensor([[before], [after]], dtype=torch.float64)
        is_early = torch.tensor([True]) if 0 < step <= COMPARED_STEPS else None
        given = rms_of([grad]), scale, running, corrections
        g = gradient_scale(*given, clip, is_early, torch.tensor([0]))
        scale, running = (x.float().double() for x in (g.scale, g.rms))
        found.append(GradientScale(*(x.double().item() for x in g)))
    return found


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("power", [-100, -20, 0, 3, 100])
def test_the_unit_is_the_power_of_two_nearest_to_the_first_gradient(dtype, power):
    grad = torch.tensor([[3.0, -3.0], [3.0, 3.0]], dtype=dtype) * 2.0**power
    (found,) = follow([grad])
    assert found.scale == 2.0 ** (power + 2)  # 3 is nearer to 4 by its logarithm
    assert found.multiplier == 2.0 ** -(power + 2)
    assert found.relative == pytest.approx(3 / 4)
    assert found.rms == pytest.approx((1 - DECAY) ** 0.5 * 3 * 2.0**power)
    assert found.active == 1


def test_zero_gradients_wait_for_the_first_that_is_not():
    found = follow([0 * ONE, 0 * ONE, ONE, 2 * ONE])
    assert [g.active for g in found] == [1, 1, 1, 1]
    assert [g.rms for g in found[:2]] == [0, 0]
    # the running RMS of 0, 0, 1 is .59
    assert [(g.scale, g.multiplier) for g in found[2:]] == [(0.5, 2), (0.5, 2)]
    assert all(math.isfinite(x) for g in found for x in g)


def test_running_rms_by_hand():
    found = follow([torch.full((4,), x) for x in (1.0, -2.0, 0.5)])
    square = 0.0
    for step, (g, own) in enumerate(zip(found, (1, 4, 0.25), strict=True)):
        square = 0.95 * square + 0.05 * own
        assert g.rms == pytest.approx(square**0.5, rel=1e-6)
        corrected = (square / (1 - 0.95 ** (step + 1))) ** 0.5
        assert g.relative == pytest.approx(corrected, rel=1e-6)
        assert g.multiplier == g.rescale == 1 or step == 0


@pytest.mark.parametrize("factor", [1e2, 1e6, 1e30])
def test_a_gradient_out_of_proportion_is_clipped_to_its_running_rms(factor):
    found = follow([ONE, ONE, ONE * factor])[-1]
    assert found.multiplier * factor == pytest.approx(10, rel=1e-5)
    square = 0.95 * (1 - 0.95**2) + 0.05 * 100
    assert found.rms == pytest.approx(square**0.5, rel=1e-5)


def test_what_is_in_proportion_is_not_clipped():
    assert follow([ONE, 9.9 * ONE])[-1].multiplier == 1
    assert follow([ONE, 10.1 * ONE])[-1].multiplier < 1


@pytest.mark.parametrize("odd", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("before", [0, 2])
def test_what_is_not_finite_is_not_active_and_changes_nothing(odd, before):
    usual = torch.tensor([4.0, -4.0, 4.0])
    found = follow([usual] * before + [torch.tensor([1.0, odd, 1.0]), usual])
    assert [g.active for g in found] == [1] * before + [0, 1]
    assert found[before].multiplier == 0
    old = found[before - 1].rms if before else 0
    assert found[before].rms == pytest.approx(old, rel=1e-6)
    assert (found[before].rescale, found[-1].scale) == (1 if before else 0, 4)


def test_a_first_gradient_out_of_proportion_to_the_next_is_taken_back():
    first, second, third = follow([1e3 * ONE, ONE, ONE])
    assert first.rescale == 0  # there was no state
    assert second.rescale == pytest.approx(1e-2)  # so that it counts as ten of the next
    square = 0.95 * 0.05 * 10**2 + 0.05
    assert second.rms == pytest.approx(square**0.5, rel=1e-5)
    assert third.rescale == 1


def test_what_was_in_proportion_or_is_long_ago_is_not_taken_back():
    found = follow([9 * ONE, ONE, 0 * ONE, ONE])
    assert [g.rescale for g in found[1:]] == [1, 1, 1]
    assert follow([ONE] * (COMPARED_STEPS + 1) + [1e-6 * ONE])[-1].rescale == 1


def test_the_unit_follows_a_running_rms_that_leaves_its_range():
    """By powers of two, so that nothing is rounded; state in old units is rescaled."""
    small, large = torch.full((4,), 1e-20), torch.ones(4)
    found = follow([small] * 10 + [large] * 190)
    assert found[-1].scale * found[-1].multiplier == 1
    assert 2**-17 < found[-1].scale < 2**17
    rescales = [g.rescale for g in found if g.rescale not in (0, 1)]
    assert rescales
    assert all(math.log2(x).is_integer() for x in rescales)
    assert math.prod(rescales) == found[0].scale / found[-1].scale
    assert all(2**-17 < g.relative < 2**17 for g in found)


@pytest.mark.parametrize("value", [3.4e38, 1e-40, 1e-45])
def test_the_ends_of_float32(value):
    for g in follow([torch.full((4,), value), torch.full((4,), -value)] * 2):
        assert all(math.isfinite(x) for x in g)
        assert torch.tensor(g.multiplier).float().isfinite()
        assert 2**-20 < g.relative < 2**3 or value < 1e-38


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("in_place", [True, False])
@pytest.mark.parametrize("scale", [1.0, 1e-20, 1e25])
def test_rms_of_all_is_that_of_each(dtype, in_place, scale):
    generator = torch.Generator().manual_seed(0)
    shapes = [(3, 4), (), (0,), (2, 1, 5), (70_000,)]
    grads = [torch.randn(s, generator=generator).double() * scale for s in shapes]
    grads = [g.to(dtype) for g in grads]
    expected = [(g.double() ** 2).mean().sqrt().nan_to_num() for g in grads]
    found = rms_of(grads, in_place)
    assert found.dtype == torch.float64
    torch.testing.assert_close(found, torch.stack(expected), rtol=5e-6, atol=0)
