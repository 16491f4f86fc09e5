"""Part (a): steps on a GPU equal those on a CPU, also in CUDA graphs and side streams.

Each check trains small networks on fixed random gradients. Its error is the distance
between the weights and those of a reference, relative to the distance of the reference
from the initial weights. The reference is the CPU, if the check does not define
another.
"""

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn

from benchmarks.gpu.session import Records, Session, Skipped
from benchmarks.records import Record
from benchmarks.shapes import TINY_WORKLOADS, loss_of, plain_cnn
from ngopt import NGOptimizer, list_pretrained
from ngopt.accelerator.cuda_graphs import Replays
from ngopt.soap import update

STEPS, RENEW_EVERY, HORIZON = 14, 3, 100
WARM_UP, REPLAYS = 11, 6  # torch requires warm-up before capture; early steps differ
LONGER = 40  # steps, most of which are replayed
SCALE = 2.0**12  # of the loss in GradScaler; a power of two is exact

# Limits of errors in float64 and float32, whose rounding preconditioners amplify.
EXACT, ROUNDING = 1e-8, 3e-4
# Weights in bfloat16 and operands of products may round to the other neighbour.
BFLOAT16 = 0.02
# For factors and eigenbases. TF32 rounds to 5e-4.
FULL_PRECISION = 2e-5

Parameters = list[nn.Parameter]


class Twin:
    """A copy of a network with an optimizer, trained on fixed random gradients.

    weights: of the optimizer. dtype: of the parameters. compute_dtype: of the
    optimizer's products; None for its default.
    """

    def __init__(
        self,
        network: nn.Module,
        weights: str,
        device: str,
        dtype: torch.dtype = torch.float32,
        compute_dtype: torch.dtype | None = None,
    ):
        self.model = copy.deepcopy(network).to(device=device, dtype=dtype)
        self.params: Parameters = list(self.model.parameters())
        for p in self.params:
            p.grad = torch.zeros_like(p)
        self.optimizer = NGOptimizer(
            self.params,
            weights=weights,
            total_steps=HORIZON,
            compute_dtype=compute_dtype,
            renew_every=RENEW_EVERY if weights == "default" else None,
        )

    def set_gradients(self, number: int) -> None:
        """Sets the gradients of a step, which are the same on all devices."""
        generator = torch.Generator().manual_seed(number)
        for p in self.params:
            assert p.grad is not None
            grad = torch.randn(p.shape, generator=generator, dtype=torch.float64)
            p.grad.copy_(grad)

    def train(self, steps: int = STEPS, first: int = 0) -> "Twin":
        for number in range(first, first + steps):
            self.set_gradients(number)
            self.optimizer.step()
        return self

    def values(self) -> list[Tensor]:
        """The weights, on the CPU in float64."""
        return [p.detach().double().cpu() for p in self.params]

    def factors(self) -> list[Tensor]:
        """Kronecker factors and their eigenbases, on the CPU in float64."""
        found = []
        for p in self.params:
            for key, x in self.optimizer.state[p].items():
                if key.startswith(("rows", "channels", "kernel")):
                    found.append(x.double().cpu())
        return found


def networks_of(weights: str) -> list[nn.Module]:
    """Networks for the checks; for metanets a plain CNN, which all of them can read."""
    torch.manual_seed(0)
    networks = [plain_cnn()]
    if weights == "default":
        for workload in TINY_WORKLOADS.values():
            networks.append(workload.make())
    return networks


def distance(
    found: Sequence[Tensor], reference: Sequence[Tensor], start: Sequence[Tensor]
) -> float:
    """|found - reference| / |reference - start|, over all values."""
    return _length(found, reference) / _length(reference, start)


def _length(values: Sequence[Tensor], others: Sequence[Tensor]) -> float:
    """Euclidean norm of the difference."""
    squares = 0.0
    for a, b in zip(values, others, strict=True):
        squares += (a - b).square().sum().item()
    return squares**0.5


def verdict(error: float, limit: float) -> Record:
    """The record of an error; nan fails."""
    status = "ok" if error <= limit else "failed"
    return {"status": status, "error": error, "limit": limit}


def initial_weights(network: nn.Module) -> list[Tensor]:
    return [p.detach().double() for p in network.parameters()]


# --- Checks: (session, weights) -> record ---


