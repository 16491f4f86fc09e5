"""The pure core: a rule, bound to a graph, makes a state and turns gradients into deltas.

`NGOptimizer.step` runs a rule without an autograd graph, unrolls run the same one with it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from ngopt.features import DECAYS, preprocess, update_momenta
from ngopt.graph.core import NeuralGraph
from ngopt.models.metanet import Metanet

Record = dict[str, Tensor]
"""State of one parameter: plain tensors, which `NGOptimizer` keeps in `state[p]`."""

AVERAGE = "average"
"""Key of a record under which a rule may keep weights that are better than the parameters themselves."""

MOMENTA = tuple(f"exp_avg_{i}" for i in range(len(DECAYS)))
"""A metanet's record: `step` and one momentum for each decay."""


class Hyper(NamedTuple):
    """Per parameter: `lr` multiplies the update; `weight_decay` is decoupled, in AdamW's units.

    scheduled: whether someone else changes `lr` over time, so that a rule leaves out its own schedule.
    """

    lr: Sequence[float | Tensor]
    weight_decay: Sequence[float]
    scheduled: bool = False


class UpdateRule(Protocol):
    """What one step computes, bound to a graph; all lists are in the order of `graph.parameters`.

    Values of complex parameters are real pairs on a last axis. Nothing is changed in place, and
    no value of a gradient is needed on the host.
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
    ) -> Iterator[tuple[int, Tensor, Record]]:
        """One step: (position, delta, new record) of each parameter whose gradient is not None.

        The parameter's next value is p + delta; the delta has the dtype of the state. A parameter
        whose gradient is None is absent: its value is not read. Lazy, so that new
        state need not exist for all parameters at once: who runs it may write a parameter and its
        record before the next item, so neither may be read after it was yielded.
        """
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
    for position, delta, record in rule.update(grads, state, params, hyper):
        deltas[position], new[position] = delta, record
    return deltas, new


def state_dtype(param: Tensor) -> torch.dtype:
    """float64 for float64 parameters, else float32."""
    return torch.float64 if param.dtype == torch.float64 else torch.float32


@dataclass(frozen=True)
class MetanetRule:
    """A metanet that predicts every update: p <- p + lr * u - lr * s * weight_decay * p.

    u is the metanet's prediction and s its nominal step (`config.nominal_step`), so that
    `weight_decay` has AdamW's units. A record is `step`, () float32, the number of updates so far,
    and the momenta `exp_avg_0` to `exp_avg_4`, shaped like the parameter, float32 (float64 for
    float64 parameters). The features of absent parameters are zero.
    """

    metanet: Metanet
    graph: NeuralGraph

    def init(self, params: Sequence[Tensor]) -> list[Record]:
        return [_first_record(p) for p in params]

    def update(
        self,
        grads: Sequence[Tensor | None],
        state: Sequence[Record],
        params: Sequence[Tensor],
        hyper: Hyper,
    ) -> Iterator[tuple[int, Tensor, Record]]:
        records = [None if g is None else _next_record(old, g) for g, old in zip(grads, state, strict=True)]
        features = self._features(grads, params, records)
        updates = self.graph.unflatten(self.metanet(features, self.graph))
        nominal_step = self.metanet.config.nominal_step
        for i, (p, u, record) in enumerate(zip(params, updates, records, strict=True)):
            if record is None:
                continue
            lr, decay = hyper.lr[i], hyper.weight_decay[i]
            delta = lr * u.to(device=p.device, dtype=state_dtype(p))
            if decay:
                delta = delta - lr * nominal_step * decay * p
            yield i, delta, record

    def _features(
        self,
        grads: Sequence[Tensor | None],
        params: Sequence[Tensor],
        records: Sequence[Record | None],
    ) -> Tensor:
        """Weight, gradient and momenta, preprocessed: (numel, 14); zeros where absent."""
        like = next(self.metanet.parameters())
        raw = [_raw_features(g, p, r) for g, p, r in zip(grads, params, records, strict=True)]
        columns = [self.graph.flatten([x.to(like) for x in column]) for column in zip(*raw, strict=True)]
        features = preprocess(torch.stack(columns, dim=-1))
        if all(g is not None for g in grads):
            return features
        present = [torch.full_like(p, g is not None, dtype=features.dtype) for g, p in zip(grads, params, strict=True)]
        return features * self.graph.flatten(present).to(features.device).unsqueeze(-1)


def _first_record(param: Tensor) -> Record:
    record = {"step": torch.zeros((), dtype=torch.float32)}
    for key in MOMENTA:
        record[key] = torch.zeros_like(param, dtype=state_dtype(param), requires_grad=False)
    return record


def _next_record(old: Record, grad: Tensor) -> Record:
    momenta = update_momenta([old[key] for key in MOMENTA], grad)
    return {"step": old["step"] + 1, **dict(zip(MOMENTA, momenta, strict=True))}


def _raw_features(grad: Tensor | None, param: Tensor, record: Record | None) -> list[Tensor]:
    if grad is None or record is None:
        return [torch.zeros_like(param)] * (2 + len(DECAYS))
    return [param, grad, *(record[key] for key in MOMENTA)]
