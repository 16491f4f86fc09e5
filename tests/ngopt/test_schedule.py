import pytest

from ngopt.schedule import average_weight, with_horizon, without_horizon


@pytest.mark.parametrize(
    ("step", "expected"),
    [
        (0, 1 / 10 * 100 / 101),  # the first of ten steps of warm-up
        (4, 5 / 10 * 96 / 101),
        (9, 91 / 101),
        (49, 51 / 101),
        (99, 1 / 101),  # the last
        (100, 1 / 101),
        (5_000, 1 / 101),
    ],
)
def test_with_horizon_by_hand(step, expected):
    assert with_horizon(step, step, 100, 0.1) == pytest.approx(expected, rel=1e-12)


def test_a_parameter_that_comes_late_warms_up_on_the_way_down():
    assert with_horizon(0, 50, 100, 0.1) == pytest.approx(1 / 10 * 50 / 101, rel=1e-12)
    assert without_horizon(0, 150, 30, 50) == pytest.approx(1 / 30 / 2, rel=1e-12)


def test_horizons_shorter_than_their_warm_up():
    assert with_horizon(0, 0, 1, 0.08) == 0.5
    assert with_horizon(0, 0, 5, 0.0) == pytest.approx(5 / 6)


def test_a_cooldown_leaves_the_first_steps_as_they_are():
    factors = [with_horizon(step, step, 9, 0.0, cooldown=0.3) for step in range(11)]
    assert factors[:7] == [1.0] * 7
    assert factors[7:] == pytest.approx([2 / 3, 1 / 3, 1 / 3, 1 / 3])


@pytest.mark.parametrize(
    ("step", "expected"),
    [(0, 1 / 30), (14, 0.5 / 1.28**0.5), (29, 1 / 1.58**0.5), (150, 0.5), (1_200, 0.2)],
)
def test_without_horizon_by_hand(step, expected):
    assert without_horizon(step, step, 30, 50) == pytest.approx(expected, rel=1e-12)


def test_average_weights_by_hand():
    assert average_weight(0, 10.0) == 1  # of the first all
    assert average_weight(1, 10.0) == pytest.approx(11 / 12)
    assert average_weight(99, 10.0) == pytest.approx(11 / 110)


def test_the_average_of_time_is_its_closed_form():
    """With power k the average of 1, 2, ..., n is (k + 1) / (k + 2) of n at length."""
    average, n = 0.0, 20_000
    for step in range(n):
        average += average_weight(step, 3.0) * (step + 1 - average)
    assert average == pytest.approx(4 / 5 * n, rel=1e-3)
