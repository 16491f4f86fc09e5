"""Predicts the time of a step on an H100 from the ops that it dispatches.

A launch costs the host 5 microseconds. On the device, a matrix product takes the
maximum of the times for arithmetic and for memory traffic. Every other op reads its
inputs and writes its outputs once. Host and device overlap: a step takes the maximum of
both.
"""

import sys
from collections import defaultdict
from collections.abc import Sequence
from math import ceil
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.optim import Optimizer
from torch.utils._pytree import tree_leaves

import ngopt

LAUNCH = 5e-6  # seconds of host time
MEMORY = 2.8e12  # bytes a second
# FLOPs a second of matrix products, by the dtype of the operands; float32 without TF32.
PRODUCTS = {torch.bfloat16: 700e12, torch.float16: 700e12, torch.float32: 50e12}
OTHER_PRODUCTS = 50e12  # float64
SMALL = 1 << 20  # bytes; ops that move less are counted as work on scalars

# Arguments of a product that are multiplied.
FACTORS = {"mm": (0, 1), "bmm": (0, 1), "addmm": (1, 2), "baddbmm": (1, 2)}

# For `torch._foreach_*` on CUDA: elements of a chunk, and chunks of a launch.
CHUNK, CHUNKS = 1 << 16, 320
CAT = 128  # tensors per launch of `torch.cat`
# Ops with two kernels: one fills or copies, the other writes.
TWO_KERNELS = "constant_pad_nd", "masked_fill"
# Ops that write to their first argument without reading it.
OVERWRITING = "copy_", "fill_", "zero_"
DEPTH = 40  # maximum stack frames between an op and the library function that calls it

# Seconds per element of the update MLP's kernel, without and with context. The kernel
# is limited by its instructions, not by its memory traffic.
HEAD = 31e-12, 35e-12

PARTS = "rotation", "factors", "renewal", "products", "head", "elementwise", "scalars"
# Library functions, and the part to which their ops belong.
PACKAGE = str(Path(ngopt.__file__).parent)
PART_OF = {
    "rotate": "rotation",
    "_bases": "rotation",
    "_update_distance": "scalars",
    "_update_factors": "factors",
    "_renew_bases": "renewal",
}
# Functions that are one kernel each when compiled.
FUSED = "accumulate", "precondition", "change", "finite_features"
NAMES = {*PART_OF, *FUSED}


class Prediction:
    """Seconds of a step on an H100, summed over ops.

    device: of each part, eager. fused: of the elementwise part with compiled functions.
    launches, fused_launches: kernels, eager and with compiled functions.
    """

    def __init__(self) -> None:
        self.device: dict[str, float] = defaultdict(float)
        self.fused = 0.0
        self.launches = self.fused_launches = 0
        self._region: _Region | None = None

    def add(self, name: str, args: Any, out: Any, writes: bool) -> None:
        """Adds an op. writes: whether it modifies an argument."""
        inputs = tensors_of(args)
        outputs = tensors_of(out)
        read = inputs[1:] if name in OVERWRITING else inputs
        written = outputs or (tensors_of(args[0]) if writes else [])
        moved = sum(map(nbytes, [*read, *written]))
        seconds = max(moved / MEMORY, arithmetic_seconds(name, args))
        kernels = kernels_of(name, args)
        part, function = _where()
        if part is None:
            part = _part_of_op(name, moved, function is not None)
        self.device[part] += seconds
        self.launches += kernels
        self._enter(function)
        if self._region is not None:
            self._region.add(inputs, outputs, writes)
            return
        self.fused_launches += kernels
        if part == "elementwise":
            self.fused += seconds

    def close(self) -> None:
        """Ends the last compiled function."""
        self._enter(None)

    @property
    def fused_seconds(self) -> float:
        """Device time with compiled functions; call `close` before."""
        unfused = [s for part, s in self.device.items() if part != "elementwise"]
        return sum(unfused) + self.fused

    def _enter(self, function: str | None) -> None:
        """Sets the next op's compiled function; a different one ends the region."""
        region = self._region
        if region is not None and region.function != function:
            self.fused += region.bytes() / MEMORY
            self.fused_launches += 1
            self._region = region = None
        if function is not None and region is None:
            self._region = _Region(function)

    def milliseconds(self) -> dict[str, float]:
        """Milliseconds of the parts and of the whole step."""
        found = {part: 1e3 * self.device[part] for part in PARTS}
        device = sum(found.values())
        found["elementwise_fused"] = 1e3 * self.fused
        found["host"] = 1e3 * LAUNCH * self.launches
        found["host_fused"] = 1e3 * LAUNCH * self.fused_launches
        found["eager"] = max(found["host"], device)
        found["fused"] = max(found["host_fused"], 1e3 * self.fused_seconds)
        return found