def equals_cpu(
    dtype: torch.dtype, limit: float, session: Session, weights: str
) -> Record:
    """Steps on the device equal those on the CPU."""
    compute_dtype = torch.float32 if dtype == torch.bfloat16 else dtype
    errors = []
    for network in networks_of(weights):
        make = partial(Twin, network, weights, dtype=dtype, compute_dtype=compute_dtype)
        reference = make("cpu").train().values()
        found = make(session.device).train().values()
        errors.append(distance(found, reference, initial_weights(network)))
    return verdict(max(errors), limit)


def has_no_syncs(session: Session, weights: str) -> Record:
    """Steps have no host syncs, for which torch raises an error here."""
    session.need_cuda()
    for network in networks_of(weights):
        twin = Twin(network, weights, session.device).train()
        session.synchronize()
        torch.cuda.set_sync_debug_mode("error")
        try:
            for _ in range(STEPS):
                twin.optimizer.step()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return {}


def is_capturable(
    compute_dtype: torch.dtype | None, limit: float, session: Session, weights: str
) -> Record:
    """Replays of a captured step equal eager steps with the same gradients."""
    session.need_cuda()
    errors = []
    for network in networks_of(weights):
        own = {"device": session.device, "compute_dtype": compute_dtype}
        make = partial(Twin, network, weights, **own)
        reference = make().train(WARM_UP + REPLAYS).values()
        twin = make()
        graph = capture(twin)
        for number in range(WARM_UP, WARM_UP + REPLAYS):
            twin.set_gradients(number)
            graph.replay()
        session.synchronize()
        counts = {int(record["step"]) for record in twin.optimizer.state.values()}
        if counts != {WARM_UP + REPLAYS}:
            raise AssertionError(f"expected step {WARM_UP + REPLAYS}; got {counts}")
        errors.append(distance(twin.values(), reference, initial_weights(network)))
    return verdict(max(errors), limit)


def is_replayed(session: Session, weights: str) -> Record:
    """Steps with the optimizer's own CUDA graphs equal those without."""
    session.need_cuda()
    errors = []
    for network in networks_of(weights):
        make = partial(Twin, network, weights, session.device)
        with patch.object(update, "has_graphs", lambda like, count: False):
            reference = make().train(LONGER).values()
        with counted_replays() as replayed:
            found = make().train(LONGER).values()
        if sum(replayed) < LONGER / 2:
            raise AssertionError(f"expected replays; got {sum(replayed)}")
        errors.append(distance(found, reference, initial_weights(network)))
    return verdict(max(errors), BFLOAT16)


@contextmanager
def counted_replays() -> Iterator[list[bool]]:
    """A list of whether each step in the context was replayed."""
    run = Replays.run
    found = []

    def counted(*arguments: Any) -> bool:
        found.append(run(*arguments))
        return found[-1]

    with patch.object(Replays, "run", counted):
        yield found


def capture(twin: Twin) -> torch.cuda.CUDAGraph:
    """Captures a step in a CUDA graph, after warm-up on a side stream."""
    with side_stream():
        twin.train(WARM_UP)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        twin.optimizer.step()
    return graph


def float32_twins(network: nn.Module, weights: str) -> Callable[..., Twin]:
    """A constructor of twins on a device, which compute in float32."""
    return partial(Twin, network, weights, compute_dtype=torch.float32)


