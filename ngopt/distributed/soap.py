"""SOAP in several processes: owners compute directions, holders change their parts.

Every matrix and vector has an owner, which updates its state and computes its
direction. Weight decay, averages and distances need weights: each process computes them
for the parts that it holds. Scalars of a parameter (RMS of gradients and weights,
agreement, distance) are summed over the processes, so that all have equal ones.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from ngopt import chunking
from ngopt.accelerator.soap import fast_elementwise
from ngopt.distributed.checkpoint import ShardedState
from ngopt.distributed.exchange import Arrival, Exchange, make_exchanges
from ngopt.distributed.shards import Shards
from ngopt.functional import Change, Gradients, Hyper, Record, Sums, state_dtype
from ngopt.roles.buckets import (
    Bucket,
    BucketEntry,
    MatrixLayout,
    arranged,
    entries_of,
    is_measured,
    stacks_of,
)
from ngopt.soap.config import Network, kept_scalars
from ngopt.soap.eigenbasis import renewal_positions
from ngopt.soap.elementwise import StepScalars
from ngopt.soap.schedule import ScheduledValues, must_stay_tensor
from ngopt.soap.soap import SoapRule
from ngopt.soap.state import SUMS, StateLayout, counts_of, factors_of, first_record
from ngopt.soap.update import SoapUpdate, Step

# Elements that one owner updates while others are sent.
ROUND_ELEMENTS = {"cpu": 1 << 22, "accelerator": 1 << 23}


@dataclass(eq=False)
class ShardedSoapRule(SoapRule):
    """SOAP on a graph whose parameters several processes share.

    shards: these processes.
    """

    shards: Shards = field(kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.shards.divide(self.layouts, self.renewal_interval(self.shards.device))

    def make_update(self, network: Network, *arguments: Any) -> "ShardedSoapUpdate":
        return ShardedSoapUpdate(self.shards.of(network.positions), network, *arguments)

    def first_record(self, i: int, p: Tensor) -> Record:
        layouts = self.layouts[i]
        if i >= len(self.shards.ownerships):
            return super().first_record(i, p)
        scalars = kept_scalars(self.soap.multiplier)
        record = first_record(p, self.shards.layouts(i, layouts), scalars)
        if not self.shards.owns(i):
            whole = first_record(p.new_empty(0, device="meta"), layouts, scalars)
            # torch.distributed.checkpoint needs the same keys in all processes
            for key in whole.keys() - record.keys():
                record[key] = p.new_empty(0, dtype=whole[key].dtype)
        record.pop("displacement", None)
        if is_measured(layouts):  # stored by the process that holds the part
            held = p.numel() if self.shards.counts[i] else 0
            record["displacement"] = p.new_zeros((1, 1, held, 1), dtype=state_dtype(p))
        return record

    def update(
        self,
        grads: Gradients,
        state: Sequence[Record],
        params: Sequence[Tensor],
        hyper: Hyper,
        in_place: bool = False,
    ) -> Iterator[list[Change]]:
        """Raises ValueError if processes have different inputs of a step."""
        names, rates, decays = [], [], []
        ages = set()
        for i, grad in enumerate(grads):
            if grad is None:
                continue
            lr = hyper.lr[i]
            names.append(self.graph.parameters[i].name)
            rates.append(None if must_stay_tensor(lr) else float(lr))
            decays.append(hyper.weight_decay[i])
            ages.add(int(state[i]["step"]))
        values = {
            "parameters with gradients": names,
            "lr": _runs(names, rates),
            "weight_decay": _runs(names, decays),
            "numbers of steps": sorted(ages),
            "total_steps": self.total_steps,
            **self.choices(self.shards.device),
            "compute_dtype": self.compute_dtype,
        }
        self.shards.check_equal(values)
        yield from super().update(grads, state, params, hyper, in_place)

    def shared_state(self, params: Sequence[Tensor]) -> ShardedState:
        """Converts the state of the processes; params: of the optimizer."""
        return ShardedState(self.shards, params, self.layouts[: len(params)])


def _runs(names: Sequence[str], values: Sequence[Any]) -> dict[str, Any]:
    """Values by the first name of each run of equal ones."""
    runs: dict[str, Any] = {}
    before: Any = object()
    for name, value in zip(names, values, strict=True):
        if value != before:
            runs[name] = before = value
    return runs


class SumsOfProcesses(Sums):
    """Sums over the processes that share parameters."""

    def __init__(self, shards: Shards, exchanges: Sequence[Exchange]):
        self.shards = shards
        self.exchanges = exchanges

    def norms(self, norms: Tensor) -> Tensor:
        return self.shards.sum_of_parts(norms.square().view(2, -1)).sqrt().flatten()

    def of_parts(self, values: Tensor, parameters: Sequence[int]) -> Tensor:
        of_all = values.new_zeros(len(self.shards.shapes))
        of_all[parameters] = values
        return self.shards.sum_of_parts(of_all)[parameters]

    def of_owners(self, values: Tensor) -> Tensor:
        return self.shards.sum_of_owners(values)

    def whole_parameters(
        self, params: Sequence[Tensor]
    ) -> Iterator[tuple[int, Tensor]]:
        shards = self.shards.undivided()
        for exchange in self.exchanges:
            # one owner receives the whole parameter
            yield from Exchange(shards, exchange.parameters).to_owners(params)().items()


class ShardedSoapUpdate(SoapUpdate):
    """The update of parameters of which this process holds parts."""

    def __init__(self, shards: Shards, network: Network, *arguments: Any):
        self.shards = shards
        max_elements = chunking.chunk_size(ROUND_ELEMENTS, network.device)
        # size of the factor of tables with several owners, which sum it
        self._table_sizes: dict[int, int] = {}
        for i, ownership in enumerate(shards.ownerships):
            axes = network.layouts[i][0].axes
            if ownership.is_divided and axes:
                self._table_sizes[i] = axes[0].size
        self.exchanges = make_exchanges(shards, max_elements, list(self._table_sizes))
        sums = SumsOfProcesses(shards, self.exchanges)
        super().__init__(network, *arguments, sums=sums)
        if network.device.type != "cpu":
            self.elementwise = fast_elementwise(network.device, network.like.dtype)

    def compute_scalars(self, step: Step, scheduled: ScheduledValues) -> None:
        super().compute_scalars(step, scheduled)
        step.sums = torch.zeros_like(step.sums)  # of the parts of this process

    def make_layout(self, scalars: Sequence[str]) -> StateLayout:
        layouts = self.network.layouts
        owned = [self.shards.layouts(i, x) for i, x in enumerate(layouts)]
        rounds = []
        self._held: list[Bucket] = []
        for exchange in self.exchanges:
            rounds.append(exchange.owned)
            measured, others = [], []  # parts that this process holds, as vectors
            for i in exchange.parameters:
                piece = self.shards.stored(i)
                layout = MatrixLayout((1, 1, piece.numel, 1), part=piece.shape)
                if is_measured(layouts[i]) and self.shards.counts[i]:
                    measured.append(BucketEntry(i, 0, layout, is_measured=True))
                else:
                    others.append(BucketEntry(i, 0, layout))
            self._held.append(Bucket(others + measured, self.network.device))
        return StateLayout(owned, self.network.like, scalars, rounds, self._held)

    def renewal_positions(self) -> Mapping[int, Sequence[float]]:
        """As in a single process: the same bases are renewed at the same steps."""
        layouts = self.network.layouts
        entries = entries_of(layouts, range(len(layouts)))
        # without `Bucket`, which would need memory for the parts of all processes
        _, keys = factors_of(map(stacks_of, arranged(entries, self.network.device)))
        owned: dict[int, list[float]] = {}
        for size, positions in renewal_positions(counts_of(keys)).items():
            rest = iter(positions)
            by_key = {}
            for k in keys[size]:
                by_key[k.parameter, k.key] = list(islice(rest, k.count))
            for k in self.layout.keys.get(size, []):
                of_size = owned.setdefault(size, [])
                of_size += by_key[k.parameter, k.key]
        return owned

    def bucket_changes(self, step: Step) -> Iterator[list[Change]]:
        """Updates the matrices of one round while the values of others are sent.

        round 1    gradients -> owners | directions | -> holders    | changes
        round 2              gradients -> owners    | directions    | -> holders ...
        """
        coming = iter(self.exchanges)
        arriving = next(coming).to_owners(step.grads)
        leaving: Callable[[], list[Change]] | None = None  # the round before
        for number, exchange in enumerate(self.exchanges):
            grads = arriving()
            next_exchange = next(coming, None)
            arriving = next_exchange.to_owners(step.grads) if next_exchange else dict
            deltas = self._directions(step, grads, self.layout.rounds[number])
            size = self._table_sizes.get(exchange.parameters[0])
            if size is not None and not deltas:  # this process owns no rows of a table
                self.shards.sum(step.scalars.new_zeros((1, size, size)))
            del grads
            arrival = exchange.to_holders(deltas, step.scalars.new_empty(0))
            if leaving is not None:
                yield leaving()
            leaving = partial(self._arrived, step, number, arrival)
        if leaving is not None:
            yield leaving()
        # sums of whole parameters
        step.state.scalars[SUMS].add_(self.shards.sum_of_owners(step.sums))

    def _directions(
        self, step: Step, grads: Mapping[int, Tensor], buckets: Sequence[Bucket]
    ) -> dict[int, Tensor]:
        """step_size * u of the parameters that this process owns, by index."""
        deltas: dict[int, Tensor] = {}
        for bucket in buckets:
            rows = StepScalars(*bucket.spread(step.scalars))
            u = self.direction(step, bucket, bucket.gather(grads), rows)
            # sent in the dtype of the state, not of products
            delta = u.to(self.layout.dtype)
            delta.mul_(step.state.momentum[bucket] != 0).mul_(rows.step_size)
            pieces = bucket.parts.split(delta)
            for entry, piece in zip(bucket.entries, pieces, strict=True):
                shape = self.shards.owned_slice(entry.parameter).shape
                if entry.layout.view is None:
                    deltas[entry.parameter] = piece.reshape(shape)
                    continue
                if entry.parameter not in deltas:
                    deltas[entry.parameter] = delta.new_zeros(shape)
                place = entry.layout.select(deltas[entry.parameter])
                place.copy_(piece.reshape(place.shape))
        return deltas

    def add_squares(self, step: Step, bucket: Bucket, stacks: Sequence[Tensor]) -> None:
        i = bucket.entries[0].parameter
        if i not in self._table_sizes:  # tables of several owners have own buckets
            return super().add_squares(step, bucket, stacks)
        ((_, axis, indices),) = bucket.factors
        factor = step.state.factors[axis.size][indices]
        if self.shards.ownerships[i].first != self.shards.rank:
            factor.zero_()
        super().add_squares(step, bucket, stacks)
        factor.copy_(self.shards.sum(factor.to(self.layout.dtype)))

    def _arrived(self, step: Step, number: int, arrival: Arrival) -> list[Change]:
        """The changes of the parts that this process holds, with weight decay."""
        bucket = self._held[number]
        delta = bucket.gather(arrival())
        rows = StepScalars(*bucket.spread(step.scalars))
        weights = bucket.gather(step.params).to(self.layout.dtype)
        delta = torch.addcmul(delta, weights, rows.weight_decay)
        self.add_distance(step, bucket, delta[bucket.first :])
        return self.split(step, bucket, delta)
