"""One SOAP step of parameters of one dtype and device.

`SoapUpdate.work` is the algorithm, and `SoapUpdate.direction` has the equations of the
matrices in a bucket. What accelerators and several processes do differently overrides
methods of `SoapUpdate`: see `ngopt.accelerator.soap` and `ngopt.distributed.soap`.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from ngopt import devices
from ngopt.chunking import chunk_size
from ngopt.devices import Array
from ngopt.functional import AVERAGE, Change, Hyper, Record, Sums
from ngopt.roles.buckets import Bucket
from ngopt.soap.config import (
    FIRST_VALUES,
    Measured,
    Multiplier,
    Network,
    SoapConfig,
    kept_scalars,
)
from ngopt.soap.eigenbasis import Renewal, RenewalSchedule, renewal_positions, renewed
from ngopt.soap.elementwise import ELEMENTWISE, Elementwise, StepScalars
from ngopt.soap.first_steps import OBSERVED_STEPS
from ngopt.soap.scalars import FactorScalars, ScalarEquations
from ngopt.soap.schedule import ScheduledValues, StepSchedule, must_stay_tensor
from ngopt.soap.state import SUMS, StackedState, StateLayout, counts_of

# Bytes of eigenbases that are renewed in one batch.
RENEWED_BYTES = {"cpu": 4 << 20, "accelerator": 192 << 20}


@dataclass(eq=False)
class Step:
    """Inputs and values of one step of n parameters."""

    grads: Sequence[Tensor]
    params: Sequence[Tensor]
    records: Sequence[Record]
    hyper: Hyper
    all_params: Sequence[Tensor]  # of the rule
    in_place: bool  # neither autograd nor vmap traces the step
    has_fixed_lr: bool  # it is in place, and learning rates may be read
    on_host: bool  # scalars are computed by NumPy
    state: StackedState  # of `records`; the step updates it in place
    average_weights: Sequence[Any]  # of the new values in the averages
    elementwise: Elementwise
    ages: Sequence[float] = ()  # previous gradients; () if they are on the device
    youngest: float = torch.inf  # least age; infinite if ages are on the device
    scalars: Tensor = field(init=False)  # `StepScalars`, (fields, n)
    of_factors: dict[int, FactorScalars] = field(default_factory=dict)  # by size
    sums: Tensor = field(init=False)  # rows `SUMS` of the state: the step adds to them
    bases: dict[int, Tensor] = field(default_factory=dict)  # by size, for products


class SoapUpdate:
    """The update of a network's parameters, all of one dtype and device.

    Args:
        every: steps between two renewals of an eigenbasis.
        product_dtype: of rotations and of products for Kronecker factors.
        multiplier: of step sizes; None: all factors are 1.
        sums: over processes; None: there is one.
    """

    def __init__(
        self,
        network: Network,
        config: SoapConfig,
        every: int,
        product_dtype: torch.dtype,
        multiplier: Multiplier | None = None,
        sums: Sums | None = None,
    ):
        self.network = network
        self.config = config
        self.sums = sums or Sums()
        self.elementwise = ELEMENTWISE  # in place; autograd and vmap have no kernels
        self.on_host = network.like.is_cpu  # where learning rates may be read
        self._multiplier = multiplier.bind(network) if multiplier else None
        self._kept = list(kept_scalars(multiplier))
        self._product_dtype = product_dtype
        has_tf32 = network.device.type == "cuda"
        self._full_precision = devices.full_precision if has_tf32 else nullcontext
        self._renewed_bytes = chunk_size(RENEWED_BYTES, network.device)
        self.layout = self.make_layout(self._kept)
        parameters = network.graph.parameters
        self.layout.packed.names = [parameters[i].name for i in network.positions]
        self.schedule = StepSchedule(network, config)
        self.renewals = RenewalSchedule(self.renewal_positions(), every)
        self.scalars = ScalarEquations(network, config)
        numels = self.scalars.first_steps.numels
        self._roots = torch.cat((numels, numels)).sqrt()
        # the matrix of each measured row, also of those of a bias
        matrices = self.scalars.bias_matrices
        self._matrices = {x: matrices[x.owners[x.first :]] for x in self.layout.buckets}

    def make_layout(self, scalars: Sequence[str]) -> StateLayout:
        """The layout of the state; scalars: names of those of a multiplier."""
        return StateLayout(self.network.layouts, self.network.like, scalars)

    def renewal_positions(self) -> Mapping[int, Sequence[float]]:
        """See `ngopt.soap.eigenbasis.renewal_positions`."""
        return renewal_positions(counts_of(self.layout.keys))

    def open(
        self,
        grads: Sequence[Any],
        records: Sequence[Record],
        params: Sequence[Tensor],
        hyper: Hyper,
        in_place: bool,
    ) -> Step:
        """One step; arguments: of all parameters of the rule (`BoundRule.update`)."""
        positions = self.network.positions
        own_records = [records[i] for i in positions]
        if not in_place:
            own_records = [dict(record) for record in own_records]
        lr = [hyper.lr[i] for i in positions]
        has_fixed_lr = in_place and not any(map(must_stay_tensor, set(lr)))
        weight_decay = [hyper.weight_decay[i] for i in positions]
        return Step(
            grads=[grads[i] for i in positions],
            params=[params[i] for i in positions],
            records=own_records,
            hyper=hyper._replace(lr=lr, weight_decay=weight_decay),
            all_params=params,
            in_place=in_place,
            has_fixed_lr=has_fixed_lr,
            state=self.layout.open(own_records, in_place),
            on_host=has_fixed_lr and self.on_host,
            average_weights=[None] * len(positions),
            elementwise=self.elementwise if in_place else ELEMENTWISE,
        )

    def changes(self, step: Step, now: float) -> Iterator[list[Change]]:
        """Makes the step: yields the changes of one bucket after the other.

        now: previous steps of the run.
        """
        scheduled = self.schedule.of_step(
            step.ages, now, step.hyper, step.on_host, step.in_place
        )
        yield from self.work(step, scheduled, self.renewals.at(int(step.youngest)))
        step.state.step.add_(1)

    def work(
        self, step: Step, scheduled: ScheduledValues, renewals: Iterable[Renewal]
    ) -> Iterator[list[Change]]:
        """The algorithm, after counts were turned into scheduled values.

        1. Measure gradients and weights; compute step sizes and other scalars.
        2. Decay the Kronecker factors.
        3. For each bucket of matrices and vectors: the direction u (`direction`), then
           W <- W + step_size u + decay W, both scalars negative (`change`).
        4. Renew the eigenbases that are due, with factors that contain this gradient.
        """
        self.compute_scalars(step, scheduled)
        for size, factors in step.state.factors.items():
            factors.mul_(step.of_factors[size].decay)
        yield from self.bucket_changes(step)
        for size, indices, mask in renewals:
            active = step.of_factors[size].active[indices]
            self.renew(step, size, indices, active if mask is None else mask * active)

    def bucket_changes(self, step: Step) -> Iterator[list[Change]]:
        """Updates one bucket after the other, to limit memory."""
        for bucket in self.layout.buckets:
            rows = StepScalars(*bucket.spread(step.scalars))
            u = self.direction(step, bucket, self.gradients(step, bucket), rows)
            changes = self.change(step, bucket, u, rows)
            del u  # frees memory for the next bucket
            if changes:
                yield changes

    def gradients(self, step: Step, bucket: Bucket) -> Tensor:
        """Gradients of the entries of a bucket, (rows, lanes)."""
        return bucket.gather(step.grads)

    def direction(
        self, step: Step, bucket: Bucket, grad: Tensor, rows: StepScalars
    ) -> Tensor:
        """The direction u of a bucket, (rows, lanes); updates its state.

            m <- b1 m + (1 - b1) G,    n: Nesterov's momentum
            L <- b L + (1 - b) G G^T,  R <- b R + (1 - b) G^T G      Kronecker factors
            v <- b2 v + (1 - b2) (Q_L^T G Q_R)^2                     second moments
            u = Q_L [Q_L^T n Q_R / sqrt(v)] Q_R^T

        G is the gradient times `grad_scale`. L and R have been decayed; v / (1 - b2) is
        stored. Without factors Q_L = Q_R = 1: that is Adam with Nesterov's momentum.

        Also sums the inner products of G / sqrt(v) and u, both in the eigenbasis.
        """
        momentum = step.state.momentum[bucket]
        second = step.state.second[bucket]
        grad, ahead = step.elementwise.accumulate(
            grad.to(momentum.dtype), momentum, rows, self.config, self._product_dtype
        )
        bases = []
        if bucket.factors:
            stacks = bucket.stacked.split(grad)
            self.add_squares(step, bucket, stacks)
            if step.youngest == 0:  # first eigenbases, of first factors
                for _, axis, indices in bucket.factors:
                    factors = step.of_factors[axis.size]
                    is_first = factors.active * (factors.count == 1)
                    self.renew(step, axis.size, indices, is_first[indices])
            for _, axis, indices in bucket.factors:
                if axis.size not in step.bases:
                    # a functional step gets a copy, as they are renewed in place
                    of_size = step.state.bases[axis.size]
                    copy = not step.in_place
                    step.bases[axis.size] = of_size.to(self._product_dtype, copy=copy)
                bases.append(step.bases[axis.size][indices])
            grad = bucket.rotate(grad, stacks, bases, False, step.in_place)
            stacks = bucket.stacked.split(ahead)
            ahead = bucket.rotate(ahead, stacks, bases, False, step.in_place)
        first = bucket.first
        u, inverse_roots = step.elementwise.precondition(
            grad, ahead, second, rows, first
        )
        if bucket.measured:  # products of a bias are added to those of its matrix
            x = (grad[first:] * inverse_roots).detach()
            y = u[first:].detach().to(x.dtype)
            products = devices.row_products([(x, x), (x, y), (y, y)])
            sums = step.sums[2:]
            sums.index_add_(1, self._matrices[bucket], products.to(sums.dtype))
        if bucket.factors:
            stacks = bucket.stacked.split(u)
            u = bucket.rotate(u, stacks, bases, True, step.in_place)
        return u

    def change(
        self, step: Step, bucket: Bucket, u: Tensor, rows: StepScalars
    ) -> list[Change]:
        weights = bucket.gather(step.params).to(self.layout.dtype)
        momentum = step.state.momentum[bucket]
        delta = step.elementwise.change(u, momentum, weights, rows)
        del weights
        self.add_distance(step, bucket, delta[bucket.first :])
        return self.split(step, bucket, delta)

    def compute_scalars(self, step: Step, scheduled: ScheduledValues) -> None:
        """Computes the scalars of all parameters, and updates those of the state."""
        rows: Array = step.state.scalars.to(self._roots.dtype, copy=True)
        rows = rows.numpy() if step.on_host else rows
        measured = self.measure(step)
        multiplier, kept = None, rows[SUMS.stop :]
        if self._multiplier is not None:
            multiplier, kept = self._multiplied(step, measured, scheduled, kept)
        state, of_parameters, of_factors = self.scalars.of_step(
            measured, scheduled, rows[: SUMS.stop], multiplier, step.youngest
        )
        kinds = (*state, *kept), of_parameters, of_factors
        of_all = list(chain.from_iterable(kinds))
        table = devices.stacked(of_all, len(step.params), self.layout.dtype)
        of_state, step.scalars, of_factors = table.split_with_sizes([*map(len, kinds)])
        step.state.scalars.copy_(of_state)
        step.sums = step.state.scalars[SUMS]
        for size, scalars in self.layout.of_factors(of_factors).items():
            step.of_factors[size] = FactorScalars(*scalars.unbind())
        if AVERAGE in step.records[0]:
            weights = scheduled.average_weight
            step.average_weights = devices.separate(weights, step.scalars)

    def measure(self, step: Step) -> Measured:
        tensors, roots = [*step.grads, *step.params], self._roots
        norms = self.sums.norms(devices.norms(tensors, roots.dtype, step.in_place))
        is_early = step.youngest < OBSERVED_STEPS
        early = self._measure_early(step, norms) if is_early else {}
        if step.on_host:
            norms, roots = norms.numpy(), roots.numpy()
            early = {key: x.numpy() for key, x in early.items()}
        grad_rms, weight_rms = (norms / roots).reshape(2, -1)
        return Measured(grad_rms, weight_rms, **early)

    def _measure_early(self, step: Step, norms: Tensor) -> dict[str, Any]:
        """What is measured in the first steps only."""
        first_steps = self.scalars.first_steps
        of_grads, of_params = norms.view(2, -1)
        inputs = step.grads, step.params, of_grads * of_params, self.sums
        measured = {"radial": first_steps.radial(*inputs)}
        if step.youngest >= 2:
            squares = self.layout.squares(step.state.momentum)
            measured["momentum_squares"] = self.sums.of_owners(squares)
        observed = first_steps.tables
        if step.youngest == 0:
            measured["is_first"] = torch.tensor(step.ages, device=norms.device) == 0
            measured["excess"] = first_steps.excess(step.params, self.sums)
            if self._multiplier is not None:
                roles = enumerate(self.network.roles)
                observed = [i for i, role in roles if role.blocks]
        if observed:
            measured["density"] = first_steps.density(step.grads, observed, self.sums)
        return measured

    def _multiplied(
        self, step: Step, measured: Measured, scheduled: ScheduledValues, rows: Array
    ) -> tuple[Array, list[Tensor]]:
        """Calls the multiplier; returns the factors, and the new rows that it keeps."""
        assert self._multiplier is not None
        as_tensor = partial(torch.as_tensor, device=self.network.device)
        kept = dict(zip(self._kept, as_tensor(rows), strict=True))
        items = [(k, x) for k, x in measured._asdict().items() if x is not None]
        values: dict[str, Any] = {k: as_tensor(x).detach() for k, x in items}
        if "is_first" in values:
            # a network without matrices has no measured density
            values.setdefault("density", torch.ones_like(values["grad_rms"]))
            for key in FIRST_VALUES:
                old = kept[f"first_{key}"]
                new = torch.where(values["is_first"], values[key], old)
                kept[f"first_{key}"] = new
        first: dict[str, Any] = {key: kept[f"first_{key}"] for key in FIRST_VALUES}
        values["first"] = Measured(**first)
        has_horizon = self.network.total_steps is not None and not step.hyper.scheduled
        progress = scheduled.progress if has_horizon else None
        factors = self._multiplier(Measured(**values), progress, kept)
        new_rows = [kept[key] for key in self._kept]
        return factors.numpy() if step.on_host else factors, new_rows

    def add_squares(self, step: Step, bucket: Bucket, stacks: Sequence[Tensor]) -> None:
        """factor <- factor + (1 - b) X X^T, summed in float32 at least."""
        alpha = 1 - self.config.beta_factor
        with self._full_precision(self.layout.device):
            for i, axis, indices in bucket.factors:
                factor = step.state.factors[axis.size][indices]
                x = axis.unfold(stacks[i])
                devices.add_squares_(factor, x, alpha, step.in_place)

    def renew(self, step: Step, size: int, indices: slice, active: Tensor) -> None:
        """Renews eigenbases where `active`, (count, 1, 1), is 1, without autograd."""
        step.bases.pop(size, None)
        bases = step.state.bases[size][indices]
        factors = step.state.factors[size][indices]
        dtype = self.layout.dtype if bases.is_cpu else bases.dtype
        count = max(1, self._renewed_bytes // (size**2 * dtype.itemsize))
        batches = [x.detach().split(count) for x in (factors, bases, active)]
        for factor, basis, mask in zip(*batches, strict=True):
            with self._full_precision(basis.device):
                new = renewed(factor.to(dtype), basis.to(dtype))
            basis.copy_(basis.lerp(new.to(basis.dtype), mask.to(basis.dtype)))

    def add_distance(self, step: Step, bucket: Bucket, delta: Tensor) -> None:
        """Adds squares of steps, and squared distances from the initial values.

        delta: changes of the measured entries, if any, (rows, lanes).
        """
        if not bucket.measured:
            return
        delta = delta.detach()
        total = step.state.displacement[bucket].add_(delta)
        squares = devices.row_products([(delta, delta), (total, total)])
        owners = bucket.owners[bucket.first :]
        path_and_distance = step.sums[:2]
        path_and_distance.index_add_(1, owners, squares.to(step.sums.dtype))

    def split(self, step: Step, bucket: Bucket, delta: Tensor) -> list[Change]:
        """The changes of the entries of a bucket; delta: (rows, lanes)."""
        changes = []
        for entry, piece in zip(bucket.entries, bucket.parts.split(delta), strict=True):
            i = entry.parameter
            position, weight = self.network.positions[i], step.average_weights[i]
            record, part = step.records[i], entry.layout.select
            changes.append(Change(position, piece, record, part, weight))
        return changes
