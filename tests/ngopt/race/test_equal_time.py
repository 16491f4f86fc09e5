from functools import partial
from types import SimpleNamespace

import pytest

from ngopt.race.equal_time import (
    EARLY,
    block_median,
    mean_ms,
    step_in_turns,
    steps_in_same_time,
    timed_steps,
    turns_of,
)


def test_first_of_a_turn_is_the_last_of_the_next():
    order = []
    loops = [SimpleNamespace(step=partial(order.append, name)) for name in "abc"]
    step_in_turns(loops, [1, 2, 1])
    assert turns_of(25) == [10, 10, 5] and turns_of(3) == [3]
    assert "".join(order) == "abc" + "bbccaa" + "cab"


@pytest.mark.parametrize(
    "ms, reference_ms, steps",
    [(1, 2.5, 250), (2, 1, 50), (1, 1.04, 100), (1, 0.96, 100), (9, 0.01, 1)],
)
def test_steps_in_the_same_time(ms, reference_ms, steps):
    assert steps_in_same_time(100, ms, reference_ms) == steps


def test_first_steps_count_by_their_share_of_the_run():
    """2 steps of set-up that are left out, 78 of 3 ms, then 1 ms; a run of 400."""
    ms = [1000.0] * 2 + [3.0] * (EARLY - 2) + [1.0] * 50
    assert len(ms) == timed_steps(400)
    assert mean_ms(ms, 400) == pytest.approx((80 * 3 + 320 * 1) / 400)
    assert mean_ms(ms[:12], 12) == pytest.approx(3)
    assert mean_ms([5.0], 1) == 5


def test_an_interruption_of_one_step_does_not_count():
    """Each third step takes longer by design."""
    ms = [1.0, 1.0, 4.0] * 5
    assert block_median([*ms[:-1], 900.0]) == block_median(ms) == 2
