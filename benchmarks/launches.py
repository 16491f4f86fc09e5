"""Counts a step's kernel launches, copies and allocations on an accelerator.

    python -m benchmarks.launches --output launches.json

Steps run on torch's meta device, which computes nothing and from which nothing can be
read. Late steps are those of one cycle, 500 steps into a training run: one round of
renewals of the default, or the steps from one reading of the graph to the next.

ops: dispatched ops that compute or copy on the device, without views and allocations.
kernels: an estimate of the CUDA kernels of eager steps. Some ops take two;
`torch._foreach_*` takes one for each 20 million elements, or one for each tensor if
tensors differ in size. host_reads: values for which the host waits. copies: from host
to device. factorisations: ops of `torch.linalg` other than norms. transient: peak
memory that a step allocates, without new state. state: bytes of state on the device for
a parameter, divided by 4.
"""

import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import product
from math import ceil
from statistics import fmean
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.optim import Optimizer
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from tqdm import tqdm

from benchmarks.records import Record, parser_of, table, write
from benchmarks.shapes import NETWORKS
from benchmarks.step import HORIZON, move_to_late_step
from ngopt import NGOptimizer

MIB = 1 << 20

# Ops without a kernel: views for which `is_view` is not set, and allocations.
NO_KERNEL = {
    "_reshape_alias", "_unsafe_view", "detach", "empty", "empty_like", "empty_strided",
    "lift_fresh", "new_empty", "new_empty_strided",
}  # fmt: skip
# Ops with two kernels: one fills or copies, the other writes.
TWO_KERNELS = "constant_pad_nd", "masked_fill"
# For `torch._foreach_*` on CUDA: elements of a chunk, and chunks of a launch.
CHUNK, CHUNKS = 1 << 16, 320
CAT = 128  # tensors per launch of `torch.cat`
NORMS = "linalg_vector_norm", "linalg_matrix_norm"
# Factorisations whose names do not begin with linalg_.
FACTORISATIONS = {
    "_cholesky_solve_helper", "cholesky", "cholesky_inverse", "cholesky_solve", "geqrf",
    "lu_unpack", "orgqr", "ormqr", "svd", "triangular_solve",
}  # fmt: skip


# Limits of a network's numbers by key. ops: mean of late steps. transient_mib: of late
# steps, and state: float32 numbers per parameter, both with a horizon.
LIMITS: dict[str, dict[str, float]] = {
    "GPT-2 124M": {"ops": 280, "most_ops": 280, "transient_mib": 600, "state": 2.4},
    "ResNet-50": {"ops": 470, "most_ops": 550, "transient_mib": 420, "state": 3.3},
    "ViT-B/16": {"ops": 320, "most_ops": 320, "transient_mib": 530, "state": 2.7},
    "Llama 16 x 1,024": {
        "ops": 365, "most_ops": 365, "transient_mib": 1000, "state": 2.7,
    },
}  # fmt: skip
# For the first step, and for steps without a horizon.
OTHER_TRANSIENT_MIB = 1229


class Counts(TorchDispatchMode):
    """Counts the ops that are dispatched in its context.

    ops: ops on the device by name. kernels: their kernel launches. reads: values for
    which the host waits. copies: from host to device.
    """

    def __init__(self) -> None:
        super().__init__()
        self.ops: Counter[str] = Counter()
        self.kernels = self.reads = self.copies = 0
        self.memory = _Memory()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func.is_view:
            return func(*args, **kwargs)
        name = func.overloadpacket.__name__
        inputs = tensors_of((args, kwargs))
        devices = {x.device.type for x in inputs}
        if name == "_local_scalar_dense" and "meta" in devices:
            self.reads += 1  # the next line raises, as meta tensors have no values
        out = func(*args, **kwargs)
        outputs = [x for x in tensors_of(out) if x.is_meta]
        if not outputs and "meta" not in devices:
            return out
        self.memory.add(inputs, outputs)
        if name in NO_KERNEL:
            return out
        self.ops[name] += 1
        self.kernels += kernels_of(name, args)
        self.copies += name in ("_to_copy", "copy_") and "cpu" in devices
        return out

    @property
    def factorisations(self) -> int:
        """The number of ops that factorise, invert or solve."""
        total = 0
        for name, count in self.ops.items():
            if ("linalg_" in name and name not in NORMS) or name in FACTORISATIONS:
                total += count
        return total


