"""Counts what a step of the optimizer launches, copies and allocates on an accelerator.

    python -m benchmarks.launches --output launches.json

Steps run on torch's meta device, where nothing is computed and nothing can be read.
Networks are given by their parameters alone. Late steps are those of one whole cycle,
500 steps into a training: a round of renewals of the default, or all steps from one
look of a metanet at the graph to the next.

ops: dispatched ops that compute or copy on the device; views and allocations do not
count. kernels: an estimate of the kernels that CUDA launches for them, of eager steps
(some ops take two, `torch._foreach_*` takes one for each 20 million elements, or one
for each tensor where tensors that belong together differ in size). host reads: values
that the host waits for. copies: from host to device. factorisations: ops of
`torch.linalg` but for norms. transient: the peak of memory that a step allocates,
without the state that it leaves. state: bytes that the optimizer keeps on the device
for a parameter, divided by 4.

The second table is a prediction for an H100 (`benchmarks.cost_model`), in milliseconds,
of steps with a horizon: means over a cycle, "fused" with compiled elementwise
functions, and its longest step, fused.
"""

from __future__ import annotations

import argparse
import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import product
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from tqdm import tqdm

from benchmarks.cost_model import (
    Prediction,
    kernels_of,
    storage_key,
    tensors_of,
)
from benchmarks.records import Record, table, write
from benchmarks.shapes import NETWORKS
from benchmarks.step import cycle
from ngopt import NGOptimizer

HORIZON = 1000
LATE = 500  # steps behind the parameters when a cycle is counted
MIB = 1 << 20

# Ops that change how memory is read, or allocate it, without a kernel; `is_view` is not
# set for all of them.
NO_KERNEL = {
    "_reshape_alias", "_unsafe_view", "detach", "empty", "empty_like", "empty_strided",
    "lift_fresh", "new_empty", "new_empty_strided",
}  # fmt: skip
NORMS = "linalg_vector_norm", "linalg_matrix_norm"
# Factorisations that are not called linalg_*.
FACTORISATIONS = {
    "_cholesky_solve_helper", "cholesky", "cholesky_inverse", "cholesky_solve", "geqrf",
    "lu_unpack", "orgqr", "ormqr", "svd", "triangular_solve",
}  # fmt: skip


class Limits(NamedTuple):
    """What is promised of a network; None where nothing is.

    mean_ops, most_ops: of late steps. transient_mib: of these, and state: floats a
    parameter, both with a horizon.
    """

    mean_ops: int | None = None
    most_ops: int | None = None
    transient_mib: int | None = None
    state: float | None = None


LIMITS = {
    "GPT-2 124M": Limits(250, 250, 600, 2.4),
    "ResNet-50": Limits(470, 530, 420, 3.3),
    "ViT-B/16": Limits(300, 300, 530, 2.7),
    "Llama 16 x 1,024": Limits(350, 350, 1000, 2.7),
}
# Of the first step, and of steps without a horizon.
OTHER_TRANSIENT_MIB = 1229


class Counts(TorchDispatchMode):
    """Counts what is dispatched within.

    ops: names of those on the device. kernels: that they launch. reads: values that the
    host waits for. copies: from host to device.
    """

    def __init__(self, prediction: Prediction | None = None):
        super().__init__()
        self.ops: Counter[str] = Counter()
        self.kernels = self.reads = self.copies = 0
        self.memory = _Memory()
        self._prediction = prediction

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func.is_view:
            return func(*args, **kwargs)
        name = func.overloadpacket.__name__
        inputs = tensors_of((args, kwargs))
        known = {storage_key(x) for x in inputs}
        reads_device = any(x.is_meta for x in inputs)
        if name == "_local_scalar_dense" and reads_device:
            self.reads += 1  # and the next line raises, as the value is not there
        out = func(*args, **kwargs)
        outputs = [x for x in tensors_of(out) if x.is_meta]
        if not (reads_device or outputs):
            return out
        self.memory.add([x for x in outputs if storage_key(x) not in known])
        if name in NO_KERNEL:
            return out
        self.ops[name] += 1
        self.kernels += kernels_of(name, args)
        self.copies += name in ("_to_copy", "copy_") and any(x.is_cpu for x in inputs)
        if self._prediction is not None:
            self._prediction.add(name, args, outputs, func._schema.is_mutable)
        return out

    @property
    def factorisations(self) -> int:
        """Ops of torch.linalg but for norms."""
        return sum(n for name, n in self.ops.items() if is_factorisation(name))


def is_factorisation(name: str) -> bool:
    """Whether an op factorises, inverts or solves."""
    is_linalg = "linalg_" in name and name not in NORMS
    return is_linalg or name in FACTORISATIONS


class _Memory:
    """Bytes of storages that were made on the device and still exist; their peak."""

    def __init__(self) -> None:
        self.peak = self._total = 0
        self._live: dict[int, tuple[StorageWeakRef, int]] = {}

    def add(self, tensors: Sequence[Tensor]) -> None:
        for x in tensors:
            storage = x.untyped_storage()
            self._live[storage._cdata] = StorageWeakRef(storage), storage.nbytes()
            self._total += storage.nbytes()
        if self._total > self.peak:  # counts some that are gone
            live = self._live.items()
            self._live = {key: own for key, own in live if not own[0].expired()}
            self._total = sum(size for _, size in self._live.values())
            self.peak = max(self.peak, self._total)


