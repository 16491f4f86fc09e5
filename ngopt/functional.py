"""The functional core: update rules, and functions that apply them.

`NGOptimizer.step` runs a rule in place, without autograd. Unrolls of meta-training run
the same rule with autograd.
"""
# pyright: reportPrivateImportUsage=false

from collections.abc import (
    Callable,
    Iterable,
    Iterator,
    Mapping,
    MutableMapping,
    Sequence,
)
from itertools import chain
from typing import Any, NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor, _disable_dynamo, _foreach_add_, _foreach_lerp_

Record = dict[str, Tensor]
"""State of one parameter: plain tensors, stored by `NGOptimizer` in `state[p]`."""

State = MutableMapping[Tensor, Record]
"""State of an optimizer, by parameter."""

Gradients = Sequence[Tensor | None]
"""Of all parameters; None of those that are absent from a step."""

Function = TypeVar("Function", bound=Callable[..., Any])

DOUBLE = torch.float64, torch.complex128

AVERAGE = "average"
"""Key of a record under which a rule may store averaged weights, for evaluation."""


class Hyper(NamedTuple):
    """Settings of a step, by parameter.

    lr: multiplies the update. weight_decay: decoupled, in AdamW's units; None: that of
    the rule. scheduled: whether a scheduler changes `lr`, in place of the rule's own
    schedule. warms_up: whether the warm-up of that schedule stays nevertheless.
    """

    lr: Sequence[float | Tensor]
    weight_decay: Sequence[float | None]
    scheduled: bool = False
    warms_up: bool = False


def all_elements(x: Tensor) -> Tensor:
    return x


class Change(NamedTuple):
    """The change of a parameter, or of some of its elements, in a step."""

    position: int  # of the parameter
    delta: Tensor  # is added to the elements
    record: Record  # the new state
    # view of the elements that change
    select: Callable[[Tensor], Tensor] = all_elements
    average_weight: float | Tensor | None = None  # of the new values in the average


class SharedState(Protocol):
    """Converts state that several processes share, for state_dicts."""

    def to_dtensors(self, records: Sequence[Record]) -> list[Record]:
        """Records whose tensors are DTensors of whole parameters; collective."""
        ...

    def to_local(self, records: Sequence[Record]) -> list[Record]:
        """The part of this process of such records, or of those of a single process.

        Raises ValueError if a tensor has another shape.
        """
        ...


class BoundRule(Protocol):
    """The update of all parameters of a graph, in the order of `graph.parameters`.

    Complex values are real pairs on a last axis. An update reads no gradient on the
    host, and changes nothing in place unless `in_place` allows it.
    """

    def init(self, params: Sequence[Tensor]) -> list[Record]:
        """The state before the first update.

        Keys and shapes of a record depend only on the parameter and on its place in the
        graph. Parameters may be on the meta device, to get keys and shapes only.
        """
        ...

    def update(
        self,
        grads: Gradients,
        state: Sequence[Record],
        params: Sequence[Tensor],
        hyper: Hyper,
        in_place: bool = False,
    ) -> Iterator[list[Change]]:
        """One step: yields the changes of all parameters with a gradient.

        The next value is p + delta; the delta has the dtype of the state. Values of
        parameters without a gradient are not read. Changes are yielded in batches to
        limit memory; a parameter may change in several parts. The caller may write the
        parameters and records of a batch before the next one, so a rule must not read
        them again.

        in_place: writes new state over the old, which takes less memory. The caller
        then updates the averages (`apply`).
        """
        ...

    def may_be_traced(self, grads: Gradients, state: Sequence[Record]) -> bool:
        """Whether `torch.compile` can trace this update in place."""
        return False

    def choices(self, device: torch.device) -> Mapping[str, int]:
        """Settings of parameter groups that the rule chose for a device."""
        return {}

    def shared_state(self, params: Sequence[Tensor]) -> SharedState:
        """Of a rule that is bound to several processes, which share its state.

        params: of the optimizer, the first ones of the graph.

        Raises TypeError for a rule that processes cannot divide.
        """
        raise TypeError(f"{type(self).__name__}: expected a rule of several processes")


