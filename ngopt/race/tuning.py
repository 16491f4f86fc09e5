"""Choice of a learning rate by the losses of whole runs."""

from collections.abc import Callable, Collection, Mapping, Sequence

EXTRA_LRS = 3  # at most, beyond the edges of a grid
FIRST_TUNING_SEED = 1_000_000  # above all seeds of evaluation, which begin at 0


def best_lr(losses: Mapping[float, float]) -> float | None:
    """The learning rate with the lowest loss, the first of equals;
    None if there are none."""
    return min(losses, key=losses.__getitem__, default=None)


def is_at_edge(lr: float | None, tried: Collection[float]) -> bool:
    """Whether a learning rate is the smallest or largest of several."""
    return len(tried) > 1 and lr in (min(tried), max(tried))


def tune(
    lrs: Sequence[float], loss_of_run: Callable[[float], float]
) -> dict[float, float]:
    """The loss of a run with each learning rate, ascending; empty without a grid.

    While the best is at the edge of the grid, the next of 1, 3, 10, 30, ... is tried
    too, at most `EXTRA_LRS` times. Of equals, such as runs that diverged, the smallest
    is the best.

    loss_of_run: trains with a learning rate and returns the loss.
    """
    losses = {lr: loss_of_run(lr) for lr in sorted(lrs)}
    for _ in range(EXTRA_LRS):
        best = best_lr(losses)
        if best is None:
            break
        smaller, larger = neighbours(best)
        if best == max(losses):
            losses[larger] = loss_of_run(larger)
        elif best == min(losses):
            losses = {smaller: loss_of_run(smaller), **losses}
        else:
            break
    return losses


def neighbours(lr: float) -> tuple[float, float]:
    """The learning rates before and after in 1, 3, 10, 30, ..."""
    digit, exponent = f"{lr:.0e}".split("e")
    smaller = f"1e{exponent}" if int(digit) > 1 else f"3e{int(exponent) - 1}"
    larger = f"3e{exponent}" if int(digit) < 3 else f"1e{int(exponent) + 1}"
    return float(smaller), float(larger)
