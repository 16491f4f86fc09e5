"""What differs between devices: dtypes, norms, fused functions, CUDA graphs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from torch import Tensor, _foreach_norm  # pyright: ignore[reportPrivateImportUsage]

Array = Any  # of NumPy or torch
RANGE = 1e-15, 1e15  # norms of which the squares are float32


def precise_dtype(device: torch.device) -> torch.dtype:
    """float64, which holds the squares of all float32, where the device has it."""
    return torch.float32 if device.type == "mps" else torch.float64


def root_mean_squares(
    values: Sequence[Tensor], roots: Tensor, in_place: bool
) -> Tensor:
    """Of all tensors, (n,), whatever the range of their values.

    roots: of the numbers of elements, (n,); 1 for empty tensors. in_place: whether
    neither autograd nor vmap follows, as vmap has no foreach.
    """
    if not in_place:
        norms = [torch.linalg.vector_norm(x, dtype=roots.dtype) for x in values]
        return torch.stack(norms) / roots
    if not roots.is_cpu or values[0].dtype == roots.dtype:
        return torch.stack(_foreach_norm(list(values), 2, roots.dtype)).div_(roots)
    # float32 is much faster on a CPU; float64 where that has not the range
    norms = torch.stack(_foreach_norm(list(values), 2, torch.float32)).to(roots)
    for i, norm in enumerate(norms.tolist()):
        if not RANGE[0] < norm < RANGE[1]:
            norms[i] = torch.linalg.vector_norm(values[i], dtype=roots.dtype)
    return norms.div_(roots)


def is_host(device: torch.device) -> bool:
    """Whether reading a number costs nothing."""
    return device.type == "cpu"


def array_module(x: Array) -> Any:
    """NumPy or torch; calls of NumPy have less overhead on few numbers on the host."""
    return np if isinstance(x, np.ndarray) else torch


def add_product(a: Array, b: Array, c: Array) -> Array:
    """a + b * c, of tensors in one kernel."""
    return torch.addcmul(a, b, c) if isinstance(a, Tensor) else a + b * c


def hypot(x: Array, y: Array) -> Array:
    if isinstance(x, np.ndarray):
        return np.hypot(x, y)
    if not torch.is_grad_enabled():
        return torch.hypot(x, y)
    return torch.stack((x, y)).norm(dim=0)  # its derivative at 0 is 0


def stacked(rows: Sequence[Any], n: int, dtype: torch.dtype) -> Tensor:
    """Rows (n,), tensors or what NumPy broadcasts to that, as a tensor (rows, n)."""
    if isinstance(rows[0], Tensor):
        return torch.stack([x.to(rows[0].dtype) for x in rows]).to(dtype)
    table = torch.empty(len(rows), n, dtype=dtype, device="cpu")
    for row, values in zip(table.numpy(), rows, strict=True):
        row[:] = values
    return table


def separate(values: Any, like: Tensor) -> list[Any]:
    """n of them, one by one: numbers of the host, or tensors () with the dtype of
    `like`.

    values: a tensor (n,), or what NumPy broadcasts to that. like: (k, n).
    """
    if isinstance(values, Tensor):
        return list(values.to(like.dtype).unbind())
    return np.broadcast_to(values, like.shape[1]).tolist()


def product_dtype(device: torch.device, dtype: torch.dtype) -> torch.dtype:
    """Of the inputs of large products of such values: bfloat16 on accelerators."""
    is_exact = device.type == "cpu" or dtype == torch.float64
    return dtype if is_exact else torch.bfloat16


def precise_bmm(x: Tensor, y: Tensor, in_place: bool) -> Tensor:
    """Products of batches of matrices, summed up in float32 at least, and not rounded.

    in_place: whether neither autograd nor vmap follows.
    """
    if x.itemsize > 2:
        return torch.bmm(x, y)
    if in_place and x.device.type in ("cuda", "meta") and _has_out_dtype():
        return torch.bmm(x, y, out_dtype=torch.float32)
    return torch.bmm(x.float(), y.float())


def add_squares_(total: Tensor, x: Tensor, alpha: float, in_place: bool) -> None:
    """total <- total + alpha X X^T, a constant to autograd, summed up in float32 at
    least.

    total: (b, n, n), changed. x: (b * pieces, n, m), of which pieces are added up.
    in_place: see `precise_bmm`.
    """
    is_whole = in_place and len(x) == len(total)
    if is_whole and x.dtype == total.dtype:
        total.baddbmm_(x, x.mT, alpha=alpha)
    elif is_whole and x.is_cuda and total.dtype == torch.float32 and _has_out_dtype():
        add = torch.ops.aten.baddbmm.dtype_out
        add(total, x, x.mT, torch.float32, alpha=alpha, out=total)
    else:
        squares = precise_bmm(x, x.mT, in_place).detach()
        if len(x) != len(total):
            squares = squares.view(len(total), -1, *total.shape[1:]).sum(1)
        total.add_(squares, alpha=alpha)


@cache
def _has_out_dtype() -> bool:
    """Whether products of 16 bits can be float32: from torch 2.8 on."""
    has = "dtype_out" in torch.ops.aten.baddbmm.overloads()
    return has and not torch.version.hip


@cache
def has_triton(device: torch.device) -> bool:
    """Whether kernels of Triton run there."""
    return device.type == "cuda" and find_spec("triton") is not None


def kernels(device: torch.device, dtype: torch.dtype) -> Any:
    """The module with the default's elementwise functions for Triton, or None."""
    if dtype != torch.float32 or not has_triton(device):
        return None
    return import_module("ngopt.base.triton_kernels")


def fused(function: Callable, device: torch.device) -> Callable:
    """An elementwise function as one kernel, where there is Triton to compile it."""
    return _compiled(function) if has_triton(device) else function


@cache
def _compiled(function: Callable) -> Callable:
    return torch.compile(function, dynamic=True)


def is_capturing(device: torch.device) -> bool:
    """Whether calls now become part of a CUDA graph."""
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()


def full_precision(device: torch.device) -> AbstractContextManager[None]:
    """Products of float32 are exact to float32 within, whatever is set: no TF32."""
    return _without_tf32() if device.type == "cuda" else nullcontext()


@contextmanager
def _without_tf32() -> Iterator[None]:
    matmul = torch.backends.cuda.matmul
    is_new = hasattr(matmul, "fp32_precision")
    key, value = ("fp32_precision", "ieee") if is_new else ("allow_tf32", False)
    before = getattr(matmul, key)
    setattr(matmul, key, value)
    try:
        yield
    finally:
        setattr(matmul, key, before)


@contextmanager
def without_autocast(devices: Iterable[torch.device]) -> Iterator[None]:
    """Autocast, which would round the optimizer's own products, is off within."""
    types = filter(_has_autocast, {d.type for d in devices})
    enabled = [t for t in types if torch.is_autocast_enabled(t)]
    for t in enabled:
        torch.set_autocast_enabled(t, False)
    try:
        yield
    finally:
        for t in enabled:
            torch.set_autocast_enabled(t, True)


_has_autocast = cache(torch.amp.is_autocast_available)
