"""The default: SOAP (Vyas et al. 2024) with one setting for every network.

For every matrix G of gradients (`ngopt.roles.kronecker_factors`: which these are):

    L <- b L + (1 - b) G G^T,  R <- b R + (1 - b) G^T G    Kronecker factors
    m <- b1 m + (1 - b1) G,    n: Nesterov's momentum
    v <- b2 v + (1 - b2) (Q_L^T G Q_R)^2                   second moments, of which
                                                           v / (1 - b2) is stored
    u = Q_L [Q_L^T n Q_R / sqrt(v)] Q_R^T                  direction
    W <- W - step_size u - decay W
    Q_L, Q_R <- nearer to the eigenvectors of L and R      (`ngopt.base.eigenbasis`)

Vectors have no factors: that is Adam with Nesterov's momentum. What differs from SOAP:
bases are renewed after they were used, so that they do not contain the gradient that
they are applied to (but for the first); heads, gates and experts have their own
factors; gradients are divided by about the RMS of the first, so that the loss' scale
changes nothing, clipped where they are out of proportion to their running RMS, and
skipped where they are not finite; weights that never receive a gradient only decay; the
step size follows fan, role, horizon, RMS of the weights, and what `ngopt.base.first_steps`
tells.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from ngopt import devices
from ngopt.base.config import SoapConfig
from ngopt.base.eigenbasis import renewal_interval
from ngopt.base.sharded_update import ShardedSoapUpdate
from ngopt.base.state import first_record
from ngopt.base.step_size import NOMINAL_STEP, is_kept
from ngopt.base.update import SoapUpdate
from ngopt.distributed.shards import Shards
from ngopt.functional import (
    AVERAGE,
    Change,
    Hyper,
    Record,
    UpdateRule,
    as_average,
    state_dtype,
)
from ngopt.graph.core import NeuralGraph
from ngopt.packing import unshare
from ngopt.roles.from_graph import matrices_of_biases, roles_of
from ngopt.roles.kronecker_factors import is_measured, layouts_of
from ngopt.schedule import steps_so_far


@dataclass(eq=False)
class Soap:
    """The base rule "soap" with its numbers; `bind` gives the rule on a graph."""

    config: SoapConfig = field(default_factory=SoapConfig)
    name, Config = "soap", SoapConfig

    @property
    def weight_decay(self) -> float:
        """In AdamW's units."""
        return self.config.weight_decay * self.config.step_size / NOMINAL_STEP

    def bind(
        self,
        graph: NeuralGraph,
        total_steps: int | None = None,
        compute_dtype: torch.dtype | None = None,
        renew_every: int | None = None,
        shards: Shards | None = None,
    ) -> SoapRule:
        """The rule for the parameters of a graph.

        total_steps: the horizon, if known. compute_dtype: of rotations, and of what
        factors are made of; None: see `product_dtype`. renew_every: see `SoapConfig`.
        shards: the processes that share the parameters; None: they are whole.
        """
        every = renew_every or self.config.renew_every
        return SoapRule(self.config, graph, total_steps, compute_dtype, every, shards)


