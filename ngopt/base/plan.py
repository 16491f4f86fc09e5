"""Which parameters the base rule updates together, and what it knows of each beforehand."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, TypeVar

from ngopt.base.batch import Batch, batches
from ngopt.base.config import SoapConfig
from ngopt.base.layout import MatrixLayout, layouts_of
from ngopt.base.modes import factor_shape
from ngopt.base.scale import gain, usual_size
from ngopt.base.step import Scalars
from ngopt.functional import Record
from ngopt.graph.core import NeuralGraph
from ngopt.roles import roles_of

Value = TypeVar("Value")

# Keys of what is known of a parameter's gradients; see `Measured`.
SIZE_KEYS = "scale", "size", "skipped"


@dataclass
class Plan:
    """Which parameters are updated together.

    made_for: their positions, and the dtypes and devices of their states. positions: one batch
    after the other, each a slice of them. absent: positions without a gradient. matrices: positions
    whose sizes are looked at. gains, decays, usual, phases: of the parameters, in the order of
    `positions`. is_settled: none is at a step that the host must look at, so that a compiled step
    may do without it.
    """

    made_for: Any
    positions: Sequence[int]
    batches: Sequence[tuple[slice, Batch]]
    absent: Sequence[int]
    matrices: Sequence[int]
    gains: Sequence[float]
    decays: Sequence[float]
    usual: Sequence[float | None]
    phases: Sequence[int | None]
    counts: Scalars
    sizes: Scalars
    is_settled: bool = False


class Planner:
    """Makes plans for the parameters of a graph.

    layouts: the matrices of each parameter. latest: the newest plan.
    """

    def __init__(self, config: SoapConfig, graph: NeuralGraph):
        roles = roles_of(graph)
        self.layouts = [
            layouts_of(role, spec.shape, config.longest, config.budget)
            for role, spec in zip(roles, graph.parameters, strict=True)
        ]
        self.latest: Plan | None = None
        self._gains = [gain(role, config) for role in roles]
        self._usual = [usual_size(role) for role in roles]
        self._decays = [
            config.weight_decay if role.blocks else 0.0 for role in roles
        ]
        phases = _in_turn(
            [_renewal_cost(some) for some in self.layouts], config.renew_every
        )
        has_bases = [
            any(layout.modes for layout in some) for some in self.layouts
        ]
        self._phases = [
            phase if has else None
            for phase, has in zip(phases, has_bases, strict=True)
        ]

    def plan(
        self, present: Sequence[int], state: Sequence[Record], in_place: bool
    ) -> Plan:
        """The plan for the parameters that have a gradient; the one before, if it fits.

        in_place: state is, so that what has no gradient any more gets tensors of its own.
        """
        wanted = made_for(present, state)
        if self.latest is None or self.latest.made_for != wanted:
            if in_place and self.latest is not None:
                left = set(self.latest.positions) - set(present)
                _part(state[i] for i in left)
            self.latest = self._made(wanted, state)
        return self.latest

    def _made(self, wanted: Any, state: Sequence[Record]) -> Plan:
        present, kinds = wanted
        shapes = [state[i]["exp_avg"].shape for i in present]
        layouts = [self.layouts[i] for i in present]
        positions, slices = [], []
        for places, batch in batches(shapes, layouts, kinds):
            slices.append(
                (slice(len(positions), len(positions) + len(places)), batch)
            )
            positions += [present[j] for j in places]
        counts, sizes = (
            Scalars(keys, [state[i][keys[0]].device for i in positions])
            for keys in (("step",), SIZE_KEYS)
        )

        def own(values: Sequence[Value]) -> list[Value]:
            return [values[i] for i in positions]

        return Plan(
            made_for=wanted,
            positions=positions,
            batches=slices,
            absent=sorted(set(range(len(state))) - set(positions)),
            matrices=[i for i in positions if self._usual[i]],
            gains=own(self._gains),
            decays=own(self._decays),
            usual=own(self._usual),
            phases=own(self._phases),
            counts=counts,
            sizes=sizes,
        )


def _part(records: Iterable[Record]) -> None:
    """Copies what is a piece of a joined tensor, all of which it would keep alive, and whole in
    every checkpoint."""
    for record in records:
        for key, value in record.items():
            if (
                value.untyped_storage().nbytes()
                > value.numel() * value.itemsize
            ):
                record[key] = value.clone()


def made_for(present: Sequence[int], state: Sequence[Record]) -> Any:
    """What a plan depends on."""
    likes = [state[i]["exp_avg"] for i in present]
    return present, [(like.dtype, like.device) for like in likes]


def _renewal_cost(layouts: Sequence[MatrixLayout]) -> float:
    """Of all bases of a parameter, in multiplications, up to a factor."""
    shapes = [
        factor_shape(mode, layout.shape[0])
        for layout in layouts
        for mode in layout.modes
    ]
    return float(sum(prod(shape) * shape[-1] for shape in shapes))


def _in_turn(costs: Sequence[float], steps: int) -> list[int]:
    """In which of some steps each is done, so that none costs much more than it must.

    As few steps as that allows: each has its own beginning.
    """
    totals = [0.0] * steps
    found = [0] * len(costs)
    most = max([*costs, sum(costs) / steps])
    for i in sorted(range(len(costs)), key=lambda i: -costs[i]):
        free = [
            step for step in range(steps) if totals[step] + costs[i] <= most
        ]
        found[i] = free[0] if free else totals.index(min(totals))
        totals[found[i]] += costs[i]
    return found
