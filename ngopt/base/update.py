"""What updates the parameters of one dtype and device: the equations of `soap`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.graph import increment_version

from ngopt import chunking, devices
from ngopt.base.buckets import Bucket, Member
from ngopt.base.cuda_graphs import Replays, has_graphs
from ngopt.base.eigenbasis import RenewalSchedule, places_in_turn, renewed
from ngopt.base.elementwise import RowNumbers, accumulate, change, precondition
from ngopt.base.first_steps import OBSERVED, FirstSteps, StepSizeFactors
from ngopt.base.gradient_clipping import EARLY, gradient_scale
from ngopt.base.state import ParameterStack, counts_of
from ngopt.base.step_context import FactorNumbers, StepContext
from ngopt.base.step_size import FOLLOWED, ScheduledValues, ScheduleTable
from ngopt.functional import AVERAGE, Change, apply
from ngopt.roles.kronecker_factors import MatrixLayout

if TYPE_CHECKING:
    from ngopt.base.soap import SoapRule

MOST = {"cpu": 4 << 20, "accelerator": 192 << 20}  # bytes of bases renewed at once


class SoapUpdate:
    """Parameters of one dtype and device, and what updates them."""

    def __init__(self, rule: SoapRule, positions: Sequence[int], like: Tensor):
        """positions: among all parameters. like: of the state's dtype and device."""
        self.config, self.positions, device = rule.config, positions, like.device
        layouts = [rule.layouts[i] for i in positions]
        self.stack = self._stacked(layouts, like)
        roles = [rule.roles[i] for i in positions]
        self._table = ScheduleTable(rule.config, roles, rule.total_steps, device)
        every = rule.renewal_interval(device)
        self._schedule = RenewalSchedule(self._places(layouts), every, device)
        numels = [max(rule.graph.parameters[i].numel, 1) for i in positions]
        dtype = devices.precise_dtype(device)
        self._roots = torch.tensor(numels * 2, dtype=dtype, device=device).sqrt()
        tables = [i for i, x in enumerate(roles) if x.role == "embedding"]
        self._first = FirstSteps(rule.config, tables, numels, device)
        # of every bias the matrix, where both are in this group
        places = {i: place for place, i in enumerate(positions)}
        matrices = [places.get(rule.matrices[i], places[i]) for i in positions]
        self._matrices = torch.tensor(matrices, device=device)
        self._zeros = self._roots.new_zeros(len(positions))
        self._most = self.config.straight_most ** (2 / self.config.straight_exponent)
        self._dtype = rule.compute_dtype or devices.product_dtype(device, like.dtype)
        self._replays = Replays() if has_graphs(like, sum(numels)) else None

    def step(self, *given: Any) -> StepContext:
        """What a step is given; see `StepContext`."""
        return StepContext(self.stack, self.positions, *given)

    def _stacked(
        self, layouts: Sequence[Sequence[MatrixLayout]], like: Tensor
    ) -> ParameterStack:
        """The state of all parameters; for arguments see `ParameterStack`."""
        return ParameterStack(layouts, like)

    def _places(
        self, layouts: Sequence[Sequence[MatrixLayout]]
    ) -> dict[int, list[float]]:
        """When the bases of every size are renewed, see `places_in_turn`."""
        return places_in_turn(counts_of(self.stack.keys))

    def changes(self, step: StepContext, now: float) -> Iterator[list[Change]]:
        """Those of one bucket after the other; the state moves with them.

        now: steps of the training before this one.
        """
        step.youngest = min(step.ages)
        known = self._table.known(step.ages, now, step.hyper)
        newest = known.newest
        if not step.on_host:
            known = self._table.fill(known, step.hyper, step.in_place)
        if not self._replayed(step, known):
            yield from self._changes(step, known._replace(newest=newest))
            self._renew_due(step)
        step.state.step.add_(1)

    def _replayed(self, step: StepContext, known: ScheduledValues) -> bool:
        """Whether a CUDA graph has made the step, and has changed the parameters."""
        if self._replays is None or not step.is_known or step.youngest < OBSERVED:
            return False
        phase = self._schedule.phase(int(step.youngest))
        if phase is None:
            return False
        grads, averages = step.grads, [x[AVERAGE] for x in step.records if AVERAGE in x]
        changed = [*step.params, *averages]
        work = partial(self._whole, step, known)
        others = [*changed, *step.state.tensors]
        is_done = self._replays.run(phase, grads, others, work)
        step.grads, step.bases = grads, {}  # whatever a capture has left
        if is_done:  # autograd does not see what a graph changes
            increment_version(changed)
        return is_done

    def _whole(
        self, step: StepContext, known: ScheduledValues, grads: Sequence[Tensor]
    ) -> None:
        step.grads = grads
        for changes in self._changes(step, known):
            apply(changes, step.all_params)
            changes.clear()  # their memory is free while the next are made
        self._renew_due(step)

    def _renew_due(self, step: StepContext) -> None:
        for size, some in self._schedule.due(int(step.youngest)):
            self._renew_bases(step, size, some, step.of_factors[size].active[some])

    def captured(self, step: StepContext) -> Iterator[list[Change]]:
        """The same for a CUDA graph: all that varies is on the device."""
        known = self._table.advance(step.hyper)
        # a tensor of its own: the next step that is not captured fills the table
        self.stack.count_on_device(step.records, known.count.clone())
        yield from self._changes(step, known)
        for size, is_due in self._schedule.are_due(known.count.min() - 1).items():
            is_due = is_due.view(-1, 1, 1) * step.of_factors[size].active
            self._renew_bases(step, size, slice(None), is_due)

    def _changes(
        self, step: StepContext, known: ScheduledValues
    ) -> Iterator[list[Change]]:
        of_rows = self._begun(step, known)
        moments = zip(step.state.momentum, step.state.second, strict=True)
        for bucket, own in zip(self.stack.buckets, moments, strict=True):
            rows = RowNumbers(*bucket.spread(of_rows))
            delta = self._direction(step, bucket, own, rows)
            old = bucket.gather(step.params).to(self.stack.dtype)
            delta = step.fuse(change)(delta, own[0], old, rows)
            del old
            if bucket.measured:
                self._update_distance(step, bucket, delta)
            pieces = bucket.parts.split(delta)
            yield list(map(partial(self._change, step), bucket.members, pieces))
            del delta, pieces  # memory for the next bucket

    def _begun(self, step: StepContext, known: ScheduledValues) -> Tensor:
        """`RowNumbers` of all parameters, (fields, n); factors forget."""
        of_rows, of_factors = self._numbers(step, known)
        if AVERAGE in step.records[0]:
            step.newest = devices.separate(known.newest, of_rows)
        pairs = self.stack.of_factors(of_factors).items()
        step.of_factors = {size: FactorNumbers(*x) for size, x in pairs}
        for size, factors in step.state.factors.items():
            factors.mul_(step.of_factors[size].kept)
        return of_rows

    def _update_distance(
        self, step: StepContext, bucket: Bucket, delta: Tensor
    ) -> None:
        """Adds squares of steps, and squares the distance from the initial value."""
        delta = delta[bucket.first :].detach()
        total = step.state.displacement[bucket].add_(delta)
        rows = torch.stack((delta, total)).flatten(0, 1).unsqueeze(1)
        squares = torch.bmm(rows, rows.mT).view(2, -1).to(step.moved.dtype)
        owners = bucket.owners[bucket.first :]
        step.moved.index_add_(1, owners, squares)

    def _change(self, step: StepContext, m: Member, delta: Tensor) -> Change:
        i, record = m.parameter, step.records[m.parameter]
        return Change(self.positions[i], delta, record, m.layout.of, step.newest[i])

    @np.errstate(all="ignore")
    def _numbers(self, step: StepContext, known: ScheduledValues) -> Sequence[Tensor]:
        """`RowNumbers` and `FactorNumbers` of all parameters, (fields, n)."""
        c, n = self.config, len(self.positions)
        rms = step.root_mean_squares(self._roots)
        scales = step.state.scales.to(rms.dtype, copy=True)  # which moves below
        if step.on_host:
            rms, scales = rms.numpy(), scales.numpy()
        scale, running, skipped, *start, path, distance = scales
        xp = devices.array_module(rms)
        is_early = None
        if step.youngest <= EARLY:
            is_early = (known.count > 1) & (known.count <= EARLY + 1)
        corrections = known.before, known.after
        matrices = self._matrices.numpy() if step.on_host else self._matrices
        given = rms[:n], scale, running, corrections, c.clip, is_early
        g = gradient_scale(*given, matrices)
        start = self._first.updated(
            StepSizeFactors(*start), step, known, rms[n:], (running, scale)
        )
        zero = 0.0 if step.on_host else self._zeros
        scales = g.scale, g.rms, skipped + ~g.active, *start, path, zero
        step.state.scales.copy_(devices.stacked(scales, n, self._roots.dtype))

        square = g.rescale * g.rescale
        size = devices.add_product(start.offset, rms[n:], start.slope)
        size = size.clip(*FOLLOWED)
        size = xp.maximum(size, size**0.5)  # of small weights
        if c.weight_exponent != 1:
            size = size**c.weight_exponent
        decay = known.decay * g.active
        if self._table.lengthening > 1:
            longer = self._table.lengthening**start.untrained
            size, decay = size * longer, decay * longer
        straight = (distance / (path * known.usual)).clip(1.0, self._most)
        size = size * straight ** (c.straight_exponent / 2)
        of_rows = RowNumbers(
            multiplier=g.multiplier,
            momentum=xp.where(g.active, c.beta1 * g.rescale, g.rescale),
            second=xp.where(g.active, known.beta2 * square, square),
            correction=known.correction,
            damping=g.relative**2 * known.damping,
            rate=known.rate * size * g.active,
            decay=decay,
        )
        kept = xp.where(g.active, c.beta_factor * square, square)
        of_factors = FactorNumbers(kept, g.active, known.count)
        numbers = devices.stacked(of_rows + of_factors, n, self.stack.dtype)
        return numbers[: len(of_rows)], numbers[len(of_rows) :]

    def _direction(
        self,
        step: StepContext,
        bucket: Bucket,
        moments: Sequence[Tensor],
        rows: RowNumbers,
    ) -> Tensor:
        """u of the equations, (rows, lanes)."""
        c, dtype, (momentum, second) = self.config, self._dtype, moments
        grad, ahead = step.fuse(accumulate)(
            step.gathered(bucket).to(momentum.dtype), momentum, rows, c, dtype
        )
        if not bucket.factors:
            return step.fuse(precondition)(grad, ahead, second, rows)
        stacks = bucket.stacked.split(grad)
        self._update_factors(step, bucket, stacks)
        bases = [self._bases(step, axis.size)[some] for _, axis, some in bucket.factors]
        grad = bucket.rotate(stacks, bases, back=False)
        ahead = bucket.rotate(bucket.stacked.split(ahead), bases, back=False)
        u = step.fuse(precondition)(grad, ahead, second, rows)
        return bucket.rotate(bucket.stacked.split(u), bases, back=True)

    def _update_factors(
        self, step: StepContext, bucket: Bucket, stacks: Sequence[Tensor]
    ) -> None:
        """Moves the factors; the first bases are made of them at once."""
        self._add_squares(step, bucket, stacks)
        if step.youngest == 0:
            for _, axis, some in bucket.factors:
                _, active, count = step.of_factors[axis.size]
                self._renew_bases(step, axis.size, some, (active * (count == 1))[some])

    def _add_squares(
        self, step: StepContext, bucket: Bucket, stacks: Sequence[Tensor]
    ) -> None:
        """factor <- factor + (1 - b) X X^T, summed up in float32 at least."""
        alpha = 1 - self.config.beta_factor
        with devices.full_precision(step.device):
            for i, axis, some in bucket.factors:
                x, factor = axis.unfold(stacks[i]), step.state.factors[axis.size][some]
                devices.add_squares_(factor, x, alpha, step.in_place)

    def _bases(self, step: StepContext, size: int) -> Tensor:
        """Bases of a size for products; of a functional step a copy, as they move."""
        if size not in step.bases:
            basis, copy = step.state.bases[size], not step.in_place
            step.bases[size] = basis.to(self._dtype, copy=copy)
        return step.bases[size]

    @torch.no_grad()
    def _renew_bases(
        self, step: StepContext, size: int, some: slice, is_due: Tensor
    ) -> None:
        """Renews bases where is_due, (count, 1, 1), is 1: constants to autograd."""
        step.bases.pop(size, None)
        basis, factor = (x[size][some] for x in (step.state.bases, step.state.factors))
        dtype = self.stack.dtype if basis.is_cpu else basis.dtype
        count = max(
            1, chunking.amount(MOST, basis.device) // (size**2 * dtype.itemsize)
        )
        values = factor.detach(), basis, is_due
        for factor, basis, due in zip(*(x.split(count) for x in values), strict=True):
            with devices.full_precision(basis.device):
                new = renewed(factor.to(dtype), basis.to(dtype))
            basis.copy_(torch.where(due > 0, new.to(basis.dtype), basis))
