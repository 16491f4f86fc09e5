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

from collections.abc import Sequence
from contextlib import nullcontext
from functools import partial
from time import perf_counter
from unittest.mock import patch

import torch
from torch import nn
from torch.optim import Optimizer

from benchmarks.gpu.optimizers import OPTIMIZERS
from benchmarks.gpu.session import Records, Session
from benchmarks.gpu.timing import (
    mib,
    profiled,
    timed,
    transient_bytes,
    unallocated_bytes,
)
from benchmarks.launches import state_bytes
from benchmarks.records import Record
from benchmarks.shapes import TINY_WORKLOADS, WORKLOADS, Workload, loss_of
from ngopt import devices
from ngopt.pretrained import LearnedOptimizer

TRAINING = "forward + backward"
# Measured in this order for all networks.
FIRST = TRAINING, "AdamW, fused", "default", "default, eager", "Muon + AdamW"
SECOND = "ff", "ng-gnn", "default, no horizon"
PROFILED = 2  # steps, for optimizers without renewals
FLOAT = 4  # bytes
TRAINING_STEPS = 20


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


def training(session: Session, trained: Trained) -> Record:
    """The record of forward and backward."""
    return {
        **timed(session, trained.train),
        "transient_mib": mib(transient_bytes(session, trained.train)),
        **profiled(session, trained.train, 1),
    }


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
        times = timed(session, stepper.step, stepper.prepare)
        steps = stepper.renew_every or PROFILED
        peak = transient_bytes(session, partial(stepper.whole, steps))
        profiled_steps = 1 if stepper.graph_every else steps
        record = {
            **times,
            "first_s": first_s,
            "transient_mib": mib(peak),
            "first_transient_mib": mib(None if first is None else first - state),
            "graphs_mib": mib(unallocated_bytes(session)),
            "state": state / trained.numel / FLOAT,
            "renew_every": stepper.renew_every,
            "training_ms": training_ms(session, trained, stepper),
            **profiled(session, stepper.whole, profiled_steps),
        }
        if stepper.graph_every:
            record["look_ms"] = timed(session, stepper.step, stepper.prepare_look)["ms"]
        return record


def training_ms(session: Session, trained: Trained, stepper: "Stepper") -> float:
    """Mean over steps without synchronisation between them."""
    steps = TRAINING_STEPS if session.is_cuda else 1
    session.synchronize()
    start = perf_counter()
    for _ in range(steps):
        trained.train()
        stepper.step()
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

    def step(self) -> None:
        self.optimizer.step()

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
            self.step()

    def _count_as(self, steps: int) -> None:
        if self.graph_every:
            for record in self.optimizer.state.values():
                record["step"].fill_(steps)


def run(session: Session) -> None:
    """Measures all networks with the most important optimizers, then with others."""
    records = Records(session, "cost")
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
            record = training(session, trained)
        else:
            record = optimizer_step(session, trained, name)
        return {"parameters": trained.numel, **record}

    for name in names:
        records.attempt({"network": network, "optimizer": name}, partial(case, name))
