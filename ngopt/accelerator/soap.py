"""`SoapUpdate` on accelerators: fused kernels, and steps as CUDA graphs."""

from collections.abc import Iterator, Mapping, Sequence
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import increment_version

from ngopt import devices
from ngopt.accelerator import elementwise
from ngopt.accelerator.cuda_graphs import (
    GraphCache,
    StepBuffers,
    step_buffers,
    supports_cuda_graphs,
)
from ngopt.functional import AVERAGE, Change, Hyper, apply
from ngopt.roles.buckets import Bucket
from ngopt.soap.eigenbasis import ROUNDS, Renewal
from ngopt.soap.elementwise import Elementwise, StepScalars
from ngopt.soap.first_steps import OBSERVED_STEPS
from ngopt.soap.schedule import ScheduledValues, StepSchedule, times_lr
from ngopt.soap.soap import SoapRule
from ngopt.soap.update import SoapUpdate, Step


@cache
def fast_elementwise(device: torch.device, dtype: torch.dtype) -> Elementwise:
    """The elementwise functions of steps in place on an accelerator."""
    if dtype != torch.float32 or not devices.has_triton(device):
        return elementwise.ELEMENTWISE
    # Triton cannot be imported everywhere
    from ngopt.accelerator import triton_kernels

    return triton_kernels.ELEMENTWISE