class _Region:
    """A call of a compiled function, which reads inputs and writes outputs once."""

    def __init__(self, function: str):
        self.function = function
        self._read: dict[int, int] = {}
        self._written: dict[int, int] = {}
        self._made: dict[int, tuple[StorageWeakRef, int]] = {}

    def add(
        self, inputs: Sequence[Tensor], outputs: Sequence[Tensor], writes: bool
    ) -> None:
        for x in inputs:
            key = storage_key(x)
            if not self._is_made(key):
                self._read[key] = max(nbytes(x), self._read.get(key, 0))
        changed = outputs or inputs[:1]
        for x in changed if writes else outputs:
            key = storage_key(x)
            if writes and key in self._read:
                self._written[key] = nbytes(x)
            elif not self._is_made(key):
                self._made[key] = StorageWeakRef(x.untyped_storage()), nbytes(x)

    def _is_made(self, key: int) -> bool:
        """Whether a storage was allocated in this call and still exists."""
        return key in self._made and not self._made[key][0].expired()

    def bytes(self) -> int:
        """Bytes moved; call it after the call, when only its outputs are left."""
        total = sum(self._read.values()) + sum(self._written.values())
        for key, (_, size) in self._made.items():
            if self._is_made(key):
                total += size
        return total


def arithmetic_seconds(name: str, args: Any) -> float:
    """Seconds of a matrix product or the update MLP; 0 for other ops."""
    if name == "mlp_updates":
        columns, context = args[:2]
        return columns[0].numel() * HEAD[context is not None]
    if name not in FACTORS:
        return 0.0
    first, second = FACTORS[name]
    a, b = args[first], args[second]
    flops = 2 * a.numel() * b.shape[-1]
    return flops / PRODUCTS.get(a.dtype, OTHER_PRODUCTS)


def _part_of_op(name: str, moved: int, is_fused: bool) -> str:
    """The part of an op outside the functions of `PART_OF`."""
    if name == "mlp_updates":
        return "head"
    if name in FACTORS:
        return "products"
    return "elementwise" if is_fused or moved > SMALL else "scalars"


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
    if not _has_fast_route(lists):
        return len(lists[0])
    chunks = sum(ceil(x.numel() / CHUNK) for x in lists[0])
    return ceil(chunks / CHUNKS) + (name == "_foreach_norm")


def _has_fast_route(lists: Sequence[Sequence[Tensor]]) -> bool:
    """Whether one kernel handles many tensors: the operands of each are alike."""
    for operands in zip(*lists, strict=True):
        layouts = {(x.shape, x.stride(), x.dtype) for x in operands}
        if len(layouts) > 1:
            return False
    return True


def tensors_of(values: Any) -> list[Tensor]:
    """All tensors in nested values."""
    return list(filter(torch.is_tensor, tree_leaves(values)))


def storage_key(x: Tensor) -> int:
    return x.untyped_storage()._cdata


def nbytes(x: Tensor) -> int:
    return x.numel() * x.itemsize


def state_bytes(optimizers: Sequence[Optimizer], device: str) -> int:
    """Bytes of state on a type of device; tensors of one storage count once."""
    storages: dict[int, int] = {}
    for optimizer in optimizers:
        for x in tensors_of(list(optimizer.state.values())):
            if x.device.type == device:
                storages[storage_key(x)] = x.untyped_storage().nbytes()
    return sum(storages.values())


def _where() -> tuple[str | None, str | None]:
    """The part, or the compiled function, to which the current op belongs."""
    frame = sys._getframe(2)
    for _ in range(DEPTH):
        if frame is None:
            break
        name = frame.f_code.co_name
        if name in NAMES and frame.f_code.co_filename.startswith(PACKAGE):
            return (None, name) if name in FUSED else (PART_OF[name], None)
        frame = frame.f_back
    return None, None
