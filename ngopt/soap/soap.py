"""The default: SOAP (Vyas et al. 2024) with one setting for every network.

The equations are in `ngopt.soap.update`. Differences from SOAP:

- Eigenbases are renewed after they were used, except the first ones. So they do not
  contain the gradient that they are applied to. Renewal needs no QR.
- Heads, gates and experts have Kronecker factors of their own.
- Gradients are divided by about the RMS of the first one, clipped if they exceed their
  running RMS, and skipped if they are not finite (`ngopt.soap.scalars`).
- Weights whose gradient was always zero only decay. Parameters with `grad=None` do
  not change.
- The step size depends on fan, role and horizon (`ngopt.soap.schedule`), on the RMS of
  the weights and the first gradients (`ngopt.soap.first_steps`), and on the distance
  from the initial weights (`ngopt.soap.scalars`).
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch._C import DisableTorchFunctionSubclass

from ngopt import devices, functional
from ngopt.functional import BoundRule, Change, Gradients, Hyper, Record
from ngopt.graph.neural_graph import NeuralGraph
from ngopt.packing import clone_views
from ngopt.roles.buckets import Layouts
from ngopt.roles.from_graph import matrices_of_biases, roles_of
from ngopt.roles.kronecker_factors import (
    CPU_PRODUCTS,
    CPU_ROWS,
    CPU_ROWS_OF_FEW,
    FactorLimits,
    layouts_of,
)
from ngopt.schedule import warn_past_horizon
from ngopt.soap.config import Multiplier, Network, SoapConfig, kept_scalars
from ngopt.soap.eigenbasis import renewal_interval
from ngopt.soap.schedule import NOMINAL_STEP
from ngopt.soap.state import first_record
from ngopt.soap.update import SoapUpdate, Step


@dataclass(eq=False)
class Soap(functional.UpdateRule):
    """SOAP with its constants; `bind` applies it to a graph.

    Attributes:
        multiplier: Of step sizes and weight decays; None: all factors are 1.
    """

    config: SoapConfig = field(default_factory=SoapConfig)
    multiplier: Multiplier | None = None
    reads_connections = False
    shards = chooses_dtype = True
    dtypes = torch.bfloat16, torch.float32, torch.float64  # squares overflow in float16

    @property
    def weight_decay(self) -> float:
        """In AdamW's units, of runs with a horizon."""
        decay = self.config.weight_decay * self.config.step_size / NOMINAL_STEP
        return round(decay, 12)  # .45, not .44999999999999996

    @property
    def unlimited_rows(self) -> int:
        """`factor_rows` that divide nothing: no axis is longer than a factor may be."""
        return 3 * self.config.max_factor_size

    def bind(
        self,
        graph: NeuralGraph,
        total_steps: int | None = None,
        *,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> "SoapRule":
        """The rule in one process, without kernels, on the device of its state.

        device: if it is a CPU, long axes are divided.
        """
        is_on_host = device is not None and device.type == "cpu"
        rows = None if is_on_host else self.unlimited_rows
        return SoapRule(self, graph, total_steps, dtype, factor_rows=rows)


@dataclass(eq=False)
class SoapRule(BoundRule):
    """SOAP on a graph; for records see `first_record`.

    `make_update` decides how a step is executed; subclasses do it on accelerators and
    in several processes (`ngopt.accelerator.soap`, `ngopt.distributed.soap`).

    Args:
        total_steps: the horizon, if known.
        compute_dtype: of rotations and of products for Kronecker factors; None:
            `devices.product_dtype`.
        precondition_frequency: steps between two renewals of an eigenbasis; None:
            `ngopt.soap.eigenbasis.renewal_interval`.
        factor_rows: see `FactorLimits.rows`; None: chosen for a CPU.
    """

    soap: Soap
    graph: NeuralGraph
    total_steps: int | None = None
    compute_dtype: torch.dtype | None = None
    precondition_frequency: int | None = None
    factor_rows: int | None = None

    make_update: ClassVar[Callable[..., SoapUpdate]] = SoapUpdate

    def __post_init__(self) -> None:
        self.roles = roles_of(self.graph)
        self.bias_matrices = matrices_of_biases(self.graph, self.roles)
        if self.factor_rows is None:
            whole = chain.from_iterable(self._layouts(self.soap.unlimited_rows))
            is_large = sum(layout.products for layout in whole) > CPU_PRODUCTS
            self.factor_rows = CPU_ROWS if is_large else CPU_ROWS_OF_FEW
        self.layouts = self._layouts(self.factor_rows)
        self._updates: list[SoapUpdate] = []
        self._key: Any = None  # of `_updates`

    def _layouts(self, rows: int) -> list[Layouts]:
        c = self.soap.config
        limits = FactorLimits(c.max_factor_size, c.factor_memory_ratio, rows)
        parameters = zip(self.roles, self.graph.parameters, strict=True)
        return [layouts_of(role, spec, limits) for role, spec in parameters]

    def init(self, params: Sequence[Tensor]) -> list[Record]:
        records = []
        for i, p in enumerate(params):
            record = self.first_record(i, p)
            if self.total_steps is None:
                record[functional.AVERAGE] = functional.as_average(p)
            records.append(record)
        return records

    def first_record(self, i: int, p: Tensor) -> Record:
        """The state of parameter i; p: its part in this process."""
        return first_record(p, self.layouts[i], kept_scalars(self.soap.multiplier))

    def update(
        self,
        grads: Gradients,
        state: Sequence[Record],
        params: Sequence[Tensor],
        hyper: Hyper,
        in_place: bool = False,
    ) -> Iterator[list[Change]]:
        present = [i for i, grad in enumerate(grads) if grad is not None]
        if not present:
            return
        updates = self._updates_of(present, state, params, in_place)
        steps = [
            x.open(grads, state, params, hyper, in_place=in_place) for x in updates
        ]
        now = self.read_ages(steps, grads, state, hyper)
        for update, step in zip(updates, steps, strict=True):
            changes = update.changes(step, now)
            if in_place:
                yield from changes
                continue
            all_changes = list(chain.from_iterable(changes))
            update.layout.packed.close(step.records, step.state.tensors)
            yield all_changes

    def read_ages(
        self,
        steps: Sequence[Step],
        grads: Gradients,
        state: Sequence[Record],
        hyper: Hyper,
    ) -> float:
        """Reads the ages of parameters; returns the previous steps of the run."""
        now = 0.0
        for step in steps:
            step.ages = step.state.step.tolist()
            step.youngest = min(step.ages)
            now = max(now, *step.ages)
        for record, grad in zip(state, grads, strict=True):
            if grad is None and record:
                now = max(now, float(record["step"]))
        if self.total_steps and now > self.total_steps and not hyper.scheduled:
            warn_past_horizon(int(now), self.total_steps)
        return now

    def choices(self, device: torch.device) -> dict[str, int]:
        every = self.renewal_interval(device)
        assert self.factor_rows is not None
        return {"precondition_frequency": every, "factor_rows": self.factor_rows}

    def renewal_interval(self, device: torch.device) -> int:
        every = self.precondition_frequency or self.soap.config.precondition_frequency
        return every or renewal_interval(chain.from_iterable(self.layouts), device)

    def _updates_of(
        self,
        present: list[int],
        state: Sequence[Record],
        params: Sequence[Tensor],
        in_place: bool,
    ) -> list[SoapUpdate]:
        """One for each dtype and device of parameters that have a gradient."""
        kinds = []  # dtypes and devices of states
        with DisableTorchFunctionSubclass():  # which would make reading slow
            for i in present:
                momentum = state[i].get("exp_avg_0")
                if momentum is None:
                    kinds.append((functional.state_dtype(params[i]), params[i].device))
                else:
                    kinds.append((momentum.dtype, momentum.device))
        if self._key == (present, kinds):
            return self._updates
        if in_place and self._key is not None:
            absent = set(self._key[0]) - set(present)
            clone_views(state[i] for i in absent)
        alike: dict[Any, list[int]] = {}
        for i, kind in zip(present, kinds, strict=True):
            alike.setdefault(kind, []).append(i)
        self._updates = []
        for (dtype, device), positions in alike.items():
            like = torch.empty(0, dtype=dtype, device=device)
            network = self._network(positions, like)
            self._updates.append(
                self.make_update(
                    network,
                    self.soap.config,
                    self.renewal_interval(device),
                    self.compute_dtype or devices.product_dtype(device, dtype),
                    self.soap.multiplier,
                )
            )
        self._key = present, kinds
        return self._updates

    def _network(self, positions: Sequence[int], like: Tensor) -> Network:
        """The parameters at some positions; like: see `Network`."""
        places = {i: place for place, i in enumerate(positions)}
        matrices = []
        for place, i in enumerate(positions):
            matrices.append(places.get(self.bias_matrices[i], place))
        return Network(
            graph=self.graph,
            positions=positions,
            roles=[self.roles[i] for i in positions],
            layouts=[self.layouts[i] for i in positions],
            bias_matrices=matrices,
            total_steps=self.total_steps,
            like=like,
        )
