"""Device-dependent functions: dtypes, norms, products, fused functions, autocast."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from torch import Tensor, _foreach_norm  # pyright: ignore[reportPrivateImportUsage]
from torch._C._functorch import peek_interpreter_stack

Array = Any  # of NumPy or torch
Pair = tuple[Array, Array]
SAFE_NORMS = 1e-15, 1e15  # their squares are in the range of float32


def precise_dtype(device: torch.device) -> torch.dtype:
    """float64, in which no square of a float32 overflows, if the device has it."""
    return torch.float32 if device.type == "mps" else torch.float64


def norms(values: Sequence[Tensor], dtype: torch.dtype, in_place: bool) -> Tensor:
    """Euclidean norm of each tensor, (n,), without overflow.

    dtype: of the result. in_place: whether neither autograd nor vmap is used; vmap has
    no foreach functions.
    """
    if not in_place:
        return torch.stack([torch.linalg.vector_norm(x, dtype=dtype) for x in values])
    # float32 is much faster on a CPU; float64 where its range is too small
    is_exact = not values[0].is_cpu or values[0].dtype == dtype
    if is_exact:
        return torch.stack(_foreach_norm(list(values), 2, dtype))
    norms = torch.stack(_foreach_norm(list(values), 2, torch.float32)).to(dtype)
    for i, norm in enumerate(norms.tolist()):
        if not SAFE_NORMS[0] < norm < SAFE_NORMS[1]:
            norms[i] = torch.linalg.vector_norm(values[i], dtype=dtype)
    return norms


def is_transformed() -> bool:
    """Whether vmap or another transform of `torch.func` is active."""
    return peek_interpreter_stack() is not None


def array_module(x: Array) -> Any:
    """NumPy or torch; calls of NumPy have less overhead on few numbers on the host."""
    return np if isinstance(x, np.ndarray) else torch


def hypot(x: Array, y: Array) -> Array:
    if isinstance(x, np.ndarray):
        return np.hypot(x, y)
    if not torch.is_grad_enabled():
        return torch.hypot(x, y)
    return torch.stack((x, y)).norm(dim=0)  # has the derivative 0 at 0


@np.errstate(all="ignore")
def stacked(rows: Sequence[Any], n: int, dtype: torch.dtype) -> Tensor:
    """Rows as a tensor (rows, n).

    rows: tensors (n,), or arrays or numbers that NumPy broadcasts to (n,).
    """
    if isinstance(rows[0], Tensor):
        same = [x.to(rows[0].dtype) for x in rows]
        return torch.stack(same).to(dtype)
    table = torch.empty(len(rows), n, dtype=dtype, device="cpu")
    for row, values in zip(table.numpy(), rows, strict=True):
        row[:] = values
    return table


def separate(values: Any, like: Tensor) -> list[Any]:
    """A list of n numbers, or of tensors () with the dtype of `like`.

    values: a tensor (n,), or an array or number that NumPy broadcasts to (n,). like:
    (k, n).
    """
    if isinstance(values, Tensor):
        return list(values.to(like.dtype).unbind())
    return np.broadcast_to(values, like.shape[1]).tolist()


def product_dtype(device: torch.device, dtype: torch.dtype) -> torch.dtype:
    """dtype of the inputs of large matrix products: bfloat16 on accelerators."""
    is_exact = device.type == "cpu" or dtype == torch.float64
    return dtype if is_exact else torch.bfloat16


def precise_bmm(x: Tensor, y: Tensor, in_place: bool) -> Tensor:
    """Batched matrix products, accumulated and returned in at least float32.

    in_place: whether neither autograd nor vmap is used.
    """
    if x.itemsize > 2:
        return torch.bmm(x, y)
    if in_place and x.device.type in ("cuda", "meta") and _has_out_dtype():
        return torch.bmm(x, y, out_dtype=torch.float32)
    return torch.bmm(x.float(), y.float())


def row_products(pairs: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
    """Inner products of the rows of two tensors (rows, lanes), (pairs, rows)."""
    if pairs[0][0].is_cpu:  # small products and sums of short rows are slower
        ones = pairs[0][0].new_ones(pairs[0][0].shape[1])
        return torch.stack([torch.mv(x * y, ones) for x, y in pairs])
    x = torch.cat([x for x, _ in pairs]).unsqueeze(1)
    y = x
    if any(x is not y for x, y in pairs):
        y = torch.cat([y for _, y in pairs]).unsqueeze(1)
    return torch.bmm(x, y.mT).view(len(pairs), -1)


def add_squares_(total: Tensor, x: Tensor, alpha: float, in_place: bool) -> None:
    """total <- total + alpha X X^T, without autograd, accumulated in at least float32.

    total: (b, n, n). x: (b * pieces, n, m); products of pieces are added up. in_place:
    see `precise_bmm`.
    """
    is_whole = in_place and x.shape[0] == total.shape[0]
    if is_whole and x.dtype == total.dtype:
        total.baddbmm_(x, x.mT, alpha=alpha)
    elif is_whole and x.is_cuda and total.dtype == torch.float32 and _has_out_dtype():
        add = torch.ops.aten.baddbmm.dtype_out
        add(total, x, x.mT, torch.float32, alpha=alpha, out=total)
    else:
        squares = precise_bmm(x, x.mT, in_place).detach()
        if x.shape[0] != total.shape[0]:
            squares = squares.view(len(total), -1, *total.shape[1:]).sum(1)
        total.add_(squares, alpha=alpha)


@cache
def _has_out_dtype() -> bool:
    """Whether products of 16 bit matrices can be float32: from torch 2.8 on."""
    has_overload = "dtype_out" in torch.ops.aten.baddbmm.overloads()
    return has_overload and not torch.version.hip


@cache
def has_triton(device: torch.device) -> bool:
    """Whether Triton kernels can run on a device."""
    return device.type == "cuda" and find_spec("triton") is not None


@cache
def fused(function: Callable, device: torch.device) -> Callable:
    """An elementwise function, compiled to one kernel if Triton is available."""
    return torch.compile(function, dynamic=True) if has_triton(device) else function


def is_capturing(device: torch.device) -> bool:
    """Whether a CUDA graph is being captured."""
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()


@contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """Context in which float32 products on a CUDA device do not use TF32, whatever the
    user has set."""
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
    """Context without autocast, which would round the optimizer's own products."""
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
