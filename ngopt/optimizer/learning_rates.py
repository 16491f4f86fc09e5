"""What learning rates of parameter groups mean: they have no unit.

Steps and weight decay of a group are multiplied by

    scale * lr / R

R, the `reference_lr` of all groups, is the largest lr of the run: one that is known
before (`max_lr` of OneCycleLR, `initial_lr` of other schedulers, lr of the
constructor), or that of the first step with a positive lr. A larger lr raises it. So
programs made for AdamW train as they should at any rate, and ratios between groups and
shapes of schedules stay as written.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from ngopt.functional import AVERAGE, State, uncompiled
from ngopt.optimizer.log_messages import Messages
from ngopt.optimizer.param_groups import (
    BUILT_IN,
    COUNTS,
    PER_GROUP,
    Group,
    check_groups,
    readable,
)

DEFAULT_LR = 1.0  # where a program passes no lr
ADAMW_LR = 1e-3  # AdamW's default, of groups without an lr beside others with one
# Other values of `lr_schedule`, which replace the built-in schedule.
BY_LR, BY_LR_AFTER_WARM_UP = "lr", "lr, after the built-in warm-up"
SKIPPED_STEP = 10  # before which a warning is given if all steps were skipped
FIRST_STEPS = 3  # in which a changed lr replaces the built-in schedule
LONG_RUN = 300  # steps without a horizon, after which a message names the average
MOST = 0.95  # of total_steps: schedules that have not begun to fall are constant
FEW_STEPS = 20  # total_steps of runs too short for that
LOW = 0.1  # of R: schedules that do not reach it are probably absolute rates
TINY = 1e-30


def default_lr(params: Any) -> float:
    """The lr of groups without one; params: of the constructor, which has none."""
    groups = [entry for entry in params if isinstance(entry, dict)]
    return ADAMW_LR if any("lr" in group for group in groups) else DEFAULT_LR


def has_scheduler(groups: Iterable[Group]) -> bool:
    """Whether a scheduler of torch is attached, which stores the first lr in groups."""
    return any("initial_lr" in group for group in groups)


def ratio(group: Group) -> float | Tensor:
    """The factor scale * lr / R; a tensor (), not read, if lr or R is a tensor."""
    lr, reference = group["lr"], group["reference_lr"]
    if reference is None:  # no lr was positive
        return 0.0
    if isinstance(lr, Tensor):
        lr = lr.reshape(())  # other shapes would broadcast
    if isinstance(reference, Tensor):
        reference = reference.clamp(min=TINY)
    return group["scale"] * (lr / reference)


class LearningRates:
    """Follows the learning rates of an optimizer's groups from step to step.

    A scheduler replaces the built-in schedule, and so does an lr that a program changes
    within the first three steps. If R rises in these, lr / R stays 1 and the built-in
    warm-up is kept. `lr_schedule` of the groups stores which it is.

    Rates on an accelerator are not read: R is then a tensor there.
    """

    def __init__(self, messages: Messages):
        self._messages = messages
        self._given: list[Any] = []  # lr of the constructor by group; None: none
        self._checked: list[Any] | None = None  # settings of the last step
        self._first: list[Any] | None = None  # rates of the first step with one > 0
        self._last, self._peak = 0.0, 0.0  # largest rates: of the last step, of all
        self._is_raised = False  # R, after the first step
        self._steps = 0  # followed so far

    def add(self, lr: float | Tensor | None, groups: Sequence[Group]) -> None:
        """Adds a group; lr: from its user. groups: that are there already.

        Warns of an lr far below the default one, which other groups have.
        """
        have_default = bool(groups) and all(rate is None for rate in self._given)
        for group in groups:
            is_number = not isinstance(group["lr"], Tensor)
            have_default &= is_number and group["lr"] == DEFAULT_LR
        self._given.append(lr.detach().clone() if isinstance(lr, Tensor) else lr)
        if lr is not None and have_default:
            rate = readable(lr)
            if not isinstance(rate, Tensor) and 0 < rate < LOW * DEFAULT_LR:
                self._messages.warn_of_added(rate, DEFAULT_LR)

    def reset(self) -> None:
        """Groups were loaded: what happened before the next step is not known."""
        self._checked = self._first = None
        self._is_raised = False
        self._peak = float("inf")

    def follow(self, groups: Sequence[Group], state: State) -> None:
        """Checks settings before a step; sets `reference_lr` and `lr_schedule`.

        Raises ValueError if a setting is out of range.
        """
        if not torch.compiler.is_dynamo_compiling():
            self._steps += 1
            total_steps = groups[0]["total_steps"]
            last = LONG_RUN if total_steps is None else int(MOST * total_steps)
            if self._steps == last:
                self._check_constant(groups[0], state)
            if self._steps == SKIPPED_STEP:
                self._messages.check_skipped(state)
        settings: list[Any] = []
        for group in groups:
            settings += [group[key] for key in (*PER_GROUP, *COUNTS)]
            settings.append("initial_lr" in group)
        has_tensors = any(isinstance(value, Tensor) for value in settings)
        if not has_tensors and settings == self._checked:
            return
        check_groups(groups)
        rates = [readable(group["lr"]) for group in groups]
        # rates are 0 where torch.distributed.checkpoint initializes the state
        if self._first is None and any(isinstance(r, Tensor) or r > 0 for r in rates):
            self._first = rates
        schedule = groups[0]["lr_schedule"]
        if schedule == BUILT_IN and (
            has_scheduler(groups) or (self._has_changed(rates) and _is_early(state))
        ):
            schedule = BY_LR
        reference = groups[0]["reference_lr"]
        largest = _largest(rates)
        if reference is None:
            reference = self._first_reference(groups, largest)
        elif isinstance(reference, Tensor) and not _is_elsewhere(largest, reference):
            reference.copy_(_largest([reference, largest]))
        elif isinstance(largest, Tensor):
            reference = _largest([reference, largest])
        elif largest > reference:
            reference, self._is_raised = largest, True
            if schedule == BY_LR and _is_early(state):
                schedule = BY_LR_AFTER_WARM_UP
        for group in groups:
            group["reference_lr"], group["lr_schedule"] = reference, schedule
        is_compiling = torch.compiler.is_dynamo_compiling()
        if isinstance(reference, float) and not is_compiling:
            self._warn_of_low(largest, reference)
        self._checked = settings

    def _check_constant(self, group: Group, state: State) -> None:
        """If lr is still constant late in the run: reminds of averages, or warns of a
        scheduler that never falls."""
        total_steps = group["total_steps"]
        is_tensor = isinstance(group["lr"], Tensor)
        if is_tensor or group["lr"] != group["reference_lr"]:
            return
        if total_steps is None and any(AVERAGE in record for record in state.values()):
            self._messages.remind_of_average()
        if (total_steps or 0) >= FEW_STEPS and "initial_lr" in group:
            self._messages.warn_of_constant(self._steps)

    def _has_changed(self, rates: Sequence[Any]) -> bool:
        """Whether an lr that can be read is not that of the first step."""
        for rate, first in zip(rates, self._first or (), strict=False):
            if not isinstance(rate, Tensor) and rate != first:
                return True
        return False

    def _first_reference(self, groups: Sequence[Group], largest: Any) -> Any:
        """R, or None while no lr is positive."""
        known: list[Any] = []
        for group, given in zip(groups, self._given, strict=False):
            rate = group.get("max_lr", group.get("initial_lr", given))
            known.append(None if rate is None else readable(rate))
        reference = _largest([largest, *known])
        if isinstance(reference, Tensor):
            return reference
        # 0 may be that of a warm-up, before which a scheduler is still to be attached
        if reference <= 0 or largest == 0:
            return None
        if None not in known and 0 < max(known) <= LOW * reference:
            self._messages.warn_of_high(reference, max(known))
        rates: list[Any] = [
            readable(group["lr"]) if rate is None else rate
            for group, rate in zip(groups, known, strict=False)
        ]
        is_scheduled = has_scheduler(groups)
        if is_scheduled or reference != DEFAULT_LR:
            self._messages.log_reference(reference, rates, is_scheduled)
        return reference

    def _warn_of_low(self, largest: Any, reference: float) -> None:
        """Warns if rates fall before they were near R, or after they were high by
        chance, as those of a finder."""
        if largest < self._last and self._peak < LOW * reference:
            self._messages.warn_of_absolute(self._peak, reference)
        if self._is_raised and 0 < largest < LOW * LOW * self._last:
            self._messages.warn_of_high(reference, largest)
        self._last, self._peak = largest, max(self._peak, largest)


@uncompiled
def _is_early(state: State) -> bool:
    """Whether this is one of the first steps of the run; state: before it."""
    steps = [record["step"] for record in state.values() if "step" in record]
    return all(float(step) < FIRST_STEPS for step in steps)


def _is_elsewhere(rate: float | Tensor, reference: Tensor) -> bool:
    """Whether R is on another device, as after a checkpoint was loaded to the host."""
    return isinstance(rate, Tensor) and rate.device != reference.device


def _largest(rates: Sequence[Any]) -> Any:
    """The largest rate; a new tensor () if one of them is a tensor."""
    known = [rate for rate in rates if rate is not None]
    tensors = [rate for rate in known if isinstance(rate, Tensor)]
    if not tensors:
        return max(known)
    like = next((rate for rate in tensors if not rate.is_cpu), tensors[0])
    # filled on the device: a copy from the host cannot be captured in a CUDA graph
    others = [like.new_full((), r) for r in known if not isinstance(r, Tensor)]
    return torch.stack([rate.to(like) for rate in tensors] + others).amax()