class _Memory:
    """Peak bytes of the storages that ops have allocated."""

    def __init__(self) -> None:
        self.peak = self._total = 0
        self._sizes: dict[StorageWeakRef, int] = {}

    def add(self, inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> None:
        """Adds the storages of outputs that are not those of inputs."""
        known = set(map(storage_key, inputs))
        for x in outputs:
            if storage_key(x) not in known:
                storage = x.untyped_storage()
                self._sizes[StorageWeakRef(storage)] = storage.nbytes()
                self._total += storage.nbytes()
        if self._total > self.peak:
            for storage in list(self._sizes):
                if storage.expired():
                    del self._sizes[storage]
            self._total = sum(self._sizes.values())
            self.peak = max(self.peak, self._total)


def kernels_of(name: str, args: Any) -> int:
    """The number of kernels that CUDA launches for an op."""
    if name in TWO_KERNELS:
        return 2
    if name == "cat":
        return ceil(len(args[0]) / CAT)
    if not name.startswith("_foreach"):
        return 1
    lists = []
    for x in args:
        if isinstance(x, list | tuple) and x and isinstance(x[0], Tensor):
            lists.append(x)
    for operands in zip(*lists, strict=True):
        # one kernel handles many tensors only if the operands of each are alike
        if len({(x.shape, x.stride(), x.dtype) for x in operands}) > 1:
            return len(lists[0])
    chunks = sum(ceil(x.numel() / CHUNK) for x in lists[0])
    return ceil(chunks / CHUNKS) + (name == "_foreach_norm")


def tensors_of(values: Any) -> list[Tensor]:
    """All tensors in nested values."""
    return list(filter(torch.is_tensor, tree_leaves(values)))


def storage_key(x: Tensor) -> int:
    return x.untyped_storage()._cdata


def state_bytes(optimizer: Optimizer, device: str) -> int:
    """Bytes of state on a type of device; tensors of one storage count once."""
    storages: dict[int, int] = {}
    for part in getattr(optimizer, "parts", [optimizer]):
        for x in tensors_of([dict(record) for record in part.state.values()]):
            if x.device.type == device:
                storages[storage_key(x)] = x.untyped_storage().nbytes()
    return sum(storages.values())


def counted_step(optimizer: NGOptimizer) -> tuple[Counts, int]:
    """Counts of a step, and peak bytes without new state."""
    before = state_bytes(optimizer, "meta")
    with Counts() as counts:
        optimizer.step()
    new_state = state_bytes(optimizer, "meta") - before
    return counts, counts.memory.peak - new_state


def counted(network: str, weights: str, total_steps: int | None) -> Record:
    """The record of a network on the meta device."""
    with torch.device("meta"):
        params = list(NETWORKS[network]().parameters())
    for p in params:
        p.grad = torch.empty_like(p)
    optimizer = NGOptimizer(params, rule=weights, total_steps=total_steps)
    first, first_transient = counted_step(optimizer)
    optimizer.step()
    every = move_to_late_step(optimizer)
    steps: list[Counts] = []
    transient = 0
    for _ in range(every):
        step, peak = counted_step(optimizer)
        steps.append(step)
        transient = max(transient, peak)
    ops = [step.ops.total() for step in steps]
    numel = sum(map(Tensor.numel, params))
    return {
        "network": network,
        "weights": weights,
        "horizon": total_steps,
        "parameters": numel,
        "cycle": every,
        "ops": fmean(ops),
        "most_ops": max(ops),
        "first_ops": first.ops.total(),
        "kernels": fmean(step.kernels for step in steps),
        "host_reads": sum(step.reads for step in (first, *steps)),
        "copies": max(step.copies for step in steps),
        "factorisations": sum(step.factorisations for step in (first, *steps)),
        "transient_mib": transient / MIB,
        "first_transient_mib": first_transient / MIB,
        "state": state_bytes(optimizer, "meta") / torch.float32.itemsize / numel,
    }


def limits_of(record: Record) -> Record:
    """The limits of a record's numbers by key."""
    if record["weights"] != "default":
        return {"host_reads": 0}
    limits: Record = {"host_reads": 0, "copies": 1, "factorisations": 0}
    limits["first_transient_mib"] = OTHER_TRANSIENT_MIB
    limits |= LIMITS.get(record["network"], {})
    if record["horizon"] is None:
        limits["transient_mib"] = OTHER_TRANSIENT_MIB
        limits.pop("state", None)
    return limits


def beside_limits(record: Record) -> Record:
    """A record for printing: "245 / 250" is 245 with a limit of 250."""
    printed = {**record, "kernels": round(record["kernels"])}
    for key, limit in limits_of(record).items():
        digits = 2 if key == "state" else 0
        printed[key] = f"{record[key]:.{digits}f} / {limit:,}"
    return printed


@contextmanager
def quiet() -> Iterator[None]:
    """Suppresses the log of unconnected parameters, as there is no model to trace."""
    logger = logging.getLogger("ngopt")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--networks", nargs="*", choices=NETWORKS, default=[*NETWORKS])
    parser.add_argument("--weights", nargs="*", default=["default"])
    options = parser.parse_args(arguments)
    counts: list[Record] = []
    cases = product(options.weights, options.networks, (HORIZON, None))
    for weights, network, horizon in tqdm(list(cases), unit="network"):
        with quiet():
            counts.append(counted(network, weights, horizon))
        write(options.output, counts=counts)
    print(table([beside_limits(record) for record in counts]))


if __name__ == "__main__":
    main()
