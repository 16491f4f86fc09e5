"""The pure core: a rule, bound to a graph, makes a state and turns gradients into deltas.

`NGOptimizer.step` runs a rule without an autograd graph, unrolls run the same one with it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor

Record = dict[str, Tensor]
"""State of one parameter: plain tensors, which `NGOptimizer` keeps in `state[p]`."""

Function = TypeVar("Function", bound=Callable[..., Any])

DOUBLE = torch.float64, torch.complex128

AVERAGE = "average"
"""Key of a record under which a rule may keep weights that are better than the parameters
themselves."""


class Hyper(NamedTuple):
    """Per parameter: `lr` multiplies the update; `weight_decay` is decoupled, in AdamW's units.

    scheduled: whether someone else changes `lr` over time,
    so that a rule leaves out its own schedule.
    """

    lr: Sequence[float | Tensor]
    weight_decay: Sequence[float]
    scheduled: bool = False


class Change(NamedTuple):
    """What a step does to a parameter, or to some rows of it.

    position: of the parameter. delta: what is added to it. record: its new state. rows: those of
    its first axis that delta is for; None for all.
    """

    position: int
    delta: Tensor
    record: Record
    rows: slice | None = None


class UpdateRule(Protocol):
    """What one step computes, bound to a graph; all lists are in the order of `graph.parameters`.

    Values of complex parameters are real pairs on a last axis. No value of a gradient is needed on
    the host; nothing is changed in place but what `in_place` allows.
    """

    def init(self, params: Sequence[Tensor]) -> list[Record]:
        """The state before the first update.

        What a parameter's record holds, and in which shapes, depends on the parameter and on its
        place in the graph alone. It must do for parameters on the meta device too: so others ask
        for keys and shapes, and leave out parameters that need no state.
        """
        ...

    def update(
        self,
        grads: Sequence[Tensor | None],
        state: Sequence[Record],
        params: Sequence[Tensor],
        hyper: Hyper,
        in_place: bool = False,
    ) -> Iterator[Change]:
        """One step: the changes of all parameters whose gradient is not None.

        The parameter's next value is p + delta; the delta has the dtype of the state. A parameter
        whose gradient is None is absent: its value is not read. Lazy, so that new state need not
        exist for all parameters at once: who runs it may write what was yielded, a parameter and
        its record, before the next item, so neither may be read after that. A delta stays as it is
        until the next update. in_place, which takes less memory: new state may be written where the
        old one is, and a parameter may change a few rows at a time.
        """
        ...

    def may_be_traced(
        self, grads: Sequence[Tensor | None], state: Sequence[Record]
    ) -> bool:
        """Whether `torch.compile` may follow this update in place;
        else the host must look at it."""
        ...


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
    for change in rule.update(grads, state, params, hyper):
        deltas[change.position], new[change.position] = (
            change.delta,
            change.record,
        )
    return deltas, new


def uncompiled(function: Function) -> Function:
    """Marks work of the host, which `torch.compile` is to leave as it is."""
    return torch.compiler.disable(function)  # pyright: ignore[reportReturnType]


def state_dtype(param: Tensor) -> torch.dtype:
    """float64 for float64 parameters, and pairs of it, else float32."""
    return torch.float64 if param.dtype in DOUBLE else torch.float32