class AcceleratedUpdate(SoapUpdate):
    """The update of parameters on an accelerator.

    Steps are replayed as CUDA graphs where that is possible (`GraphCache`). If a user
    captures a step, all that varies is on the device.
    """

    def __init__(self, *arguments: Any):
        super().__init__(*arguments)
        like = self.network.like
        self.elementwise = fast_elementwise(like.device, like.dtype)
        self.on_host = False
        numel = sum(self.network.numels)
        self._graphs = GraphCache() if supports_cuda_graphs(like, numel) else None
        self._buffers: StepBuffers | None = None  # while a step is captured
        self._positions: dict[int, Tensor] = {}  # in a round of renewals, by size
        for size, positions in self.renewals.positions.items():
            self._positions[size] = torch.tensor(positions, device=like.device)

    def open(self, grads: Sequence[Any], *arguments: Any, in_place: bool) -> Step:
        is_captured = devices.is_capturing(self.network.device)
        if self._graphs is not None and in_place and not is_captured:
            # the device copies while the host prepares the step
            self._graphs.copy([grads[i] for i in self.network.positions])
        return super().open(grads, *arguments, in_place=in_place)

    def changes(self, step: Step, now: float) -> Iterator[list[Change]]:
        """Yields nothing if a graph was replayed: it has changed the parameters."""
        if not step.ages:
            yield from self._captured_changes(step)
            return
        scheduled = self.schedule.of_step(
            step.ages, now, step.hyper, False, step.in_place
        )
        if not self._replay(step):
            yield from self.work(step, scheduled, self.renewals.at(int(step.youngest)))
        step.state.step.add_(1)

    def _captured_changes(self, step: Step) -> Iterator[list[Change]]:
        """Changes for capture by a user: counts are on the device."""
        scheduled = next_values(self.schedule, step.hyper)
        count = scheduled.count
        # a copy: the next step that is not captured overwrites the schedule's table
        on_device = count.clone().view(1, -1)
        self.layout.packed.replace(step.records, self.layout.step_packing, on_device)
        every = self.renewals.every
        renewals = renewals_on_device(self._positions, every, count.min() - 1)
        yield from self.work(step, scheduled, renewals)

    def _replay(self, step: Step) -> bool:
        """Makes the step by a CUDA graph, or returns False."""
        is_early = step.youngest < OBSERVED_STEPS
        if self._graphs is None or not step.has_fixed_lr or is_early:
            return False
        # bases are renewed in rounds: see `RenewalSchedule`
        length = min(1 + int(step.youngest) // ROUNDS, self.renewals.every)
        phase = length, step.youngest % length
        if ROUNDS / 2 < length < self.renewals.every:  # no later step has this phase
            return False
        changed = list(step.params)
        changed += [x[AVERAGE] for x in step.records if AVERAGE in x]
        others = [*changed, *step.state.tensors]
        buffers = partial(step_buffers, self.layout.buckets, step.grads, step.params)
        work = partial(self._capture, step)
        is_replayed = self._graphs.run(phase, step.grads, others, buffers, work)
        step.bases = {}  # those of a capture belong to the graph
        if is_replayed:  # autograd does not track what a graph writes
            increment_version(changed)
        return is_replayed

    def _capture(self, step: Step, buffers: StepBuffers) -> None:
        """Launches the kernels of a step that reads gradients from buffers."""
        grads = step.grads
        step.grads, self._buffers = buffers.grads, buffers
        assert self.schedule.table is not None
        scheduled = times_lr(self.schedule.table, step.hyper)
        try:
            for changes in self.work(
                step, scheduled, self.renewals.at(int(step.youngest))
            ):
                apply(changes, step.all_params)
                changes.clear()  # frees their memory before the next are computed
        finally:
            step.grads, self._buffers = grads, None

    def gradients(self, step: Step, bucket: Bucket) -> Tensor:
        if self._buffers is not None and bucket in self._buffers.rows:
            return self._buffers.rows[bucket]
        return super().gradients(step, bucket)

    def change(
        self, step: Step, bucket: Bucket, u: Tensor, rows: StepScalars
    ) -> list[Change]:
        """In a graph one kernel changes the weights, if it can."""
        weights = None
        change_weights = step.elementwise.change_weights
        if self._buffers is not None and AVERAGE not in step.records[0]:
            weights = self._buffers.weights.get(bucket)
        if weights is None or change_weights is None:
            return super().change(step, bucket, u, rows)
        momentum = step.state.momentum[bucket]
        measured = change_weights(u, momentum, weights, rows, bucket.first)
        self.add_distance(step, bucket, measured)
        return []


def next_values(schedule: StepSchedule, hyper: Hyper) -> ScheduledValues:
    """Scheduled values of the next step, computed on the device during a capture.

    Raises RuntimeError if no step was made before.
    """
    if schedule.table is None:
        raise RuntimeError(
            "NGOptimizer: expected a step of the same parameters before capture in a "
            "CUDA graph; got none. Make some steps first, on a side stream."
        )
    before = times_lr(schedule.table, hyper)
    age = before.count.clone()
    before.count.add_(1)
    constants = {key: getattr(before, key) for key in schedule.constants}
    values = schedule.at(age, age.max() + schedule.lag, hyper, **constants)
    rows = []
    for x in values:
        is_tensor = isinstance(x, Tensor)
        rows.append(x.expand_as(age) if is_tensor else torch.full_like(age, x))
    return ScheduledValues(*rows)._replace(count=before.count)


def renewals_on_device(
    positions: Mapping[int, Tensor], every: int, step: Tensor
) -> list[Renewal]:
    """`RenewalSchedule.at` for a step () on the device, as masks.

    positions: of the bases of every size in a round, (count,).
    """
    length = (1 + step // ROUNDS).clamp(max=every)
    start = step % length
    renewals = []
    for size, of_size in positions.items():
        x = of_size * length
        mask = (x >= start) & (x < start + 1)
        renewals.append(Renewal(size, slice(None), mask.view(-1, 1, 1)))
    return renewals


class AcceleratedSoapRule(SoapRule):
    """SOAP on a graph with parameters on accelerators, and maybe others on the host."""

    def read_ages(self, steps: Sequence[Step], *arguments: Any) -> float:
        """While a user captures a CUDA graph, counts are on the device."""
        device = steps[0].state.scalars.device
        if devices.is_capturing(device):
            return 0.0
        return super().read_ages(steps, *arguments)

    @staticmethod
    def make_update(network: Any, *arguments: Any) -> SoapUpdate:
        make = SoapUpdate if network.device.type == "cpu" else AcceleratedUpdate
        return make(network, *arguments)
