"""What `NGOptimizer` tells about settings, each once."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterable, Sequence
from math import inf
from typing import Any

from torch import Tensor

from ngopt.optimizer.arguments import is_scheduled

logger = logging.getLogger("ngopt")

SMALL_LR = 0.02  # a smaller lr is likely meant as a step size
EARLY = 3  # first steps, in which settings are read


class Notices:
    """Warnings and log messages of one optimizer."""

    def __init__(self) -> None:
        self._told: set[str] = set()
        self._steps, self._lr = 0, 0.0

    def of_step(self, groups: Sequence[dict[str, Any]]) -> None:
        """In the first steps: schedulers are attached, and settings changed, by then."""
        if self._steps >= EARLY:
            return
        self._steps += 1
        largest = _largest(groups, "lr")
        is_rising = largest > self._lr  # a warm-up
        self._lr = max(self._lr, largest)
        if self._steps == EARLY and not is_rising:
            self.of_lr(max(self._lr, _largest(groups, "initial_lr", "max_lr")))
        elif any("max_lr" in group for group in groups):
            self.of_lr(max(self._lr, _largest(groups, "max_lr")))
        if is_scheduled(groups) and self._is_new("schedule"):
            logger.info(
                "NGOptimizer: an attached scheduler replaces the schedule of the weights. "
                "Without a scheduler, total_steps gives a warm-up and a decay to zero."
            )

    def of_new(self, groups: Sequence[dict[str, Any]]) -> None:
        self.of_lr(_largest(groups, "lr"))

    def of_lr(self, largest: float) -> None:
        """largest: of all groups."""
        if 0 < largest < SMALL_LR and self._is_new("lr"):
            _warn(
                f"lr = {largest:g} multiplies the update, so that training is "
                f"{1 / largest:.0f} times slower. Use lr=1.0, the default; a scheduler "
                "multiplies it by numbers up to 1."
            )

    def of_ignored(self, keys: Iterable[str]) -> None:
        if (names := ", ".join(keys)) and self._is_new("ignored"):
            _warn(f"these keys of parameter groups have no effect: {names}")

    def of_horizon(self, steps: int, total_steps: int) -> None:
        """steps: made so far."""
        if steps > total_steps and self._is_new("horizon"):
            _warn(
                f"{steps} steps were made of total_steps={total_steps}, so the step size "
                "stays near zero. Set a larger total_steps in every parameter group."
            )

    def of_loaded(self, key: str, loaded: Any, own: Any) -> None:
        logger.info(
            "NGOptimizer: the loaded state has %s=%s; %s=%s is kept.",
            *(key, loaded, key, own),
        )

    def _is_new(self, topic: str) -> bool:
        is_new = topic not in self._told
        self._told.add(topic)
        return is_new


def _largest(groups: Sequence[dict[str, Any]], *keys: str) -> float:
    """Infinite where reading a value would be a host sync."""
    found = [group[key] for group in groups for key in keys if key in group]
    if any(isinstance(lr, Tensor) and not lr.is_cpu for lr in found):
        return inf
    return max(map(float, found), default=0.0)


def _warn(text: str) -> None:
    warnings.warn(f"NGOptimizer: {text}", stacklevel=5)
