"""The default: SOAP (Vyas et al. 2024) with one setting for every network.

For every matrix G of gradients (`ngopt.roles.kronecker_factors`: which these are):

    L <- b L + (1 - b) G G^T,  R <- b R + (1 - b) G^T G    Kronecker factors
    m <- b1 m + (1 - b1) G,    n: Nesterov's momentum
    v <- b2 v + (1 - b2) (Q_L^T G Q_R)^2                   second moments, of which
                                                           v / (1 - b2) is stored
    u = Q_L [Q_L^T n Q_R / sqrt(v)] Q_R^T                  direction
    W <- W - step_size u - decay W
    Q_L, Q_R <- nearer to the eigenvectors of L and R      (`ngopt.base.eigenbasis`)

Vectors have no factors: that is Adam with Nesterov's momentum. Differences from SOAP:

- Eigenbases are renewed after they were used, except the first ones. So they do not
  contain the gradient that they are applied to. Renewal needs no QR.
- Heads, gates and experts have Kronecker factors of their own.
- Gradients are divided by about the RMS of the first one, clipped if they exceed their
  running RMS, and skipped if they are not finite (`ngopt.base.gradient_clipping`).
- Weights whose gradient was always zero only decay. Parameters with `grad=None` do
  not change.
- The step size depends on fan, role and horizon (`ngopt.base.step_size`), on the RMS of
  the weights and the first gradients (`ngopt.base.first_steps`), and on the distance
  from the initial weights (`ngopt.base.step_scalars`).
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from ngopt import devices, functional
from ngopt.base.config import SoapConfig
from ngopt.base.eigenbasis import renewal_interval
from ngopt.base.sharded_checkpoint import ShardedState
from ngopt.base.sharded_update import ShardedSoapUpdate
from ngopt.base.state import first_record
from ngopt.base.step_context import StepContext, StepInputs
from ngopt.base.step_predictor import StepPredictor
from ngopt.base.step_size import NOMINAL_STEP, is_kept
from ngopt.base.update import SoapUpdate
from ngopt.distributed.shards import Shards
from ngopt.functional import Change, Gradients, Hyper, Record, UpdateRule
from ngopt.graph.neural_graph import NeuralGraph
from ngopt.packing import clone_views
from ngopt.roles.from_graph import matrices_of_biases, roles_of
from ngopt.roles.kronecker_factors import is_measured, layouts_of
from ngopt.schedule import steps_so_far


@dataclass(eq=False)
class Soap:
    """The base rule "soap" with its constants; `bind` applies it to a graph.

    predictor: of factors of step sizes and weight decays; None: all are 1.
    """

    config: SoapConfig = field(default_factory=SoapConfig)
    predictor: StepPredictor | None = None
    name = "soap"
    Config = SoapConfig

    @property
    def tensors(self) -> dict[str, Tensor]:
        """What weights files store besides the config."""
        return {} if self.predictor is None else self.predictor._asdict()

    def with_tensors(self, tensors: Mapping[str, Tensor]) -> "Soap":
        """Raises ValueError if they are not what `tensors` gives."""
        return replace(self, predictor=StepPredictor.of(tensors))

    @property
    def weight_decay(self) -> float:
        """In AdamW's units."""
        decay = self.config.weight_decay * self.config.step_size / NOMINAL_STEP
        return round(decay, 12)  # .45, not .44999999999999996

    def bind(
        self,
        graph: NeuralGraph,
        total_steps: int | None = None,
        compute_dtype: torch.dtype | None = None,
        renew_every: int | None = None,
        shards: Shards | None = None,
    ) -> "SoapRule":
        """The rule for the parameters of a graph.

        Args:
            total_steps: the horizon, if known.
            compute_dtype: of rotations and of products for Kronecker factors; None:
                `product_dtype`.
            renew_every: steps between two renewals of an eigenbasis; None:
                `renewal_interval`.
            shards: processes that share the parameters; None: one process.
        """
        config = self.config
        every = renew_every or config.renew_every
        return SoapRule(
            config, graph, total_steps, compute_dtype, every, shards, self.predictor
        )


