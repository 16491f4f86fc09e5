"""`SoapUpdate` in several processes: owners compute directions, holders change parts.

Every matrix and vector has an owner, which updates its state and computes its
direction. Weight decay, averages and distances need weights: each process computes them
for the parts that it holds. Scalars of a parameter (RMS of gradients and weights,
agreement, distance) are summed over the processes, so that all have equal ones.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ngopt import chunking
from ngopt.base.buckets import Bucket, BucketEntry, arranged, stacks_of
from ngopt.base.eigenbasis import renewal_positions
from ngopt.base.first_steps import is_matrix, spectral_excess
from ngopt.base.state import ParameterStack, counts_of, entries_of, factors_of
from ngopt.base.step_context import StepContext, StepInputs
from ngopt.base.update import SoapUpdate
from ngopt.distributed.exchange import Arrival, Exchange, make_exchanges
from ngopt.functional import Change
from ngopt.roles.kronecker_factors import Layouts, MatrixLayout, is_measured

if TYPE_CHECKING:
    from ngopt.base.soap import SoapRule

# Elements that one owner updates while others are sent.
ROUND_ELEMENTS = {"cpu": 1 << 22, "accelerator": 1 << 23}


class ShardedStepContext(StepContext):
    """A step of which this process holds parts of gradients and weights.

    own_grads: gradients of the parameters that this process owns, in the present round.
    """

    def __init__(self, update: "ShardedSoapUpdate", inputs: StepInputs):
        super().__init__(update.stack, update.positions, inputs)
        self._shards = update.shards
        self._exchanges = update.exchanges
        self._numels = update.numels
        self._moved = torch.zeros_like(self.state.scales[-2:])
        self.own_grads: Mapping[int, Tensor] = {}

    @property
    def moved(self) -> Tensor:
        """Path and distance of the parts of this process, in this step, (2, n)."""
        return self._moved

    def root_mean_squares(self, roots: Tensor) -> Tensor:
        norms = super().root_mean_squares(torch.ones_like(roots))
        squares = norms.square().view(2, -1)
        total = self._shards.sum_of_parts(squares)
        return total.sqrt().flatten() / roots

    def gathered(self, bucket: Bucket) -> Tensor:
        return bucket.gather(self.own_grads)

    def momentum_squares(self) -> Tensor:
        return self._shards.sum_of_owners(super().momentum_squares())

    def excesses(self) -> dict[int, Tensor]:
        own = self.moved.new_zeros(len(self.params))
        shards = self._shards.undivided()
        for exchange in self._exchanges:
            # once, one owner receives the whole matrix
            whole = Exchange(shards, exchange.parameters)
            for i, p in whole.to_owners(self.params)().items():
                if is_matrix(p):
                    own[i] = spectral_excess(p)
        total = self._shards.sum_of_owners(own)
        found = {}
        for i, p in enumerate(self.params):
            if p.dim() > 1:
                found[i] = total[i]
        return found

    def dense_shares(self, tables: Sequence[int]) -> Tensor:
        counts = torch.zeros_like(self._numels)
        for i in tables:
            counts[i] = (self.grads[i] != 0).sum()
        of_all = self._shards.sum_of_parts(counts) / self._numels
        shares = torch.ones_like(counts)
        shares[tables] = of_all[tables]
        return shares


class ShardedSoapUpdate(SoapUpdate):
    """The update of parameters of which this process holds parts."""

    def __init__(self, rule: "SoapRule", positions: Sequence[int], like: Tensor):
        assert rule.shards is not None
        self.shards = rule.shards.of(positions)
        most = chunking.chunk_size(ROUND_ELEMENTS, like.device)
        # size of the factor of tables with several owners, which sum it
        self._table_sizes: dict[int, int] = {}
        for i, own in enumerate(self.shards.owned):
            axes = rule.layouts[positions[i]][0].axes
            if own.is_divided and axes:
                self._table_sizes[i] = axes[0].size
        self.exchanges = make_exchanges(self.shards, most, list(self._table_sizes))
        super().__init__(rule, positions, like)
        self._replays = None  # CUDA graphs cannot contain collectives
        self.numels = self.scalars.numels

    def context(self, inputs: StepInputs) -> StepContext:
        return ShardedStepContext(self, inputs)

    def _stacked(self, layouts: Sequence[Layouts], like: Tensor) -> ParameterStack:
        own = [self.shards.layouts(i, x) for i, x in enumerate(layouts)]
        rounds = []
        self._held: list[Bucket] = []
        for exchange in self.exchanges:
            rounds.append(exchange.owned)
            measured, others = [], []  # parts that this process holds, as vectors
            for i in exchange.parameters:
                piece = self.shards.held(i)
                layout = MatrixLayout((1, 1, piece.numel, 1), part=piece.shape)
                if is_measured(layouts[i]) and self.shards.counts[i]:
                    measured.append(BucketEntry(i, 0, layout, is_measured=True))
                else:
                    others.append(BucketEntry(i, 0, layout))
            self._held.append(Bucket(others + measured, like.device))
        return ParameterStack(own, like, rounds, self._held)

    def _renewal_positions(self, layouts: Sequence[Layouts]) -> dict[int, list[float]]:
        """As in a single process: the same bases are renewed at the same steps."""
        entries = entries_of(layouts, range(len(layouts)))
        # without `Bucket`, which would need memory for the parts of all processes
        buckets = arranged(entries, self.stack.device)
        _, keys = factors_of(map(stacks_of, buckets))
        found: dict[int, list[float]] = {}
        for size, positions in renewal_positions(counts_of(keys)).items():
            rest = iter(positions)
            by_key = {}
            for k in keys[size]:
                by_key[k.parameter, k.key] = list(islice(rest, k.count))
            for k in self.stack.keys.get(size, []):
                of_size = found.setdefault(size, [])
                of_size += by_key[k.parameter, k.key]
        return found

    def _changes(self, step: StepContext) -> Iterator[list[Change]]:
        """Updates the matrices of one round while the values of others are sent."""
        assert isinstance(step, ShardedStepContext)
        self._begin(step)
        grads = step.grads
        following = iter(self.exchanges)
        arriving = next(following).to_owners(grads)
        leaving: Callable[[], list[Change]] | None = None  # the round before
        for number, exchange in enumerate(self.exchanges):
            step.own_grads = arriving()
            upcoming = next(following, None)
            arriving = upcoming.to_owners(grads) if upcoming else dict
            deltas = self._directions(step, self.stack.rounds[number])
            size = self._table_sizes.get(exchange.parameters[0])
            if size is not None and not deltas:  # this process owns no rows of a table
                self.shards.sum(step.scalars.new_zeros((1, size, size)))
            step.own_grads = {}
            arrival = exchange.to_holders(deltas, step.scalars.new_empty(0))
            if leaving is not None:
                yield leaving()
            leaving = partial(self._arrived, step, number, arrival)
        if leaving is not None:
            yield leaving()
        # path and distance of whole parameters
        moved = self.shards.sum_of_owners(step.moved)
        step.state.scales[-2:].add_(moved)

    def _directions(
        self, step: StepContext, buckets: Sequence[Bucket]
    ) -> dict[int, Tensor]:
        """step_size * u of the parameters that this process owns, by index."""
        found: dict[int, Tensor] = {}
        for bucket in buckets:
            rows = step.rows(bucket)
            u = self._direction(step, bucket, rows)
            # sent in the dtype of the state, not of products
            delta = u.to(self.stack.dtype)
            delta.mul_(step.state.momentum[bucket] != 0).mul_(rows.step_size)
            pieces = bucket.parts.split(delta)
            for entry, piece in zip(bucket.entries, pieces, strict=True):
                shape = self.shards.domain(entry.parameter).shape
                if entry.layout.view is None:
                    found[entry.parameter] = piece.reshape(shape)
                    continue
                if entry.parameter not in found:
                    found[entry.parameter] = delta.new_zeros(shape)
                place = entry.layout.select(found[entry.parameter])
                place.copy_(piece.reshape(place.shape))
        return found

    def _add_squares(
        self, step: StepContext, bucket: Bucket, stacks: Sequence[Tensor]
    ) -> None:
        i = bucket.entries[0].parameter
        if i not in self._table_sizes:  # tables of several owners have own buckets
            return super()._add_squares(step, bucket, stacks)
        ((_, axis, some),) = bucket.factors
        factor = step.state.factors[axis.size][some]
        if self.shards.owned[i].first != self.shards.rank:
            factor.zero_()
        super()._add_squares(step, bucket, stacks)
        total = self.shards.sum(factor.to(self.stack.dtype))
        factor.copy_(total)

    def _arrived(
        self, step: StepContext, number: int, arrival: Arrival
    ) -> list[Change]:
        """The changes of the parts that this process holds, with weight decay."""
        bucket = self._held[number]
        delta = bucket.gather(arrival())
        rows = step.rows(bucket)
        weights = bucket.gather(step.params).to(self.stack.dtype)
        delta = torch.addcmul(delta, weights, rows.weight_decay)
        self._update_distance(step, bucket, delta[bucket.first :])
        return self._split(step, bucket, delta)
