"""Warnings and log messages of `NGOptimizer`."""

import logging
import os
import traceback
import warnings
from collections.abc import Iterable, Sequence
from math import inf
from typing import Any

from torch import Tensor, distributed

from ngopt.functional import Record
from ngopt.graph import NeuralGraph
from ngopt.graph.connectivity import unconnected
from ngopt.optimizer.param_groups import Group, is_scheduled

logger = logging.getLogger("ngopt")

# A smaller lr is probably meant as a step size: of the arguments, and of a step, which
# may be the first one of a warm-up.
SMALL_ARGUMENT, SMALL_LR = 0.15, 0.02
LARGE_LR = 10  # a larger lr is probably meant as total_steps
FIRST_STEPS = 3  # in which settings are checked
LISTED_UNCONNECTED = 5  # names in the line about a graph
ZERO_FILE = "zero_redundancy_optimizer.py"  # of torch.distributed.optim


class Messages:
    """Warnings and log messages of one optimizer, each at most once.

    steps_left: steps for which `check_step` is still to be called.
    """

    def __init__(self) -> None:
        self.steps_left = FIRST_STEPS
        self._given: set[str] = set()
        self._largest_lr = 0.0

    def check_step(self, groups: Sequence[Group]) -> None:
        """Checks one of the first steps, by which users have attached schedulers."""
        self.steps_left -= 1
        lr = _largest(groups, "lr")
        is_warm_up = lr > self._largest_lr
        self._largest_lr = max(self._largest_lr, lr)
        if not self.steps_left and not is_warm_up:
            lr = _largest(groups, "initial_lr", "max_lr")
            self.check_lr(max(self._largest_lr, lr))
        elif any("max_lr" in group for group in groups):
            self.check_lr(max(self._largest_lr, _largest(groups, "max_lr")))
        if is_scheduled(groups) and self._is_first("schedule"):
            logger.info(
                "NGOptimizer: an attached scheduler replaces the built-in schedule. "
                "Without a scheduler, total_steps gives a warm-up and a decay to zero."
            )

    def check_new(self, groups: Sequence[Group]) -> None:
        self.check_lr(_largest(groups, "lr"), SMALL_ARGUMENT)

    def check_lr(self, largest: float, small: float = SMALL_LR) -> None:
        """Warns of a learning rate that is not near 1. largest: of all groups."""
        if 0 < largest < small:
            self._warn_once(
                "lr",
                f"lr = {largest:g} multiplies the update, so that training is "
                f"{1 / largest:.0f} times slower. Use lr=1.0, the default; a scheduler "
                "multiplies it by numbers up to 1.",
            )
        if LARGE_LR < largest < inf:
            self._warn_once(
                "lr",
                f"lr = {largest:g} multiplies every update by {largest:g} and will "
                "diverge. Use lr=1.0, the default. For the number of steps, pass "
                "total_steps=.",
            )

    def warn_of_ignored(self, keys: Sequence[str]) -> None:
        """keys: of a parameter group, without an effect."""
        if keys:
            self._warn_once(
                "ignored",
                f"these keys of parameter groups have no effect: {', '.join(keys)}",
            )

    def check_horizon(self, records: Sequence[Record], total_steps: int) -> None:
        """Warns of steps beyond the horizon. records: the state of all parameters."""
        steps = max(int(record.get("step", 0)) for record in records)
        if steps > total_steps:
            self._warn_once(
                "horizon",
                f"{steps} steps were made of total_steps={total_steps}, so the step "
                "size stays near zero. Set a larger total_steps in every parameter "
                "group.",
            )

    def _warn_once(self, topic: str, text: str) -> None:
        if self._is_first(topic):
            warnings.warn(f"NGOptimizer: {text}", stacklevel=5)

    def _is_first(self, topic: str) -> bool:
        is_first = topic not in self._given
        self._given.add(topic)
        return is_first


def _largest(groups: Sequence[Group], *keys: str) -> float:
    """Infinite if reading a value would be a host sync."""
    values = [group[key] for group in groups for key in keys if key in group]
    if any(isinstance(lr, Tensor) and not lr.is_cpu for lr in values):
        return inf
    return max(map(float, values), default=0.0)


def name_of(weights: Any) -> str:
    """The name or path of weights, or their class."""
    is_named = isinstance(weights, str | os.PathLike)
    return str(weights) if is_named else type(weights).__name__


def describe(network: NeuralGraph, records: Sequence[Record], has_horizon: bool) -> str:
    """What is known of a network: its graph, and the learned factors of step sizes.

    records: the state of all parameters, in the order of the network.
    """
    lines = [describe_graph(network)]
    if has_horizon:
        lines.append(describe_step_size(records))
    return "\n".join(filter(None, lines))


def describe_graph(graph: NeuralGraph) -> str:
    """One line: how many tensors are in the graph, and which are unconnected. These
    are still optimized."""
    names = unconnected(graph)
    count = len(graph.parameters)
    if not names:
        return f"graph: {graph.numel:,} parameters in {count} tensors, all connected"
    listed = names[:LISTED_UNCONNECTED]
    if len(names) > len(listed):
        listed.append("...")
    origin = "graph:"
    if any(graph.inferred):
        origin = "graph inferred from names and shapes;"
    return (
        f"{origin} {len(names)} of {count} tensors are unconnected "
        f"({', '.join(listed)}). They are still optimized."
    )


def describe_step_size(records: Iterable[Record]) -> str:
    """One line about learned factors of the step size; "" where all are 1.00.

    records: the state of all parameters, in the order of the network. Reading them is a
    host sync.
    """
    factors = []
    for record in records:
        factor = record.get("predicted")
        if factor is not None and not factor.is_meta and float(record["step"]) > 0:
            factors.append(round(float(factor), 2))
    if set(factors) <= {1.0}:
        return ""
    low, high = min(factors), max(factors)
    interval = f"{low:.2f} to {high:.2f}"
    if low == high:
        interval = f"{low:.2f}"
    elif factors in (sorted(factors), sorted(factors, reverse=True)):
        interval = f"{factors[0]:.2f} (first layer) to {factors[-1]:.2f} (last layer)"
    return (
        f"step size: {interval} times that of the base rule, as predicted at the first "
        "step from horizon, shapes, roles, initial weights and first gradients"
    )


def log_unconnected(
    graph: NeuralGraph, is_exact: bool, reads_connections: bool
) -> None:
    """Logs unconnected parameters, as a warning if the weights read connections.

    is_exact: whether the graph is traced or given.
    """
    if not unconnected(graph):
        return
    level = logging.WARNING if reads_connections else logging.INFO
    advice = "" if is_exact else " Pass model=model to trace the graph."
    logger.log(level, "NGOptimizer: %s%s", describe_graph(graph), advice)


def warn_if_partial() -> bool:
    """Whether ZeroRedundancyOptimizer passes a part of the parameters; warns if so."""
    if not distributed.is_available() or not distributed.is_initialized():
        return False
    if distributed.get_world_size() == 1:
        return False
    callers = traceback.walk_stack(None)  # reads no source lines
    if not any(frame.f_code.co_filename.endswith(ZERO_FILE) for frame, _ in callers):
        return False
    warnings.warn(
        "NGOptimizer: ZeroRedundancyOptimizer passes every process some of the "
        "parameters only, so the graph is partial. For the graph of the whole network "
        "pass functools.partial(NGOptimizer, model=model).",
        stacklevel=5,  # that of `NGOptimizer(...)`
    )
    return True
