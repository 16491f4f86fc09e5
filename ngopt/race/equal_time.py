"""Equal time: the number of steps that take as long as another optimizer's run.

Optimizers make steps in turns, so that noise of the machine affects all of them alike.
"""

from collections import deque
from collections.abc import Iterable, Sequence
from statistics import fmean, median

from ngopt.race.training import TrainingLoop

SETUP = 2  # steps that allocate buffers, and are not counted
EARLY = 80  # first steps, in which the default renews eigenbases more often
BLOCKS, BLOCK = 5, 10  # of steps that are timed after them
EQUAL = 0.05  # relative difference of times that does not count


def turns_of(steps: int) -> list[int]:
    """Blocks of `steps`: within a block caches are warm, as in a training run."""
    return [min(BLOCK, steps - start) for start in range(0, steps, BLOCK)]


def step_in_turns(loops: Iterable[TrainingLoop], turns: Iterable[int]) -> None:
    """In each turn a block of steps of every loop; the first is the last of the next.

    turns: steps of each block.
    """
    order = deque(loops)
    for steps in turns:
        for loop in order:
            for _ in range(steps):
                loop.step()
        order.rotate(-1)


def timed_steps(steps: int) -> int:
    """How many steps are timed for a run of `steps`."""
    return min(steps, EARLY + BLOCKS * BLOCK)


def mean_ms(ms: Sequence[float], steps: int) -> float:
    """Milliseconds of a step, mean over a run of `steps`.

    ms: of its first `timed_steps`. Steps after `EARLY` have the median of blocks.
    """
    early = fmean(ms[SETUP:EARLY] or ms)
    if len(ms) <= EARLY:
        return early
    later = block_median(ms[EARLY:])
    return later + (early - later) * EARLY / steps


def block_median(ms: Sequence[float]) -> float:
    """The median over `BLOCKS` blocks of the mean step.

    Steps of a block may differ by design; an interruption affects one block.
    """
    size = -(-len(ms) // BLOCKS)
    starts = range(0, len(ms), size)
    return median(fmean(ms[start : start + size]) for start in starts)


def steps_in_same_time(steps: int, ms: float, reference_ms: float) -> int:
    """Steps of `ms` that take as long as `steps` of `reference_ms` milliseconds.

    `steps` if the times differ by less than `EQUAL`.
    """
    ratio = reference_ms / ms
    return steps if abs(ratio - 1) < EQUAL else max(round(steps * ratio), 1)