@contextmanager
def side_stream() -> Iterator[None]:
    """Runs work on another stream, in order with work before and after."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        yield
    torch.cuda.current_stream().wait_stream(stream)


def works_on_a_side_stream(session: Session, weights: str) -> Record:
    session.need_cuda()
    errors = []
    for network in networks_of(weights):
        make = float32_twins(network, weights)
        reference = make("cpu").train().values()
        with side_stream():
            twin = make(session.device).train()
        session.synchronize()
        errors.append(distance(twin.values(), reference, initial_weights(network)))
    return verdict(max(errors), ROUNDING)


def keeps_full_precision(
    allow: Callable[[], None], session: Session, weights: str
) -> Record:
    """Factors and eigenbases have full float32 precision if the user allows TF32."""
    session.need_cuda()
    errors = []
    for network in networks_of(weights):
        make = float32_twins(network, weights)
        reference = make("cpu").train().factors()
        try:
            allow()
            found = make(session.device).train().factors()
        finally:
            torch.set_float32_matmul_precision("highest")
        zeros = [torch.zeros_like(x) for x in reference]
        errors.append(distance(found, reference, zeros))
    return verdict(max(errors), FULL_PRECISION)


def allow_tf32() -> None:
    """Allows TF32 as in most training scripts."""
    torch.set_float32_matmul_precision("high")


def allow_tf32_by_the_new_name() -> None:
    torch.backends.cuda.matmul.fp32_precision = "tf32"


def scales(session: Session, weights: str) -> Record:
    """GradScaler changes no step, and skips steps with infinite gradients."""
    workload = TINY_WORKLOADS["tiny CNN"]
    torch.manual_seed(0)
    network = workload.make()
    batch = workload.batch(torch.device(session.device))
    errors = []
    for compute_dtype in (torch.float32, None):
        own = {"device": session.device, "compute_dtype": compute_dtype}
        plain = Twin(network, weights, **own)
        scaled = Twin(network, weights, **own)
        scaler = torch.amp.GradScaler(session.device, init_scale=SCALE)
        for _ in range(STEPS):
            plain.optimizer.zero_grad()
            loss_of(plain.model, *batch).backward()
            plain.optimizer.step()
            scaled.optimizer.zero_grad()
            scaler.scale(loss_of(scaled.model, *batch)).backward()
            scaler.step(scaled.optimizer)
            scaler.update()
        start = initial_weights(network)
        errors.append(distance(scaled.values(), plain.values(), start))
        if not skips_infinite_gradients(scaled, scaler, batch):
            raise AssertionError("a step with infinite gradients moved the weights")
    return verdict(max(errors), BFLOAT16)


def skips_infinite_gradients(
    twin: Twin, scaler: torch.amp.GradScaler, batch: tuple[Tensor, Tensor]
) -> bool:
    before = twin.values()
    twin.optimizer.zero_grad()
    scaler.scale(loss_of(twin.model, *batch)).backward()
    assert twin.params[0].grad is not None
    twin.params[0].grad.fill_(torch.inf)
    scaler.step(twin.optimizer)
    scaler.update()
    return all(map(torch.equal, before, twin.values()))


def works_on_two_devices(session: Session, weights: str) -> Record:
    """One optimizer with parameters on two GPUs."""
    session.need_cuda()
    if torch.cuda.device_count() < 2:
        raise Skipped("needs two GPUs")
    network = networks_of(weights)[0]
    make = float32_twins(network, weights)
    reference = make("cpu").train().values()
    twin = make("cuda:0")
    for p in twin.params[::2]:
        p.data = p.data.to("cuda:1")
        p.grad = torch.zeros_like(p)
    twin.train()
    error = distance(twin.values(), reference, initial_weights(network))
    return verdict(error, ROUNDING)


Check = Callable[[Session, str], Record]

EVERY_WEIGHTS: dict[str, Check] = {
    "float64": partial(equals_cpu, torch.float64, EXACT),
    "float32": partial(equals_cpu, torch.float32, ROUNDING),
    "no syncs": has_no_syncs,
}
"""Checks of all weights."""

DEFAULT_ONLY: dict[str, Check] = {
    "capture, float32 products": partial(is_capturable, torch.float32, ROUNDING),
    "capture": partial(is_capturable, None, BFLOAT16),
    "replays": is_replayed,
    "side stream": works_on_a_side_stream,
    "bfloat16 parameters": partial(equals_cpu, torch.bfloat16, BFLOAT16),
    "GradScaler": scales,
    "TF32 allowed": partial(keeps_full_precision, allow_tf32),
    "TF32 allowed, new name": partial(keeps_full_precision, allow_tf32_by_the_new_name),
    "two devices": works_on_two_devices,
}
"""Checks of the default only."""


def run(session: Session) -> None:
    """Runs all checks, those of the default first."""
    torch.backends.cudnn.deterministic = True
    records = Records(session, "correctness")
    checks = dict.fromkeys(["default", *list_pretrained()], EVERY_WEIGHTS)
    checks["default"] = EVERY_WEIGHTS | DEFAULT_ONLY
    for weights, own in checks.items():
        for name, check in own.items():
            about = {"weights": weights, "check": name}
            records.attempt(about, partial(check, session, weights))
