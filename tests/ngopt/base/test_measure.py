from functools import partial

import pytest
import torch

from ngopt.base.arrays import column, columns, of_all
from ngopt.base.measure import (
    CHUNK,
    EARLY,
    SIZE_DECAY,
    Measured,
    measure,
    root_mean_squares,
    sizes_at,
)


@pytest.fixture(autouse=True, params=[True, False], ids=["torch", "numpy"])
def differentiates(request):
    with torch.set_grad_enabled(request.param):
        yield


def measured_at(step, rms, scale, size, clip=10.0):
    early, kept = (
        column([number] * len(rms), rms) for number in sizes_at(step)
    )
    return Measured(
        *of_all(partial(measure, clip=clip), rms, scale, size, early, kept)
    )


def follow(gradients, clip=10.0):
    """What is measured of one gradient after the other, of one parameter."""
    found = []
    for step, grad in enumerate(gradients):
        rms = root_mean_squares([grad])
        before = (
            found[-1]
            if found
            else Measured(*torch.zeros(len(Measured._fields)))
        )
        old = torch.stack([before.scale, before.size]).double().view(2, 1)
        measured = measured_at(step, rms, *columns(old, rms), clip=clip)
        found.append(
            Measured(
                *(torch.as_tensor(column[0]).float() for column in measured)
            )
        )
    return found


@pytest.mark.parametrize(
    "dtype", [torch.float64, torch.float32, torch.bfloat16]
)
@pytest.mark.parametrize("power", [-100, -20, 0, 3, 100])
def test_the_scale_is_the_power_of_two_nearest_to_the_first_gradient(
    dtype, power
):
    grad = torch.tensor([[3.0, -3.0], [3.0, 3.0]], dtype=dtype) * 2.0**power
    (found,) = follow([grad])
    # 3 is nearer to 4 on the logarithmic scale
    assert found.scale == 2.0 ** (power + 2)
    assert found.multiplier == 2.0 ** -(power + 2)
    assert found.size == pytest.approx((1 - SIZE_DECAY) * 9 / 16)
    assert found.mean_square == pytest.approx(9 / 16)
    assert found.active == 1


def test_zero_gradients_wait_for_the_first_that_is_not():
    zero, one = torch.zeros(3), torch.ones(3)
    found = follow([zero, zero, one, 2 * one])
    assert [m.scale.item() for m in found] == [0, 0, 1, 1]
    assert [m.multiplier.item() for m in found] == [0, 0, 1, 1]
    assert [m.active.item() for m in found] == [1, 1, 1, 1]
    assert [m.size.item() for m in found[:2]] == [0, 0]
    assert found[2].size == pytest.approx(0.05)


def test_running_size_by_hand():
    found = follow([torch.full((4,), x) for x in (1.0, -2.0, 0.5)])
    size = 0.0
    for step, (m, square) in enumerate(zip(found, (1, 4, 0.25), strict=True)):
        size = 0.95 * size + 0.05 * square
        assert m.size == pytest.approx(size, rel=1e-6)
        assert m.mean_square == pytest.approx(
            size / (1 - 0.95 ** (step + 1)), rel=1e-6
        )
        assert m.multiplier == 1


@pytest.mark.parametrize("factor", [1e2, 1e6, 1e30])
def test_a_gradient_out_of_proportion_is_cut_to_so_many_times_the_running_size(
    factor,
):
    usual = torch.full((5,), 1.0)
    found = follow([usual, usual, usual * factor], clip=10.0)[-1]
    assert found.multiplier * factor == pytest.approx(10, rel=1e-5)
    assert found.mean_square == pytest.approx(
        (0.95 * (1 - 0.95**2) + 0.05 * 100) / (1 - 0.95**3), rel=1e-5
    )


def test_what_is_in_proportion_is_not_cut():
    usual = torch.full((5,), 1.0)
    assert follow([usual, 9.9 * usual])[-1].multiplier == 1
    assert follow([usual, 10.1 * usual])[-1].multiplier < 1


@pytest.mark.parametrize("odd", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("before", [0, 2])
def test_what_is_not_finite_is_not_active_and_changes_nothing(odd, before):
    usual = torch.tensor([4.0, -4.0, 4.0])
    bad = torch.tensor([1.0, odd, 1.0])
    found = follow([usual] * before + [bad, usual])
    assert [m.active.item() for m in found] == [1] * before + [0, 1]
    bad_one = found[before]
    assert bad_one.scale == (4 if before else 0)
    assert torch.equal(
        bad_one.size, found[before - 1].size if before else torch.zeros(())
    )
    assert bad_one.multiplier.isfinite()
    assert found[-1].scale == 4


def test_the_largest_numbers_of_float32():
    huge = torch.full((4,), 3.4e38)
    found = follow([huge, -huge, huge])
    for m in found:
        assert torch.stack(m).isfinite().all()
        assert m.scale == 2.0**126
        assert m.multiplier * 3.4e38 == pytest.approx(4, rel=1e-2)


def test_the_smallest_numbers_of_float32():
    for m in follow([torch.full((4,), 1e-40)] * 2):
        assert torch.stack(m).isfinite().all()


@pytest.mark.parametrize(
    "dtype", [torch.float64, torch.float32, torch.bfloat16]
)
def test_long_gradients_are_measured_in_their_own_precision(dtype):
    values = torch.randn(
        2 * CHUNK + 3,
        dtype=torch.float64,
        generator=torch.Generator().manual_seed(0),
    ).to(dtype)
    expected = values.double().square().mean().sqrt().item()
    tolerance = 1e-12 if dtype == torch.float64 else 1e-5
    assert float(root_mean_squares([values])[0]) == pytest.approx(
        expected, rel=tolerance
    )


def test_several_gradients_and_dtypes_are_measured_together_as_alone():
    generator = torch.Generator().manual_seed(0)
    shapes = [(3, 4), (), (0,), (2, 1, 5)]
    dtypes = [torch.float32, torch.float64, torch.float32, torch.bfloat16]
    pairs = list(zip(shapes, dtypes, strict=True))
    grads = [
        torch.randn(s, generator=generator, dtype=torch.float64).to(d)
        for s, d in pairs
    ]
    rms = root_mean_squares(grads)
    zero = column([0.0] * 4, rms)
    together = measured_at(0, rms, zero, zero)
    singles = [
        measured_at(0, root_mean_squares([g]), zero[:1], zero[:1])
        for g in grads
    ]
    for found, *single in zip(together, *singles, strict=True):
        assert list(found) == [value for values in single for value in values]
    assert together.active[2] == 1  # the empty one
    assert together.scale[2] == 0


def test_first_gradients_out_of_proportion_to_the_next_are_taken_back():
    usual = torch.full((5,), 1.0)
    first, second, third = follow([1e6 * usual, usual, usual], clip=10.0)
    assert first.recall == 1
    assert second.recall == pytest.approx(
        1e-5
    )  # so that it counts as ten of the next
    square = (0.95 * 0.05 * 10**2 + 0.05) / (1 - 0.95**2)
    assert second.mean_square * first.scale**2 == pytest.approx(
        square, rel=1e-5
    )
    assert third.recall == 1


def test_what_was_in_proportion_or_is_long_ago_is_not_taken_back():
    usual = torch.full((5,), 1.0)
    assert all(
        found.recall == 1
        for found in follow([9 * usual, usual, 0 * usual, usual])
    )
    found = follow([usual] * (EARLY + 1) + [1e-6 * usual])
    assert found[-1].recall == 1
