"""Inputs, state and cached values of one step of `SoapUpdate`."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ngopt import devices
from ngopt.base.buckets import Bucket
from ngopt.base.cuda_graphs import StepBuffers
from ngopt.base.elementwise import StepScalars
from ngopt.base.first_steps import dense_shares, is_matrix, spectral_excess
from ngopt.base.state import ParameterStack
from ngopt.base.step_size import ScheduledValues, has_kept
from ngopt.devices import Array
from ngopt.functional import AVERAGE, Hyper, Record


class FactorScalars(NamedTuple):
    """Scalars of a step, per parameter (n,) or per Kronecker factor (count, 1, 1)."""

    decay: Array  # of the factor
    active: Array  # 1 where the step is made, 0 where it is skipped
    count: Array  # gradients so far, including this one


class StepInputs(NamedTuple):
    """Arguments of a step for all parameters of a rule, see `UpdateRule.update`.

    in_place: whether neither autograd nor vmap traces the step. present: parameters
    that have a gradient.
    """

    grads: Sequence[Any]
    state: Sequence[Record]
    params: Sequence[Tensor]
    hyper: Hyper
    in_place: bool
    present: Sequence[int]


class StepContext:
    """One step of the parameters at some positions.

    Attributes:
        state: `StackedState`, which the step updates in place.
        bases: eigenbases in the dtype of products, by size: a cache.
        ages: previous gradients of each parameter. youngest: the least of them.
        of_factors: `FactorScalars` of the factors of each size.
        scheduled: set by `SoapUpdate`, like ages, scalars, of_factors and
            average_weights.
        scalars: `StepScalars` of all parameters, (fields, n).
        average_weights: for each parameter, the weight of its new value in its average.
        buffers: of a step that is captured in a CUDA graph, to be replayed.
    """

    def __init__(
        self, stack: ParameterStack, positions: Sequence[int], inputs: StepInputs
    ):
        """positions: indices among the parameters of the rule."""
        in_place = inputs.in_place
        hyper = inputs.hyper
        self.stack = stack
        self.device = stack.device
        self.in_place = in_place
        self.kernels = devices.kernels(stack.device, stack.dtype) if in_place else None
        self.all_params = inputs.params
        self.grads: Sequence[Tensor] = list(map(inputs.grads.__getitem__, positions))
        self.params = list(map(inputs.params.__getitem__, positions))
        self.records = list(map(inputs.state.__getitem__, positions))
        if not in_place:
            self.records = list(map(dict, self.records))
        lr = list(map(hyper.lr.__getitem__, positions))
        decay = list(map(hyper.weight_decay.__getitem__, positions))
        self.hyper = Hyper(lr, decay, hyper.scheduled)
        self.state = stack.open(self.records, in_place)
        self.has_fixed_lr = in_place and not has_kept(inputs.hyper.lr)
        self.on_host = self.has_fixed_lr and devices.is_host(self.device)
        self.bases: dict[int, Tensor] = {}
        self.ages: list[float] = []
        self.youngest = torch.inf
        self.scheduled: ScheduledValues
        self.scalars: Tensor
        self.of_factors: dict[int, FactorScalars] = {}
        self.average_weights: Sequence[Any] = [None] * len(positions)
        self.buffers: StepBuffers | None = None

    @property
    def moved(self) -> Tensor:
        """Path and distance of all parameters (see `SCALES`), (2, n)."""
        return self.state.scales[-2:]

    def rows(self, bucket: Bucket) -> StepScalars:
        """The scalars of the rows of a bucket, (rows, 1) each."""
        return StepScalars(*bucket.spread(self.scalars))

    def gathered(self, bucket: Bucket) -> Tensor:
        """Gradients of the entries of a bucket, (rows, lanes)."""
        if self.buffers is not None and bucket in self.buffers.rows:
            return self.buffers.rows[bucket]
        return bucket.gather(self.grads)

    def change_weights(
        self, bucket: Bucket, u: Tensor, momentum: Tensor, rows: StepScalars
    ) -> Tensor | None:
        """Changes the weights of a bucket by one kernel; returns measured changes.

        None, and nothing is done, if the step is not captured or has averages, or if
        the kernel cannot change these weights.
        """
        if self.buffers is None or self.kernels is None or AVERAGE in self.records[0]:
            return None
        weights = self.buffers.weights.get(bucket)
        if weights is None:
            return None
        return self.kernels.change_weights(u, momentum, weights, rows, bucket.first)

    def root_mean_squares(self, roots: Tensor) -> Tensor:
        """RMS of gradients, then of weights, (2n,).

        roots: of numbers of elements, (2n,).
        """
        values = [*self.grads, *self.params]
        return devices.root_mean_squares(values, roots, self.in_place)

    def momentum_squares(self) -> Tensor:
        """Sums of squares of the momentum of every parameter, (n,)."""
        return self.stack.squares(self.state.momentum)

    def excesses(self) -> dict[int, Tensor]:
        """`spectral_excess` of all matrices, by index."""
        found = {}
        for i, p in enumerate(self.params):
            if is_matrix(p):
                found[i] = spectral_excess(p)
        return found

    def dense_shares(self, tables: Sequence[int]) -> Tensor:
        """See `ngopt.base.first_steps.dense_shares`."""
        return dense_shares(self.grads, tables)

    def fuse(self, function: Callable) -> Callable:
        """The Triton kernel of an elementwise function, or the function itself."""
        return getattr(self.kernels, function.__name__, function)
