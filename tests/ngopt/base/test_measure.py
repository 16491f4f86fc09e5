import pytest
import torch

from ngopt.base.measure import SIZE_DECAY, measure


def records(count=1):
    return [{key: torch.zeros(()) for key in ("step", "scale", "size")} for _ in range(count)]


def follow(gradients, clip=10.0):
    """What is measured of one gradient after the other, of one parameter."""
    (record,), found = records(), []
    for grad in gradients:
        found += measure([grad], [record], clip)
        kept = {"scale": found[-1].scale, "size": found[-1].size}
        record = {"step": record["step"] + 1, **kept}
    return found


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("power", [-100, -20, 0, 3, 100])
def test_the_scale_is_the_power_of_two_nearest_to_the_first_gradient(dtype, power):
    grad = torch.tensor([[3.0, -3.0], [3.0, 3.0]], dtype=dtype) * 2.0**power
    (found,) = follow([grad])
    assert found.scale == 2.0 ** (power + 2)  # 3 is nearer to 4 on the logarithmic scale
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
        assert m.mean_square == pytest.approx(size / (1 - 0.95 ** (step + 1)), rel=1e-6)
        assert m.multiplier == 1


@pytest.mark.parametrize("factor", [1e2, 1e6, 1e30])
def test_a_gradient_out_of_proportion_is_cut_to_so_many_times_the_running_size(factor):
    usual = torch.full((5,), 1.0)
    found = follow([usual, usual, usual * factor], clip=10.0)[-1]
    assert found.multiplier * factor == pytest.approx(10, rel=1e-5)
    assert found.mean_square == pytest.approx((0.95 * (1 - 0.95**2) + 0.05 * 100) / (1 - 0.95**3), rel=1e-5)


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
    assert torch.equal(bad_one.size, found[before - 1].size if before else torch.zeros(()))
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


def test_several_gradients_and_dtypes_are_measured_together_as_alone():
    generator = torch.Generator().manual_seed(0)
    shapes = [(3, 4), (), (0,), (2, 1, 5)]
    dtypes = [torch.float32, torch.float64, torch.float32, torch.bfloat16]
    pairs = list(zip(shapes, dtypes, strict=True))
    grads = [torch.randn(s, generator=generator, dtype=torch.float64).to(d) for s, d in pairs]
    together = measure(grads, records(4), 10.0)
    alone = [measure([g], records(), 10.0)[0] for g in grads]
    for a, b in zip(together, alone, strict=True):
        assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))
    assert together[2].active == 1  # the empty one
    assert together[2].scale == 0
