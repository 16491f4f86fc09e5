"""The default in several processes: owners make directions, holders change their parts.

Everything that is a number of a parameter (RMS of gradients and weights, agreement,
distance) is summed over the processes, so that all have the same numbers. Matrices and
vectors are updated by their owners. Weight decay, averages and distances need weights,
so they are of the parts that each process holds.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from itertools import chain, islice
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ngopt import chunking
from ngopt.base.buckets import Bucket, Member, arranged, stacks_of
from ngopt.base.eigenbasis import places_in_turn
from ngopt.base.elementwise import RowNumbers
from ngopt.base.first_steps import is_matrix, spectral_excess
from ngopt.base.state import (
    ParameterStack,
    counts_of,
    factor_keys,
    members_of,
)
from ngopt.base.step_context import StepContext
from ngopt.base.step_size import ScheduledValues
from ngopt.base.update import SoapUpdate
from ngopt.distributed.exchange import Exchange, Transfer, make_exchanges
from ngopt.functional import Change
from ngopt.roles.kronecker_factors import MatrixLayout, is_measured

if TYPE_CHECKING:
    from ngopt.base.soap import SoapRule

# Elements that one owner updates at once: meanwhile others travel.
ROUND = {"cpu": 1 << 22, "accelerator": 1 << 23}


class ShardedStepContext(StepContext):
    """A step of which this process has parts of gradients and weights."""

    def __init__(self, group: ShardedSoapUpdate, *given: Any):
        super().__init__(group.stack, group.positions, *given)
        self._shards, self._exchanges = group.shards, group.exchanges
        self._numels = group.numels
        self._moved = torch.zeros_like(self.state.scales[-2:])
        self.own_grads: Mapping[int, Tensor] = {}  # of the present round

    @property
    def moved(self) -> Tensor:
        """Of the parts of this process, in this step."""
        return self._moved

    def root_mean_squares(self, roots: Tensor) -> Tensor:
        norms = super().root_mean_squares(torch.ones_like(roots))
        squares = self._shards.sum_of_parts(norms.square().view(2, -1))
        return squares.sqrt().flatten() / roots

    def gathered(self, bucket: Bucket) -> Tensor:
        values = [self.own_grads.get(i) for i in range(len(self.params))]
        return bucket.gather(values)

    def momentum_squares(self) -> Tensor:
        return self._shards.sum_of_owners(super().momentum_squares())

    def excesses(self) -> dict[int, Tensor]:
        found = self.moved.new_zeros(len(self.params))
        params, shards = dict(enumerate(self.params)), self._shards.undivided()
        for exchange in self._exchanges:
            # one owner sees the whole matrix, this once
            whole = Exchange(shards, exchange.parameters)
            for i, p in whole.domains(params, whole.to_owners(params)).items():
                if is_matrix(p):
                    found[i] = spectral_excess(p)
        found = self._shards.sum_of_owners(found).unbind()
        has = [
            p.dim() > 1 and n > 0
            for p, n in zip(self.params, self._numels, strict=True)
        ]
        return {i: x for i, x in enumerate(found) if has[i]}

    def dense_shares(self, tables: Sequence[int]) -> Tensor:
        counts = torch.zeros_like(self._numels)
        for i in tables:
            counts[i] = (self.grads[i] != 0).sum()
        found = torch.ones_like(counts)
        found[tables] = (self._shards.sum_of_parts(counts) / self._numels)[tables]
        return found

    def record_moved(self) -> None:
        """Puts path and distance of whole parameters into the state."""
        self.state.scales[-2:].add_(self._shards.sum_of_owners(self.moved))


class ShardedSoapUpdate(SoapUpdate):
    """Parameters of one dtype and device of which this process has parts."""

    def __init__(self, rule: SoapRule, positions: Sequence[int], like: Tensor):
        assert rule.shards is not None
        self.shards = rule.shards.of(positions)
        most = chunking.amount(ROUND, like.device)
        # tables of several owners, which sum up the factor together
        layouts = [rule.layouts[i] for i in positions]
        self._tables = {
            i: layouts[i][0].axes[0].size
            for i, own in enumerate(self.shards.owned)
            if own.is_divided and layouts[i][0].axes
        }
        self.exchanges = make_exchanges(self.shards, most, [*self._tables])
        super().__init__(rule, positions, like)
        self._replays = None  # collectives are in no graph
        self.numels = self._roots[: len(positions)].square().round()

    def step(self, *given: Any) -> StepContext:
        return ShardedStepContext(self, *given)

    def _stacked(
        self, layouts: Sequence[Sequence[MatrixLayout]], like: Tensor
    ) -> ParameterStack:
        own = [self.shards.layouts(i, x) for i, x in enumerate(layouts)]
        rounds = [exchange.owned for exchange in self.exchanges]
        parts = partial(self._parts, layouts, like.device)
        self._moved = list(map(parts, self.exchanges))
        return ParameterStack(own, like, rounds, self._moved)

    def _parts(
        self,
        layouts: Sequence[Sequence[MatrixLayout]],
        device: torch.device,
        exchange: Exchange,
    ) -> Bucket:
        """The parts of parameters that this process holds, as vectors."""
        members = []
        for i in exchange.parameters:
            piece = self.shards.own(i)
            layout = MatrixLayout((1, 1, piece.numel, 1), part=piece.shape)
            has = is_measured(layouts[i]) and bool(self.shards.counts[i])
            members.append(Member(i, 0, layout, has))
        return Bucket(sorted(members, key=lambda m: m.is_measured), device)

    def _places(
        self, layouts: Sequence[Sequence[MatrixLayout]]
    ) -> dict[int, list[float]]:
        """As in a single process: at the same steps the same bases."""
        buckets = arranged(members_of(layouts), self.stack.device)
        keys = factor_keys([stacks_of(bucket) for bucket in buckets])
        found: dict[int, list[float]] = {}
        for size, places in places_in_turn(counts_of(keys)).items():
            rest = iter(places)
            every = {
                (k.parameter, k.key): list(islice(rest, k.count)) for k in keys[size]
            }
            own = self.stack.keys.get(size, [])
            if own:
                pairs = [every[k.parameter, k.key] for k in own]
                found[size] = list(chain.from_iterable(pairs))
        return found

    def _changes(
        self, step: StepContext, known: ScheduledValues
    ) -> Iterator[list[Change]]:
        """While one round's values travel, the matrices of another are updated."""
        assert isinstance(step, ShardedStepContext)
        of_rows = self._begun(step, known)
        rows = [RowNumbers(*bucket.spread(of_rows)) for bucket in self.stack.buckets]
        moments = zip(step.state.momentum, step.state.second, strict=True)
        own = zip(self.stack.buckets, moments, rows, strict=True)
        grads = dict(enumerate(step.grads))
        arriving = [x.to_owners(grads) for x in self.exchanges[:1]]
        leaving: list[Any] = []
        for number, exchange in enumerate(self.exchanges):
            step.own_grads = exchange.domains(grads, arriving.pop())
            arriving += [x.to_owners(grads) for x in self.exchanges[number + 1 :][:1]]
            some = islice(own, len(self.stack.rounds[number]))
            deltas = self._directions(step, some)
            size = self._tables.get(exchange.parameters[0])
            if size is not None and not deltas:  # no rows of the table are here
                self.shards.sum(of_rows.new_zeros((1, size, size)))
            step.own_grads = {}
            like = of_rows.new_empty(0)
            leaving.append((number, deltas, exchange.to_holders(deltas, like)))
            if len(leaving) > 1:
                yield self._arrived(step, of_rows, *leaving.pop(0))
        for some in leaving:
            yield self._arrived(step, of_rows, *some)
        step.record_moved()

    def _directions(self, step: StepContext, own: Iterator[Any]) -> dict[int, Tensor]:
        """The changes of what this process owns, but for decay."""
        found: dict[int, Tensor] = {}
        for bucket, moments, rows in own:
            # of the dtype in which it travels, whatever that of products
            delta = self._direction(step, bucket, moments, rows).to(self.stack.dtype)
            delta = delta.mul_(moments[0] != 0).mul_(rows.rate)
            pieces = bucket.parts.split(delta)
            for m, piece in zip(bucket.members, pieces, strict=True):
                shape = self.shards.domain(m.parameter).shape
                if m.layout.view is None:
                    found[m.parameter] = piece.reshape(shape)
                    continue
                if m.parameter not in found:
                    found[m.parameter] = delta.new_zeros(shape)
                place = m.layout.of(found[m.parameter])
                place.copy_(piece.reshape(place.shape))
        return found

    def _add_squares(
        self, step: StepContext, bucket: Bucket, stacks: Sequence[Tensor]
    ) -> None:
        i = bucket.members[0].parameter
        if i not in self._tables:  # which have a bucket each, as they have a round
            return super()._add_squares(step, bucket, stacks)
        ((_, axis, some),) = bucket.factors
        factor = step.state.factors[axis.size][some]
        if self.shards.owned[i].first != self.shards.rank:
            factor.zero_()
        super()._add_squares(step, bucket, stacks)
        factor.copy_(self.shards.sum(factor.to(self.stack.dtype)))

    def _arrived(
        self,
        step: StepContext,
        of_rows: Tensor,
        number: int,
        deltas: Mapping[int, Tensor],
        transfer: Transfer,
    ) -> list[Change]:
        """The changes of this process' parts, with decay."""
        bucket = self._moved[number]
        parts = self.exchanges[number].parts(deltas, transfer, of_rows)
        delta = bucket.gather([parts.get(i) for i in range(len(step.params))])
        rows = RowNumbers(*bucket.spread(of_rows))
        old = bucket.gather(step.params).to(self.stack.dtype)
        delta = torch.addcmul(delta, old, rows.decay)
        if bucket.measured:
            self._update_distance(step, bucket, delta)
        pieces = bucket.parts.split(delta)
        return list(map(partial(self._change, step), bucket.members, pieces))
