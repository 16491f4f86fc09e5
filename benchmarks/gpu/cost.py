"""Cost of a step, beside forward and backward and other optimizers.

ms: median of 20 steps after 100 warm-up steps, each between two synchronisations;
worst_ms: the slowest of the 20. kernels, copies and device_ms: of a step, by torch's
profiler. transient_mib: peak memory of later steps above that before;
first_transient_mib: of the first step, without new state. graphs_mib: memory of CUDA
graphs besides a copy of the gradients. state: bytes of state per parameter, divided by
4. first_s: seconds of the first step, which builds the graph and compiles. look_ms: of
a step in which ng-gnn reads the graph; its ms are those of other steps. training_ms: of
forward, backward and step without synchronisation. "eager": without Triton kernels.

Forward and backward use bfloat16 autocast over float32 parameters, without compilation
and TF32. All steps use the gradients of one backward pass.
"""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial
from statistics import median
from time import perf_counter
from unittest.mock import patch

import torch
from torch import nn
from torch.autograd import DeviceType  # pyright: ignore[reportPrivateImportUsage]
from torch.optim import Optimizer
from torch.profiler import ProfilerActivity, profile

from benchmarks.gpu.optimizers import OPTIMIZERS
from benchmarks.gpu.session import Records, Session
from benchmarks.launches import MIB, state_bytes
from benchmarks.records import Record
from benchmarks.shapes import TINY_WORKLOADS, WORKLOADS, Workload, loss_of
from ngopt import devices
from ngopt.pretrained import LearnedOptimizer

TRAINING = "forward + backward"
# Measured in this order for all networks.
FIRST = TRAINING, "AdamW, fused", "default", "default, eager", "Muon + AdamW"
SECOND = "ff", "ng-gnn", "default, no horizon"
PROFILED = 2  # steps, for optimizers without renewals
TRAINING_STEPS = 20
WARM_UP, REPEATS = 100, 20
TINY_WARM_UP, TINY_REPEATS = 2, 3
LONGEST = 6.0  # maximum seconds of warm-up and timed steps

Step = Callable[[], object]


class Trained:
    """A network on the device with gradients of one batch."""

    def __init__(self, session: Session, workload: Workload):
        torch.manual_seed(0)
        device = torch.device(session.device)
        with device:
            self.model: nn.Module = workload.make()
        self.batch = workload.batch(device)
        self.numel = sum(p.numel() for p in self.model.parameters())
        self.train()

    def train(self) -> None:
        """Forward and backward."""
        self.model.zero_grad()
        loss_of(self.model, *self.batch).backward()


def optimizer_step(session: Session, trained: Trained, name: str) -> Record:
    """The record of an optimizer of `OPTIMIZERS`."""
    is_eager = name.endswith("eager")
    without_triton = patch.object(devices, "has_triton", lambda device: False)
    with without_triton if is_eager else nullcontext():
        stepper = Stepper(trained, OPTIMIZERS[name](trained.model))
        start = perf_counter()
        first = transient_bytes(session, stepper.whole)
        first_s = perf_counter() - start
        state = state_bytes(stepper.optimizer, session.device)
        times = timed(session, stepper.optimizer.step, stepper.prepare)
        steps = stepper.renew_every or PROFILED
        peak = transient_bytes(session, partial(stepper.whole, steps))
        profiled_steps = 1 if stepper.graph_every else steps
        record = {
            **times,
            "first_s": first_s,
            "transient_mib": mib(peak),
            "first_transient_mib": mib(None if first is None else first - state),
            "graphs_mib": mib(unallocated_bytes(session)),
            "state": state / trained.numel / torch.float32.itemsize,
            "renew_every": stepper.renew_every,
            "training_ms": training_ms(session, trained, stepper),
            **profiled(session, stepper.whole, profiled_steps),
        }
        if stepper.graph_every:
            looks = timed(session, stepper.optimizer.step, stepper.prepare_look)
            record["look_ms"] = looks["ms"]
        return record


def training_ms(session: Session, trained: Trained, stepper: "Stepper") -> float:
    """Mean over steps without synchronisation between them."""
    steps = TRAINING_STEPS if session.is_cuda else 1
    session.synchronize()
    start = perf_counter()
    for _ in range(steps):
        trained.train()
        stepper.optimizer.step()
    session.synchronize()
    return 1e3 * (perf_counter() - start) / steps