class UpdateRule:
    """A rule that `NGOptimizer(rule=)` takes: it is bound to the graph of a network.

    Attributes:
        weight_decay: Its own, decoupled, in AdamW's units: of groups with
            `weight_decay=None`.
        reads_connections: Whether an update depends on the connections of the graph.
        shards: Whether several processes can divide its work and state; SOAP alone.
        chooses_dtype: Whether `bind` without a dtype computes in one that it chooses;
            else NGOptimizer passes that of the state.
        dtypes: That it can compute in; None: any floating point dtype.
    """

    weight_decay: float = 0.0
    reads_connections: bool = True
    shards: bool = False
    chooses_dtype: bool = False
    dtypes: Sequence[torch.dtype] | None = None

    def bind(
        self,
        graph: Any,
        total_steps: int | None = None,
        *,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> BoundRule:
        """The rule for the parameters of a graph, a `NeuralGraph`.

        Args:
            total_steps: The horizon, if known.
            device, dtype: To compute in; None: the rule's own choice.
        """
        raise NotImplementedError


class Sums:
    """Sums over the processes that share parameters; here there is one process.

    `ngopt.distributed.soap` has those of several processes.
    """

    def norms(self, norms: Tensor) -> Tensor:
        """Norms of whole tensors; norms: of the parts in this process, (k n,)."""
        return norms

    def of_parts(self, values: Tensor, parameters: Sequence[int]) -> Tensor:
        """Sums over all parts of some parameters; values: of this process, (k,)."""
        return values

    def of_owners(self, values: Tensor) -> Tensor:
        """Values of all n parameters; values: of those that this process owns, (n,)."""
        return values

    def whole_parameters(
        self, params: Sequence[Tensor]
    ) -> Iterable[tuple[int, Tensor]]:
        """(index, all elements) of parameters that this process owns."""
        return enumerate(params)


def update_all(
    rule: BoundRule,
    grads: Gradients,
    state: Sequence[Record],
    params: Sequence[Tensor],
    hyper: Hyper,
) -> tuple[list[Tensor | None], list[Record]]:
    """The deltas of one step, None for parameters without a gradient, and new state."""
    deltas: list[Tensor | None] = [None] * len(params)
    records = list(state)
    average_weights: dict[int, float | Tensor] = {}
    for c in chain.from_iterable(rule.update(grads, state, params, hyper)):
        i = c.position
        records[i] = c.record
        if c.average_weight is not None:
            average_weights[i] = c.average_weight
        deltas[i] = _add_part(deltas[i], c, params[i])
    for i, weight in average_weights.items():
        average = records[i][AVERAGE]
        p = params[i]
        delta = deltas[i]
        assert delta is not None
        value = (p + delta).to(p.dtype)
        records[i][AVERAGE] = average + (value - average) * weight
    return deltas, records


def apply(changes: Sequence[Change], params: Sequence[Tensor]) -> None:
    """Adds changes to the parameters and updates their averages, in place."""
    targets: list[Tensor] = []
    deltas: list[Tensor] = []
    for c in changes:
        p = params[c.position]
        target = c.select(p)
        delta = c.delta
        if target is not p and not p.is_contiguous():  # the part is a copy
            target = p
            delta = _add_part(None, c, p)
        targets.append(target)
        is_alike = delta.shape == target.shape
        deltas.append(delta if is_alike else delta.reshape(target.shape))
    _foreach_add_(targets, deltas)
    averages: list[Tensor] = []
    values: list[Tensor] = []
    weights: list[Any] = []
    for c in changes:
        if c.average_weight is not None:
            averages.append(c.select(c.record[AVERAGE]))
            value = c.select(params[c.position])
            values.append(value.to(c.delta.dtype))
            weights.append(c.average_weight)
    if averages:
        _foreach_lerp_(averages, values, weights)


def _add_part(delta: Tensor | None, change: Change, p: Tensor) -> Tensor:
    """The delta of a whole parameter, with that of the elements in a change."""
    if change.select(p) is p:
        return change.delta.reshape(p.shape)
    if delta is None:
        delta = change.delta.new_zeros(p.shape)
    place = change.select(delta)
    place.copy_(change.delta.reshape(place.shape))
    return delta


def uncompiled(function: Function) -> Function:
    """Excludes a function of the host from `torch.compile`."""
    # torch.compiler.disable does the same, but imports torch._dynamo immediately
    return _disable_dynamo(function)  # pyright: ignore[reportReturnType]


def as_average(p: Tensor) -> Tensor:
    """A contiguous copy of a parameter, in the dtype of its state."""
    average = p.new_empty(p.shape, dtype=state_dtype(p))
    return average.copy_(p.detach())


def state_dtype(param: Tensor) -> torch.dtype:
    """float64 for float64 and complex128 parameters, else float32."""
    return torch.float64 if param.dtype in DOUBLE else torch.float32
