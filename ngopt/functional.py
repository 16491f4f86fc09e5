"""The pure core: a rule, bound to a graph, makes a state and turns gradients into
deltas.

`NGOptimizer.step` runs a rule without an autograd graph, unrolls run the same one with
it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from typing import Any, NamedTuple, Protocol, TypeVar

import torch
from torch import (
    Tensor,
    _disable_dynamo,  # pyright: ignore[reportPrivateImportUsage]
    _foreach_add_,  # pyright: ignore[reportPrivateImportUsage]
    _foreach_lerp_,  # pyright: ignore[reportPrivateImportUsage]
)

Record = dict[str, Tensor]
"""State of one parameter: plain tensors, which `NGOptimizer` keeps in `state[p]`."""

Function = TypeVar("Function", bound=Callable[..., Any])

DOUBLE = torch.float64, torch.complex128

AVERAGE = "average"
"""Key of a record under which a rule may keep weights that are better than the
parameters themselves."""


class Hyper(NamedTuple):
    """Per parameter: `lr` multiplies the update; `weight_decay` is decoupled, in
    AdamW's units.

    weight_decay: None for that of the rule. scheduled: whether a scheduler changes `lr`
    over time, so that a rule leaves out its own schedule.
    """

    lr: Sequence[float | Tensor]
    weight_decay: Sequence[float | None]
    scheduled: bool = False


def whole(x: Tensor) -> Tensor:
    """All elements of a parameter."""
    return x


class Change(NamedTuple):
    """What a step does to a parameter, or to some elements of it."""

    position: int  # of the parameter
    delta: Tensor  # what is added
    record: Record  # the new state
    part: Callable[[Tensor], Tensor] = whole  # view of the elements that change
    newest: float | Tensor | None = None  # weight of the new weights in the average


class UpdateRule(Protocol):
    """What one step computes, bound to a graph; all lists are in the order of
    `graph.parameters`.

    Values of complex parameters are real pairs on a last axis. No value of a gradient
    is needed on the host; nothing is changed in place but what `in_place` allows.
    """

    def init(self, params: Sequence[Tensor]) -> list[Record]:
        """The state before the first update.

        What a parameter's record holds, and in which shapes, depends on the parameter
        and on its place in the graph alone. It must do for parameters on the meta
        device too: so others ask for keys and shapes, and leave out parameters that
        need no state.
        """
        ...

    def update(
        self,
        grads: Sequence[Tensor | None],
        state: Sequence[Record],
        params: Sequence[Tensor],
        hyper: Hyper,
        in_place: bool = False,
    ) -> Iterator[list[Change]]:
        """One step: the changes of all parameters whose gradient is not None.

        The parameter's next value is p + delta; the delta has the dtype of the state. A
        parameter whose gradient is None is absent: its value is not read. Lazy, some
        changes at a time, so that those of all parameters need not exist at once: who
        runs it may write what was yielded, parameters and records, before the next
        item, so neither may be read after that. A parameter may change a part at a
        time. in_place, which takes less memory: new state is written where the old one
        is; averages are left to who runs it (`apply`).
        """
        ...

    def may_be_traced(
        self, grads: Sequence[Tensor | None], state: Sequence[Record]
    ) -> bool:
        """Whether `torch.compile` may follow this update in place;
        else the host must look at it."""
        return False

    def renewal_interval(self, device: torch.device) -> int | None:
        """Steps between renewals of a preconditioner on a device; None where there is
        none."""
        return None


def update_all(
    rule: UpdateRule,
    grads: Sequence[Tensor | None],
    state: Sequence[Record],
    params: Sequence[Tensor],
    hyper: Hyper,
) -> tuple[list[Tensor | None], list[Record]]:
    """All deltas of one step, None for absent parameters, and the whole new state."""
    deltas: list[Tensor | None] = [None] * len(params)
    new = list(state)
    newest: dict[int, float | Tensor] = {}
    for c in chain.from_iterable(rule.update(grads, state, params, hyper)):
        new[c.position] = c.record
        if c.newest is not None:
            newest[c.position] = c.newest
        deltas[c.position] = _joined(deltas[c.position], c, params[c.position])
    for i, weight in newest.items():
        average, p, delta = new[i][AVERAGE], params[i], deltas[i]
        assert delta is not None
        moved = (p + delta).to(p.dtype)
        new[i][AVERAGE] = average + (moved - average) * weight
    return deltas, new


def apply(changes: Sequence[Change], params: Sequence[Tensor]) -> None:
    """Adds changes to the parameters, and moves averages, in place."""
    targets: list[Tensor] = []
    deltas: list[Tensor] = []
    for c in changes:
        p = params[c.position]
        target, delta = c.part(p), c.delta
        if target is not p and not p.is_contiguous():  # the part is a copy
            target, delta = p, _joined(None, c, p)
        targets.append(target)
        is_alike = delta.shape == target.shape
        deltas.append(delta if is_alike else delta.reshape(target.shape))
    _foreach_add_(targets, deltas)
    averaged = [c for c in changes if c.newest is not None]
    if averaged:
        averages = [c.part(c.record[AVERAGE]) for c in averaged]
        new = [c.part(params[c.position]).to(c.delta.dtype) for c in averaged]
        weights: list[Any] = [c.newest for c in averaged]
        _foreach_lerp_(averages, new, weights)


def _joined(delta: Tensor | None, change: Change, p: Tensor) -> Tensor:
    """The delta of all of a parameter, with that of some elements."""
    if change.part(p) is p:
        return change.delta.reshape(p.shape)
    if delta is None:
        delta = change.delta.new_zeros(p.shape)
    place = change.part(delta)
    place.copy_(change.delta.reshape(place.shape))
    return delta


def uncompiled(function: Function) -> Function:
    """Marks work of the host, which `torch.compile` is to leave as it is."""
    # torch.compiler.disable does the same, but imports torch._dynamo at once
    return _disable_dynamo(function)  # pyright: ignore[reportReturnType]


def as_average(p: Tensor) -> Tensor:
    """A contiguous copy of a parameter, in the dtype of its state."""
    average = p.new_empty(p.shape, dtype=state_dtype(p))
    return average.copy_(p.detach())


def state_dtype(param: Tensor) -> torch.dtype:
    """float64 for float64 parameters, and pairs of it, else float32."""
    return torch.float64 if param.dtype in DOUBLE else torch.float32