class Stepper:
    """An optimizer with constant gradients.

    graph_every: steps from one reading of the graph to the next; 0 if a metanet reads
    it in every step or never. renew_every: steps in which the default renews all
    eigenbases; None for other optimizers.
    """

    def __init__(self, trained: Trained, optimizer: Optimizer):
        self.optimizer = optimizer
        self._params = list(trained.model.parameters())
        self._grads = [p.grad for p in self._params]
        self.graph_every = 0
        rule = getattr(optimizer, "rule", None)
        if isinstance(rule, LearnedOptimizer):
            every = rule.metanet.graph_every
            self.graph_every = every if every > 1 else 0

    @property
    def renew_every(self) -> int | None:
        """Known after the first step."""
        return self.optimizer.param_groups[0].get("precondition_frequency")

    def prepare(self) -> None:
        """Restores gradients; the next step reads no graph."""
        for p, grad in zip(self._params, self._grads, strict=True):
            p.grad = grad
        self._count_as(1)

    def prepare_look(self) -> None:
        """The next step reads the graph."""
        self.prepare()
        self._count_as(self.graph_every)

    def whole(self, count: int = 1) -> None:
        """Some steps with what comes before each."""
        for _ in range(count):
            self.prepare()
            self.optimizer.step()

    def _count_as(self, steps: int) -> None:
        if self.graph_every:
            for record in self.optimizer.state.values():
                record["step"].fill_(steps)


def run(session: Session) -> None:
    """Measures all networks with the most important optimizers, then with others."""
    records = Records(session)
    workloads = TINY_WORKLOADS if session.tiny else WORKLOADS
    for names in (FIRST, SECOND):
        for network, workload in workloads.items():
            measure(records, network, workload, names)
            session.free_memory()


def measure(
    records: Records, network: str, workload: Workload, names: Sequence[str]
) -> None:
    """Adds a record for each optimizer of a network, which is constructed once."""
    session = records.session
    trained: Trained | None = None

    def case(name: str) -> Record:
        nonlocal trained
        if trained is None:
            trained = Trained(session, workload)
        if name == TRAINING:
            record = {
                **timed(session, trained.train),
                "transient_mib": mib(transient_bytes(session, trained.train)),
                **profiled(session, trained.train, 1),
            }
        else:
            record = optimizer_step(session, trained, name)
        return {"parameters": trained.numel, **record}

    for name in names:
        records.attempt({"network": network, "optimizer": name}, partial(case, name))


def timed(session: Session, step: Step, prepare: Step | None = None) -> Record:
    """Times of a step, each between two synchronisations, after a warm-up.

    ms, worst_ms: median and maximum of the steps. first_s: seconds of the first step.

    prepare: called before every step, outside of its time. Slow steps are repeated less
    often.
    """

    def seconds() -> float:
        if prepare is not None:
            prepare()
        session.synchronize()
        start = perf_counter()
        step()
        session.synchronize()
        return perf_counter() - start

    counts = (TINY_WARM_UP, TINY_REPEATS) if session.tiny else (WARM_UP, REPEATS)
    longest = min(LONGEST, max(session.left(), 0))
    warm_up = _repeated(seconds, counts[0], longest / 2)
    times = _repeated(seconds, counts[1], longest / 2)
    return {
        "ms": 1e3 * median(times),
        "worst_ms": 1e3 * max(times),
        "steps": len(times),
        "first_s": warm_up[0],
    }


def _repeated(seconds: Callable[[], float], count: int, longest: float) -> list[float]:
    """`count` times; fewer, but at least one, if their sum reaches `longest`."""
    times = [seconds()]
    while len(times) < count and sum(times) < longest:
        times.append(seconds())
    return times


def transient_bytes(session: Session, step: Step) -> int | None:
    """Peak GPU memory during a step, above that before it."""
    if not session.is_cuda:
        step()
        return None
    session.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    step()
    session.synchronize()
    return torch.cuda.max_memory_allocated() - before


def unallocated_bytes(session: Session) -> int | None:
    """GPU memory that is reserved but not allocated: that of CUDA graphs."""
    if not session.is_cuda:
        return None
    session.free_memory()
    return torch.cuda.memory_reserved() - torch.cuda.memory_allocated()


def mib(count: int | None) -> float | None:
    return None if count is None else count / MIB


def profiled(session: Session, step: Step, steps: int) -> Record:
    """Kernels, copies and device milliseconds of a step: means over `steps` steps."""
    if not session.is_cuda:
        return {"kernels": None, "copies": None, "device_ms": None}
    session.synchronize()
    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        for _ in range(steps):
            step()
        session.synchronize()
    kernels = copies = 0
    microseconds = 0.0
    for event in profiler.events() or []:
        if event.device_type == DeviceType.CUDA:
            is_copy = event.name.startswith(("Memcpy", "Memset"))
            copies += is_copy
            kernels += not is_copy
            microseconds += event.time_range.elapsed_us()
    return {
        "kernels": kernels / steps,
        "copies": copies / steps,
        "device_ms": 1e-3 * microseconds / steps,
    }