@dataclass(eq=False)
class SoapRule(UpdateRule):
    """SOAP on a graph; for arguments see `Soap.bind`, for records `first_record`."""

    config: SoapConfig
    graph: NeuralGraph
    total_steps: int | None = None
    compute_dtype: torch.dtype | None = None
    renew_every: int | None = None
    shards: Shards | None = None
    predictor: StepPredictor | None = None

    def __post_init__(self) -> None:
        self.roles = roles_of(self.graph)
        self.matrices = matrices_of_biases(self.graph, self.roles)
        self.layouts = []
        for role, spec in zip(self.roles, self.graph.parameters, strict=True):
            layouts = layouts_of(role, spec, self.config.longest, self.config.budget)
            self.layouts.append(layouts)
        self._key: Any = None  # of `_updates`
        self._updates: list[SoapUpdate] = []
        if self.shards is not None:
            every = self.renewal_interval(self.shards.device)
            self.shards.divide(self.layouts, every)

    def init(self, params: Sequence[Tensor]) -> list[Record]:
        records = []
        for i, p in enumerate(params):
            record = self._first_record(i, p)
            if self.total_steps is None:
                record[functional.AVERAGE] = functional.as_average(p)
            records.append(record)
        return records

    def _first_record(self, i: int, p: Tensor) -> Record:
        """p: the part of parameter i in this process."""
        layouts = self.layouts[i]
        if self.shards is None or i >= len(self.shards.owned):
            return first_record(p, layouts)
        record = first_record(p, self.shards.layouts(i, layouts))
        if not self.shards.owns(i):
            whole = first_record(p.new_empty(0, device="meta"), layouts)
            # torch.distributed.checkpoint needs the same keys in all processes
            for key in whole.keys() - record.keys():
                record[key] = p.new_empty(0, dtype=whole[key].dtype)
        record.pop("displacement", None)
        if is_measured(layouts):  # stored by the process that holds the part
            held = p.numel() if self.shards.counts[i] else 0
            dtype = functional.state_dtype(p)
            record["displacement"] = p.new_zeros((1, 1, held, 1), dtype=dtype)
        return record

    def update(
        self,
        grads: Gradients,
        state: Sequence[Record],
        params: Sequence[Tensor],
        hyper: Hyper,
        in_place: bool = False,
    ) -> Iterator[list[Change]]:
        present = [i for i, grad in enumerate(grads) if grad is not None]
        inputs = StepInputs(grads, state, params, hyper, in_place, present)
        if self.shards is not None:
            self._check_equal_inputs(inputs)
        if not present:
            return
        updates = self._updates_of(inputs)
        is_captured = devices.is_capturing(updates[0].stack.device)
        if in_place and not is_captured:
            for update in updates:
                update.copy_gradients(grads)
        steps = [update.context(inputs) for update in updates]
        now = 0.0 if is_captured else self._count_steps(steps, inputs)
        for update, step in zip(updates, steps, strict=True):
            if is_captured:
                changes = update.captured_changes(step)
            else:
                changes = update.changes(step, now)
            if in_place:
                yield from changes
                continue
            found = list(chain.from_iterable(changes))
            update.stack.packed.close(step.records, step.state.tensors)
            yield found

    def _count_steps(self, steps: Sequence[StepContext], inputs: StepInputs) -> float:
        """Previous steps of the training; sets the ages of all parameters."""
        counts: list[Any] = []
        for record, grad in zip(inputs.state, inputs.grads, strict=True):
            if grad is None and record:
                counts.append(record["step"])
        for step in steps:
            step.ages = step.state.step.tolist()
            counts += step.ages
        horizon = None if inputs.hyper.scheduled else self.total_steps
        return float(steps_so_far(counts, horizon))

    def _check_equal_inputs(self, inputs: StepInputs) -> None:
        """Raises ValueError if processes have different inputs of a step."""
        assert self.shards is not None
        names, rates, decays = [], [], []
        ages = set()
        for i in inputs.present:
            lr = inputs.hyper.lr[i]
            names.append(self.graph.parameters[i].name)
            rates.append(None if is_kept(lr) else float(lr))
            decays.append(inputs.hyper.weight_decay[i])
            ages.add(int(inputs.state[i]["step"]))
        values = {
            "parameters with gradients": names,
            "lr": _runs(names, rates),
            "weight_decay": _runs(names, decays),
            "numbers of steps": sorted(ages),
            "total_steps": self.total_steps,
            "renew_every": self.renewal_interval(self.shards.device),
            "compute_dtype": self.compute_dtype,
        }
        self.shards.check_equal(values)

    def renewal_interval(self, device: torch.device) -> int:
        layouts = chain.from_iterable(self.layouts)
        return self.renew_every or renewal_interval(layouts, device)

    def shared_state(self, params: Sequence[Tensor]) -> ShardedState:
        assert self.shards is not None
        return ShardedState(self.shards, params, self.layouts[: len(params)])

    def _updates_of(self, inputs: StepInputs) -> list[SoapUpdate]:
        """One for each dtype and device of parameters that have a gradient."""
        present = inputs.present
        kinds = []  # dtypes and devices of states
        for i in present:
            p = inputs.params[i]
            own = inputs.state[i].get("exp_avg_0")
            dtype = functional.state_dtype(p) if own is None else own.dtype
            kinds.append((dtype, p.device if own is None else own.device))
        key = present, kinds
        if self._key == key:
            return self._updates
        if inputs.in_place and self._key:
            absent = set(self._key[0]) - set(present)
            clone_views(inputs.state[i] for i in absent)
        alike: dict[Any, list[int]] = {}
        for i, kind in zip(present, kinds, strict=True):
            alike.setdefault(kind, []).append(i)
        make = SoapUpdate if self.shards is None else ShardedSoapUpdate
        updates: list[SoapUpdate] = []
        for (dtype, device), positions in alike.items():
            like = torch.empty(0, dtype=dtype, device=device)
            updates.append(make(self, positions, like))
        self._key = key
        self._updates = updates
        return updates


def _runs(names: Sequence[str], values: Sequence[Any]) -> dict[str, Any]:
    """Values by the first name of each run of equal ones."""
    found: dict[str, Any] = {}
    before: Any = object()
    for name, value in zip(names, values, strict=True):
        if value != before:
            found[name] = before = value
    return found