class Counted:
    """An optimizer of a network's parameters on the meta device."""

    def __init__(self, network: str, weights: str, total_steps: int | None):
        with torch.device("meta"):
            self.params = list(NETWORKS[network]().parameters())
        for p in self.params:
            p.grad = torch.empty_like(p)
        self.optimizer = NGOptimizer(
            self.params, weights=weights, total_steps=total_steps
        )

    @property
    def numel(self) -> int:
        return sum(p.numel() for p in self.params)

    def state_bytes(self) -> int:
        """Bytes of the state on the device; views of one storage count once."""
        records = self.optimizer.state.values()
        values = [x for record in records for x in record.values() if x.is_meta]
        storages = [x.untyped_storage() for x in values]
        return sum({s._cdata: s.nbytes() for s in storages}.values())

    def step(self, prediction: Prediction | None = None) -> tuple[Counts, int]:
        """One step: counts, and bytes at its peak without the state that is new."""
        before = self.state_bytes()
        with Counts(prediction) as counts:
            self.optimizer.step()
        return counts, counts.memory.peak - (self.state_bytes() - before)

    def move_to(self, age: int) -> None:
        """Makes all parameters so many steps old."""
        for p in self.params:
            self.optimizer.state[p]["step"].fill_(age)


def counted(
    network: str, weights: str, total_steps: int | None
) -> tuple[Record, Record]:
    """What is counted of a network, and predicted of it in milliseconds."""
    own = Counted(network, weights, total_steps)
    first, first_transient = own.step()
    own.step()
    every = cycle(own.optimizer)
    own.move_to(LATE - LATE % every)
    predictions = [Prediction() for _ in range(every)]
    late = [own.step(prediction) for prediction in predictions]
    ops = [counts.ops.total() for counts, _ in late]
    steps = [first, *(counts for counts, _ in late)]
    about = {"network": network, "weights": weights, "horizon": total_steps}
    found = {
        **about,
        "parameters": own.numel,
        "cycle": every,
        "ops": fmean(ops),
        "most_ops": max(ops),
        "first_ops": first.ops.total(),
        "kernels": fmean(counts.kernels for counts, _ in late),
        "host_reads": sum(counts.reads for counts in steps),
        "copies": max(counts.copies for counts, _ in late),
        "factorisations": sum(counts.factorisations for counts in steps),
        "transient_mib": max(transient for _, transient in late) / MIB,
        "first_transient_mib": first_transient / MIB,
        "state": own.state_bytes() / own.numel / torch.float32.itemsize,
    }
    return found, {**about, **_mean(predictions)}


def _mean(predictions: Sequence[Prediction]) -> dict[str, float]:
    """Of steps in milliseconds, and the longest one's, fused."""
    for prediction in predictions:
        prediction.close()
    steps = [prediction.milliseconds() for prediction in predictions]
    found = {key: fmean(step[key] for step in steps) for key in steps[0]}
    return {**found, "longest": max(step["fused"] for step in steps)}


def limits_of(record: Record) -> Record:
    """The limits of a record's numbers, by their keys; others have none."""
    if record["weights"] != "default":
        return {"host_reads": 0}
    limits = LIMITS.get(record["network"], Limits())
    promised = {
        "ops": limits.mean_ops,
        "most_ops": limits.most_ops,
        "host_reads": 0,
        "copies": 1,
        "factorisations": 0,
        "transient_mib": limits.transient_mib,
        "first_transient_mib": OTHER_TRANSIENT_MIB,
        "state": limits.state,
    }
    if record["horizon"] is None:
        promised |= {"transient_mib": OTHER_TRANSIENT_MIB, "state": None}
    return {key: value for key, value in promised.items() if value is not None}


def beside_limits(record: Record) -> Record:
    """A record as it is printed: "245 / 250" is 245 where 250 are allowed."""
    limits = limits_of(record)
    found = dict(record)
    for key, value in record.items():
        if key in limits:
            digits = 2 if key == "state" else 0
            found[key] = f"{value:.{digits}f} / {limits[key]:,}"
    return {**found, "kernels": round(record["kernels"])}


@contextmanager
def quiet() -> Iterator[None]:
    """Without the log of unconnected parameters, which are usual without a model."""
    logger = logging.getLogger("ngopt")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def main(arguments: Sequence[str] | None = None) -> None:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("--networks", nargs="*", choices=NETWORKS, default=[*NETWORKS])
    parser.add_argument("--weights", nargs="*", default=["default"])
    parser.add_argument("--output", type=Path, help="a JSON file for the records")
    options = parser.parse_args(arguments)
    counts: list[Record] = []
    predictions: list[Record] = []
    cases = [*product(options.weights, options.networks)]
    for weights, network in tqdm(cases, unit="network"):
        with quiet():
            found, predicted = counted(network, weights, HORIZON)
            without_horizon, _ = counted(network, weights, None)
        counts += [found, without_horizon]
        predictions.append(predicted)
        write(options.output, counts=counts, predicted_ms=predictions)
    print(table([beside_limits(record) for record in counts]))
    print("\npredicted milliseconds of a step on an H100")
    print(table(predictions))


if __name__ == "__main__":
    main()
