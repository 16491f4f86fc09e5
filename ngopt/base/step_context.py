"""What one step is given."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ngopt import devices
from ngopt.base.buckets import Bucket
from ngopt.base.first_steps import dense_shares, is_matrix, spectral_excess
from ngopt.base.state import ParameterStack
from ngopt.base.step_size import is_kept
from ngopt.devices import Array
from ngopt.functional import Hyper, Record


class FactorNumbers(NamedTuple):
    """Numbers of a step, of parameters (n,) or of factors (count, 1, 1)."""

    kept: Array  # of the old factor
    active: Array  # 1 where the step is made, else 0
    count: Array  # gradients so far, this one included


class StepContext:
    """What one step of a group is given, in its order, and the state."""

    def __init__(
        self,
        stack: ParameterStack,
        positions: Sequence[int],
        grads: Sequence[Any],
        state: Sequence[Record],
        params: Sequence[Tensor],
        hyper: Hyper,
        in_place: bool,
    ):
        """in_place: state moves where it is; neither autograd nor vmap follows."""
        self.stack, self.device, self.in_place = stack, stack.device, in_place
        self.kernels = devices.kernels(stack.device, stack.dtype) if in_place else None
        self.is_known = in_place and not any(map(is_kept, hyper.lr))
        self.on_host = self.is_known and devices.is_host(self.device)
        self.grads: Sequence[Tensor] = [grads[i] for i in positions]
        self.all_params = params
        self.params = [params[i] for i in positions]
        self.records = [state[i] if in_place else dict(state[i]) for i in positions]
        self.state = stack.open(self.records, in_place)
        lr = [hyper.lr[i] for i in positions]
        decay = [hyper.weight_decay[i] for i in positions]
        self.hyper = Hyper(lr, decay, hyper.scheduled)
        self.bases: dict[int, Tensor] = {}  # of every size, for products
        self.ages: list[float] = []  # gradients before, where the host knows
        self.youngest = torch.inf  # the least of these
        self.of_factors: dict[int, FactorNumbers] = {}  # by size
        self.newest: Sequence[Any] = [None] * len(positions)  # see `ScheduledValues`

    @property
    def moved(self) -> Tensor:
        """Path and distance of all parameters, see `SCALES`."""
        return self.state.scales[-2:]

    def gathered(self, bucket: Bucket) -> Tensor:
        """Gradients of the members of a bucket, (rows, lanes)."""
        return bucket.gather(self.grads)

    def root_mean_squares(self, roots: Tensor) -> Tensor:
        """Of gradients, then of weights, (2n,); roots: of numbers of elements, (2n,)."""
        values = [*self.grads, *self.params]
        return devices.root_mean_squares(values, roots, self.in_place)

    def momentum_squares(self) -> Tensor:
        """Of every parameter, (n,)."""
        return self.stack.squares(self.state.momentum)

    def excesses(self) -> dict[int, Tensor]:
        """`spectral_excess` of all matrices."""
        return {
            i: spectral_excess(p) for i, p in enumerate(self.params) if is_matrix(p)
        }

    def dense_shares(self, tables: Sequence[int]) -> Tensor:
        """See `ngopt.base.first_steps.dense_shares`."""
        return dense_shares(self.grads, tables)

    def fuse(self, function: Callable) -> Callable:
        """One of the elementwise functions, as one kernel where that is possible."""
        return getattr(self.kernels, function.__name__, function)