@dataclass(eq=False)
class SoapRule(UpdateRule):
    """SOAP on a graph; for a record see `first_record`, for arguments `Soap.bind`."""

    config: SoapConfig
    graph: NeuralGraph
    total_steps: int | None = None
    compute_dtype: torch.dtype | None = None
    renew_every: int | None = None
    shards: Shards | None = None

    def __post_init__(self) -> None:
        self.roles = roles_of(self.graph)
        self.matrices = matrices_of_biases(self.graph, self.roles)
        limits = self.config.longest, self.config.budget
        pairs = zip(self.roles, self.graph.parameters, strict=True)
        self.layouts = [layouts_of(role, spec, *limits) for role, spec in pairs]
        self._groups: tuple[Any, list[SoapUpdate]] = None, []
        if self.shards is not None:
            every = self.renewal_interval(self.shards.device)
            self.shards.divide(self.layouts, every)

    def init(self, params: Sequence[Tensor]) -> list[Record]:
        records = [self._first_record(i, p) for i, p in enumerate(params)]
        if self.total_steps is None:
            for p, record in zip(params, records, strict=True):
                record[AVERAGE] = as_average(p)
        return records

    def _first_record(self, i: int, p: Tensor) -> Record:
        """p: what this process holds of parameter number i."""
        layouts = self.layouts[i]
        if self.shards is None or i >= len(self.shards.owned):
            return first_record(p, layouts)
        record = first_record(p, self.shards.layouts(i, layouts))
        if not self.shards.is_own(i):
            whole = first_record(p.new_empty(0, device="meta"), layouts)
            # the same keys, as torch.distributed.checkpoint asks what a state has
            for key in whole.keys() - record.keys():
                record[key] = p.new_empty(0, dtype=whole[key].dtype)
        record.pop("displacement", None)
        if is_measured(layouts):  # how far this part has moved
            shape = 1, 1, p.numel() * bool(self.shards.counts[i]), 1
            record["displacement"] = p.new_zeros(shape, dtype=state_dtype(p))
        return record

    def update(
        self,
        grads: Sequence[Tensor | None],
        state: Sequence[Record],
        params: Sequence[Tensor],
        hyper: Hyper,
        in_place: bool = False,
    ) -> Iterator[list[Change]]:
        present = [i for i, grad in enumerate(grads) if grad is not None]
        if self.shards is not None:
            self._check_alike(present, state, hyper)
        if not present:
            return
        groups = self._grouped(present, state, params, in_place)
        given = grads, state, params, hyper, in_place
        steps = [group.step(*given) for group in groups]
        is_captured, now = devices.is_capturing(steps[0].device), 0.0
        if not is_captured:
            absent = set(range(len(state))) - set(present)
            counts: list[Any] = [state[i]["step"] for i in absent if state[i]]
            for step in steps:
                step.ages = step.state.step.tolist()
                counts += step.ages
            horizon = None if hyper.scheduled else self.total_steps
            now = float(steps_so_far(counts, horizon))
        for group, step in zip(groups, steps, strict=True):
            changes = group.captured(step) if is_captured else group.changes(step, now)
            if in_place:
                yield from changes
                continue
            found = list(chain.from_iterable(changes))
            group.stack.packed.close(step.records, step.state.tensors)
            yield found

    def _check_alike(
        self, present: Sequence[int], state: Sequence[Record], hyper: Hyper
    ) -> None:
        """Raises ValueError if processes would make different steps."""
        assert self.shards is not None
        on_host = [float(x) for x in hyper.lr if not is_kept(x)]
        ages = {int(state[i]["step"]) for i in present}
        values = {
            "parameters with gradients": [
                self.graph.parameters[i].name for i in present
            ],
            "lr": sorted(set(on_host)),
            "numbers of steps": sorted(ages),
            "total_steps": self.total_steps,
        }
        self.shards.check_equal(values)

    def renewal_interval(self, device: torch.device) -> int:
        layouts = chain.from_iterable(self.layouts)
        return self.renew_every or renewal_interval(layouts, device)

    def _grouped(
        self,
        present: Sequence[int],
        state: Sequence[Record],
        params: Sequence[Tensor],
        in_place: bool,
    ) -> list[SoapUpdate]:
        """The parameters that have a gradient, by dtype and device."""
        likes = [_like(state[i], params[i]) for i in present]
        wanted = present, [(like.dtype, like.device) for like in likes]
        known, groups = self._groups
        if known != wanted:
            if in_place and known:
                unshare(state[i] for i in set(known[0]) - set(present))
            same: dict[Any, list[int]] = {}
            for i, kind in zip(*wanted, strict=True):
                same.setdefault(kind, []).append(i)
            like = [_like(state[own[0]], params[own[0]]) for own in same.values()]
            kind = SoapUpdate if self.shards is None else ShardedSoapUpdate
            groups = list(map(partial(kind, self), same.values(), like))
            self._groups = wanted, groups
        return groups


def _like(record: Record, p: Tensor) -> Tensor:
    """A tensor of the dtype and device of a parameter's state."""
    own = record.get("exp_avg_0")
    return p.new_empty(0, dtype=state_dtype(p)) if own is None else own
