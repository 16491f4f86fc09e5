"""One SOAP step of parameters of one dtype and device.

`SoapUpdate.work` is the algorithm, and `SoapUpdate.direction` has the equations of the
matrices in a bucket. What accelerators and several processes do differently overrides
methods of `SoapUpdate`: see `ngopt.accelerator.soap` and `ngopt.distributed.soap`.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ngopt import devices
from ngopt.chunking import chunk_size
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
from ngopt.soap.state import SUMS, ScalarState, StackedState, StateLayout, counts_of

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
    elementwise: Elementwise = ELEMENTWISE
    write_out: bool = False  # whether products are written to their places by `out=`
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
            on_host=has_fixed_lr and self.network.like.is_cpu,
            average_weights=[None] * len(positions),
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
        """
        momentum = step.state.momentum[bucket]
        second = step.state.second[bucket]
        grad, ahead = step.elementwise.accumulate(
            grad.to(momentum.dtype), momentum, rows, self.config, self._product_dtype
        )
        if not bucket.factors:
            u = step.elementwise.precondition(grad, ahead, second, rows)
            self.add_products(step, bucket, grad, u, rows)
            return u
        stacks = bucket.stacked.split(grad)
        self.add_squares(step, bucket, stacks)
        if step.youngest == 0:  # first eigenbases, of first factors
            for _, axis, indices in bucket.factors:
                factors = step.of_factors[axis.size]
                is_first = factors.active * (factors.count == 1)
                self.renew(step, axis.size, indices, is_first[indices])
        bases = []
        for _, axis, indices in bucket.factors:
            if axis.size not in step.bases:
                # a functional step gets a copy, as they are renewed in place
                of_size = step.state.bases[axis.size]
                copy = not step.in_place
                step.bases[axis.size] = of_size.to(self._product_dtype, copy=copy)
            bases.append(step.bases[axis.size][indices])
        grad = bucket.rotate(stacks, bases, False, step.write_out)
        stacks = bucket.stacked.split(ahead)
        ahead = bucket.rotate(stacks, bases, False, step.write_out)
        u = step.elementwise.precondition(grad, ahead, second, rows)
        self.add_products(step, bucket, grad, u, rows)
        return bucket.rotate(bucket.stacked.split(u), bases, True, step.write_out)

    def change(
        self, step: Step, bucket: Bucket, u: Tensor, rows: StepScalars
    ) -> list[Change]:
        """The changes of the weights of a bucket."""
        weights = bucket.gather(step.params).to(self.layout.dtype)
        momentum = step.state.momentum[bucket]
        delta = step.elementwise.change(u, momentum, weights, rows)
        del weights
        self.add_distance(step, bucket, delta[bucket.first :])
        return self.split(step, bucket, delta)

    def compute_scalars(self, step: Step, scheduled: ScheduledValues) -> None:
        """Computes the scalars of all parameters, and updates those of the state."""
        count = len(step.params)
        rows = step.state.scalars.to(self._roots.dtype, copy=True)
        values, kept = rows.split([SUMS.stop, len(self._kept)])
        measured = self.measure(step)
        multiplier = None
        if self._multiplier is not None:
            multiplier, kept = self._multiplied(step, measured, scheduled, kept)
        if step.on_host:
            values = values.numpy()
            tensors = measured._asdict().items()
            arrays = {k: x.numpy() for k, x in tensors if isinstance(x, Tensor)}
            measured = measured._replace(**{**arrays, "excess": measured.excess})
            kept = [x.numpy() for x in kept]
            multiplier = None if multiplier is None else multiplier.numpy()
        new = self.scalars.of_step(
            measured, scheduled, ScalarState(*values), multiplier, step.youngest
        )
        table = devices.stacked((*new.state, *kept), count, self._roots.dtype)
        step.state.scalars.copy_(table)
        step.sums = step.state.scalars[SUMS]
        table = devices.stacked(
            (*new.of_parameters, *new.of_factors), count, self.layout.dtype
        )
        step.scalars = table[: len(new.of_parameters)]
        of_factors = self.layout.of_factors(table[len(new.of_parameters) :])
        for size, scalars in of_factors.items():
            step.of_factors[size] = FactorScalars(*scalars)
        if AVERAGE in step.records[0]:
            weights = scheduled.average_weight
            step.average_weights = devices.separate(weights, step.scalars)

    def measure(self, step: Step) -> Measured:
        """Measures gradients and weights; most values in the first steps only."""
        count = len(step.params)
        tensors = [*step.grads, *step.params]
        norms = devices.norms(tensors, self._roots.dtype, step.in_place)
        norms = self.sums.norms(norms)
        rms = norms / self._roots
        measured = Measured(rms[:count], rms[count:])
        if step.youngest >= OBSERVED_STEPS:
            return measured
        first_steps = self.scalars.first_steps
        products = norms[:count] * norms[count:]
        radial = first_steps.radial(step.grads, step.params, products, self.sums)
        measured = measured._replace(radial=radial)
        if step.youngest >= 2:
            squares = self.layout.squares(step.state.momentum)
            measured = measured._replace(momentum_squares=self.sums.of_owners(squares))
        observed = first_steps.tables
        if step.youngest == 0:
            ages = torch.tensor(step.ages, device=rms.device)
            measured = measured._replace(
                is_first=ages == 0, excess=first_steps.excess(step.params, self.sums)
            )
            if self._multiplier is not None:
                roles = enumerate(self.network.roles)
                observed = [i for i, role in roles if role.blocks]
        if observed:
            density = first_steps.density(step.grads, observed, self.sums)
            measured = measured._replace(density=density)
        return measured

    def _multiplied(
        self, step: Step, measured: Measured, scheduled: ScheduledValues, rows: Tensor
    ) -> tuple[Tensor, list[Tensor]]:
        """Calls the multiplier; returns the factors, and the new rows that it keeps."""
        assert self._multiplier is not None
        kept = dict(zip(self._kept, rows, strict=True))
        items = measured._asdict().items()
        values: dict[str, Any] = {k: x.detach() for k, x in items if x is not None}
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
        return factors, [kept[key] for key in self._kept]

    def add_squares(self, step: Step, bucket: Bucket, stacks: Sequence[Tensor]) -> None:
        """factor <- factor + (1 - b) X X^T, summed in float32 at least."""
        alpha = 1 - self.config.beta_factor
        with self._full_precision(self.layout.device):
            for i, axis, indices in bucket.factors:
                factor = step.state.factors[axis.size][indices]
                x = axis.unfold(stacks[i])
                devices.add_squares_(factor, x, alpha, step.in_place)

    @torch.no_grad()
    def renew(self, step: Step, size: int, indices: slice, active: Tensor) -> None:
        """Renews eigenbases where `active`, (count, 1, 1), is 1, without autograd."""
        step.bases.pop(size, None)
        bases = step.state.bases[size][indices]
        factors = step.state.factors[size][indices]
        dtype = self.layout.dtype if bases.is_cpu else bases.dtype
        count = max(1, self._renewed_bytes // (size**2 * dtype.itemsize))
        batches = [x.split(count) for x in (factors.detach(), bases, active)]
        for factor, basis, mask in zip(*batches, strict=True):
            with self._full_precision(basis.device):
                new = renewed(factor.to(dtype), basis.to(dtype))
            basis.copy_(torch.where(mask > 0, new.to(basis.dtype), basis))

    def add_distance(self, step: Step, bucket: Bucket, delta: Tensor) -> None:
        """Adds squares of steps, and squared distances from the initial values.

        delta: changes of the measured entries, if any, (rows, lanes).
        """
        if not bucket.measured:
            return
        delta = delta.detach()
        total = step.state.displacement[bucket].add_(delta)
        rows = torch.stack((delta, total)).flatten(0, 1).unsqueeze(1)
        squares = torch.bmm(rows, rows.mT).view(2, -1)
        owners = bucket.owners[bucket.first :]
        path_and_distance = step.sums[:2]
        path_and_distance.index_add_(1, owners, squares.to(step.sums.dtype))

    def add_products(
        self, step: Step, bucket: Bucket, grad: Tensor, u: Tensor, rows: StepScalars
    ) -> None:
        """Adds inner products of the gradient and u, as both are in the eigenbasis.

        Those of a bias are added to its matrix.

        grad: is divided by the root of second moments here; u: of the bucket.
        """
        if not bucket.measured:
            return
        measured = slice(bucket.first, None)
        second = step.state.second[bucket][measured].detach()
        correction = rows.second_moment_correction[measured]
        squares = torch.addcmul(rows.damping[measured], second, correction)
        gradient = grad[measured].detach() * squares.rsqrt()
        pair = torch.stack((gradient, u[measured].detach().to(gradient.dtype)), 1)
        products = torch.bmm(pair, pair.mT).flatten(1).T  # g g, g u, u g, u u
        owners = self.scalars.bias_matrices[bucket.owners[measured]]
        table = torch.stack((products[0], products[1], products[3]))
        sums_of_products = step.sums[2:]
        sums_of_products.index_add_(1, owners, table.to(step.sums.dtype))

    def split(self, step: Step, bucket: Bucket, delta: Tensor) -> list[Change]:
        """The changes of the entries of a bucket; delta: (rows, lanes)."""
        changes = []
        for entry, piece in zip(bucket.entries, bucket.parts.split(delta), strict=True):
            i = entry.parameter
            position, weight = self.network.positions[i], step.average_weights[i]
            record, part = step.records[i], entry.layout.select
            changes.append(Change(position, piece, record, part, weight))
        return changes
