"""One SOAP step of parameters of one dtype and device: the equations of `soap`."""

from collections.abc import Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.autograd.graph import increment_version

from ngopt import chunking, devices
from ngopt.base.buckets import Bucket
from ngopt.base.cuda_graphs import Replays, StepBuffers, has_graphs, step_buffers
from ngopt.base.eigenbasis import RenewalSchedule, renewal_positions, renewed
from ngopt.base.elementwise import StepScalars, accumulate, change, precondition
from ngopt.base.first_steps import OBSERVED_STEPS
from ngopt.base.state import ParameterStack, counts_of
from ngopt.base.step_context import FactorScalars, StepContext, StepInputs
from ngopt.base.step_scalars import ScalarEquations
from ngopt.base.step_size import StepSchedule
from ngopt.functional import AVERAGE, Change, apply
from ngopt.roles.kronecker_factors import Layouts

if TYPE_CHECKING:
    from ngopt.base.soap import SoapRule

# Bytes of eigenbases that are renewed in one batch.
RENEWED_BYTES = {"cpu": 4 << 20, "accelerator": 192 << 20}


class SoapUpdate:
    """The update of parameters of one dtype and device."""

    def __init__(self, rule: "SoapRule", positions: Sequence[int], like: Tensor):
        """positions: indices among all parameters of the rule. like: has the dtype and
        device of the state."""
        self.config = rule.config
        self.positions = positions
        device = like.device
        layouts = [rule.layouts[i] for i in positions]
        self.stack = self._stacked(layouts, like)
        self.scalars = ScalarEquations(rule, positions, self.stack)
        roles = [rule.roles[i] for i in positions]
        self._schedule = StepSchedule(rule.config, roles, rule.total_steps, device)
        every = rule.renewal_interval(device)
        places = self._renewal_positions(layouts)
        self._renewals = RenewalSchedule(places, every, device)
        self._dtype = rule.compute_dtype or devices.product_dtype(device, like.dtype)
        self._replays = Replays() if has_graphs(like, self.scalars.numel) else None

    def copy_gradients(self, grads: Sequence[Any]) -> None:
        """See `Replays.copy`; grads: of all parameters of the rule."""
        if self._replays is not None:
            self._replays.copy([grads[i] for i in self.positions])

    def context(self, inputs: StepInputs) -> StepContext:
        """Inputs and state of one step."""
        return StepContext(self.stack, self.positions, inputs)

    def _stacked(self, layouts: Sequence[Layouts], like: Tensor) -> ParameterStack:
        """The state of all parameters; for arguments see `ParameterStack`."""
        return ParameterStack(layouts, like)

    def _renewal_positions(self, layouts: Sequence[Layouts]) -> dict[int, list[float]]:
        return renewal_positions(counts_of(self.stack.keys))

    def changes(self, step: StepContext, now: float) -> Iterator[list[Change]]:
        """Changes of one bucket after the other; updates the state.

        Yields nothing if a CUDA graph was replayed: it has changed the parameters.
        now: previous steps of the training.
        """
        step.youngest = min(step.ages)
        on_host = self._schedule.on_host(step.ages, now, step.hyper)
        step.scheduled = on_host
        if not step.on_host:
            moved = self._schedule.to_device(on_host, step.hyper, step.in_place)
            step.scheduled = moved
        if not self._replay(step):
            weights = on_host.average_weight
            step.scheduled = step.scheduled._replace(average_weight=weights)
            yield from self._changes(step)
            self._renew_scheduled(step)
        step.state.step.add_(1)

    def _replay(self, step: StepContext) -> bool:
        """Makes the step by a CUDA graph, or returns False."""
        is_early = step.youngest < OBSERVED_STEPS
        if self._replays is None or not step.has_fixed_lr or is_early:
            return False
        phase = self._renewals.phase(int(step.youngest))
        if phase is None:
            return False
        grads = step.grads
        changed = list(step.params)
        for record in step.records:
            if AVERAGE in record:
                changed.append(record[AVERAGE])
        others = [*changed, *step.state.tensors]
        buffers = partial(step_buffers, self.stack.buckets, grads, step.params)
        work = partial(self._step_in_place, step)
        is_replayed = self._replays.run(phase, grads, others, buffers, work)
        # which a capture replaces
        step.grads = grads
        step.bases = {}
        step.buffers = None
        if is_replayed:  # autograd does not track what a graph writes
            increment_version(changed)
        return is_replayed

    def _step_in_place(self, step: StepContext, buffers: StepBuffers) -> None:
        step.grads = buffers.grads
        step.buffers = buffers
        for changes in self._changes(step):
            apply(changes, step.all_params)
            changes.clear()  # frees their memory before the next are computed
        self._renew_scheduled(step)

    def _renew_scheduled(self, step: StepContext) -> None:
        for size, some in self._renewals.bases_at(int(step.youngest)):
            active = step.of_factors[size].active[some]
            self._renew_bases(step, size, some, active)

    def captured_changes(self, step: StepContext) -> Iterator[list[Change]]:
        """Changes for capture in a CUDA graph: all that varies is on the device."""
        step.scheduled = self._schedule.advance(step.hyper)
        count = step.scheduled.count
        # a copy: the next step that is not captured overwrites the schedule's table
        self.stack.count_on_device(step.records, count.clone())
        yield from self._changes(step)
        masks = self._renewals.masks_at(count.min() - 1)
        for size, mask in masks.items():
            active = mask.view(-1, 1, 1) * step.of_factors[size].active
            self._renew_bases(step, size, slice(None), active)

    def _changes(self, step: StepContext) -> Iterator[list[Change]]:
        self._begin(step)
        for bucket in self.stack.buckets:
            rows = step.rows(bucket)
            delta = self._direction(step, bucket, rows)
            momentum = step.state.momentum[bucket]
            measured = step.change_weights(bucket, delta, momentum, rows)
            if measured is not None:
                self._update_distance(step, bucket, measured)
                continue
            weights = bucket.gather(step.params).to(self.stack.dtype)
            delta = step.fuse(change)(delta, momentum, weights, rows)
            del weights
            self._update_distance(step, bucket, delta[bucket.first :])
            yield self._split(step, bucket, delta)
            del delta  # frees memory for the next bucket

    def _begin(self, step: StepContext) -> None:
        """Computes scalars of all parameters; decays Kronecker factors."""
        step.scalars, of_factors = self.scalars.of_step(step)
        if AVERAGE in step.records[0]:
            weights = step.scheduled.average_weight
            step.average_weights = devices.separate(weights, step.scalars)
        for size, values in self.stack.of_factors(of_factors).items():
            step.of_factors[size] = FactorScalars(*values)
        for size, factors in step.state.factors.items():
            factors.mul_(step.of_factors[size].decay)

    def _update_distance(
        self, step: StepContext, bucket: Bucket, delta: Tensor
    ) -> None:
        """Adds squares of steps, and squared distances from the initial values.

        delta: changes of the measured entries, if any, (rows, lanes).
        """
        if not bucket.measured:
            return
        delta = delta.detach()
        total = step.state.displacement[bucket].add_(delta)
        both = torch.stack((delta, total))
        rows = both.flatten(0, 1).unsqueeze(1)
        squares = torch.bmm(rows, rows.mT).view(2, -1)
        moved = step.moved
        owners = bucket.owners[bucket.first :]
        moved.index_add_(1, owners, squares.to(moved.dtype))

    def _split(self, step: StepContext, bucket: Bucket, delta: Tensor) -> list[Change]:
        """The changes of the entries of a bucket; delta: (rows, lanes)."""
        found = []
        pieces = bucket.parts.split(delta)
        for entry, piece in zip(bucket.entries, pieces, strict=True):
            i = entry.parameter
            weight = step.average_weights[i]
            record = step.records[i]
            own = Change(self.positions[i], piece, record, entry.layout.select, weight)
            found.append(own)
        return found

    def _direction(
        self, step: StepContext, bucket: Bucket, rows: StepScalars
    ) -> Tensor:
        """u of the equations, (rows, lanes)."""
        momentum = step.state.momentum[bucket]
        second = step.state.second[bucket]
        grad = step.gathered(bucket).to(momentum.dtype)
        fused = step.fuse(accumulate)
        grad, ahead = fused(grad, momentum, rows, self.config, self._dtype)
        fused = step.fuse(precondition)
        if not bucket.factors:
            return fused(grad, ahead, second, rows)
        stacks = bucket.stacked.split(grad)
        self._update_factors(step, bucket, stacks)
        bases = []
        for _, axis, some in bucket.factors:
            bases.append(self._bases(step, axis.size)[some])
        grad = bucket.rotate(stacks, bases, back=False)
        stacks = bucket.stacked.split(ahead)
        ahead = bucket.rotate(stacks, bases, back=False)
        u = fused(grad, ahead, second, rows)
        stacks = bucket.stacked.split(u)
        return bucket.rotate(stacks, bases, back=True)

    def _update_factors(
        self, step: StepContext, bucket: Bucket, stacks: Sequence[Tensor]
    ) -> None:
        """Updates Kronecker factors, and computes first eigenbases from them."""
        self._add_squares(step, bucket, stacks)
        if step.youngest > 0:
            return
        for _, axis, some in bucket.factors:
            _, active, count = step.of_factors[axis.size]
            is_first = active * (count == 1)
            self._renew_bases(step, axis.size, some, is_first[some])

    def _add_squares(
        self, step: StepContext, bucket: Bucket, stacks: Sequence[Tensor]
    ) -> None:
        """factor <- factor + (1 - b) X X^T, summed in float32 at least."""
        alpha = 1 - self.config.beta_factor
        with devices.full_precision(step.device):
            for i, axis, some in bucket.factors:
                x = axis.unfold(stacks[i])
                factor = step.state.factors[axis.size][some]
                devices.add_squares_(factor, x, alpha, step.in_place)

    def _bases(self, step: StepContext, size: int) -> Tensor:
        """Eigenbases of a size in the dtype of products.

        A functional step gets a copy, as they are renewed in place.
        """
        if size not in step.bases:
            basis = step.state.bases[size]
            copy = not step.in_place
            step.bases[size] = basis.to(self._dtype, copy=copy)
        return step.bases[size]

    @torch.no_grad()
    def _renew_bases(
        self, step: StepContext, size: int, some: slice, active: Tensor
    ) -> None:
        """Renews eigenbases where `active`, (count, 1, 1), is 1, without autograd."""
        step.bases.pop(size, None)
        bases = step.state.bases[size][some]
        factors = step.state.factors[size][some]
        dtype = self.stack.dtype if bases.is_cpu else bases.dtype
        most = chunking.chunk_size(RENEWED_BYTES, bases.device)
        count = max(1, most // (size**2 * dtype.itemsize))
        batches = [x.split(count) for x in (factors.detach(), bases, active)]
        for factor, basis, mask in zip(*batches, strict=True):
            with devices.full_precision(basis.device):
                new = renewed(factor.to(dtype), basis.to(dtype))
            basis.copy_(torch.where(mask > 0, new.to(basis.dtype), basis))
