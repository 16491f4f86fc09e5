"""Settings of the process, which are the same after a trace as before.

A forward may change settings of torch, NumPy and Python, and may fail while one is
changed; `torch.export` changes some, too.
"""
# pyright: reportPrivateImportUsage=false

import decimal
import gc
import locale
import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache, partial
from itertools import product
from threading import RLock
from typing import Any

import numpy as np
import torch
import torch.fx.config
from torch import _C
from torch._C import _autograd, _functorch
from torch._functorch import eager_transforms
from torch.autograd import forward_ad
from torch.nn.modules import module as torch_module
from torch.nn.utils import parametrize
from torch.overrides import _get_current_function_mode_stack
from torch.utils import _device, checkpoint
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

Setting = tuple[Callable[[], Any], Callable[[Any], Any]]
"""Functions that read and write it."""

FUNCTIONS = {
    "_get_{0} _set_{0}": (
        "blas_preferred_backend cublas_allow_fp16_accumulation cublas_allow_tf32 "
        "cudnn_allow_tf32 cudnn_benchmark cudnn_deterministic cudnn_enabled "
        "deterministic_fill_uninitialized_memory float32_matmul_precision "
        "linalg_preferred_backend mkldnn_deterministic mkldnn_enabled nnpack_enabled "
        "qengine sdp_priority_order warnAlways"
    ),
    "_get_{0}_sdp_enabled _set_sdp_use_{0}": "cudnn flash math mem_efficient",
    "_is_{0}_enabled _set_{0}_enabled": "fwd_grad multithreading view_replay",
    "is_{0}_enabled _set_{0}_enabled": "grad",
    "is_{0}_enabled set_{0}_enabled": "autocast_cache",
    "get_{0} set_{0}": "num_threads",
}
"""Of torch._C, which read and write settings: patterns of their names."""

ATTRIBUTES: tuple[tuple[Any, str], ...] = (
    (torch._tensor_str.PRINT_OPTS, "precision threshold edgeitems linewidth sci_mode"),
    (checkpoint, "_checkpoint_debug_enabled _enable_checkpoint_early_stop"),
    (eager_transforms, "JVP_NESTING"),
    (logging.root, "disabled"),
    (parametrize, "_cache_enabled"),
    (sys, "stdin stdout stderr displayhook excepthook"),
    (torch.__future__, "_overwrite_module_params_on_conversion"),
    (torch.__future__, "_swap_module_params_on_conversion"),
    (torch.backends, "fp32_precision"),
    (torch.backends.cudnn, "benchmark_limit"),
    (torch.backends.opt_einsum, "enabled strategy"),
    (torch.compiler, "_is_compiling_flag _is_exporting_flag"),
    (torch.distributions.Distribution, "_validate_args"),
    (torch.fx.config, "do_not_emit_stack_traces"),
    (_device, "CURRENT_DEVICE"),
)

one_thread = RLock()
"""Held by the thread that traces."""

_UNREADABLE = object()


@contextmanager
def process_kept() -> Iterator[None]:
    """A context that one thread at a time can enter, and after which the settings are
    as before."""
    with one_thread, _kept(warnings.filters), _kept(parametrize._cache):
        with _kept(warnings.filters):
            warnings.simplefilter("ignore")  # torch warns of some that are read
            values = [_value(read) for read, _ in _settings()]
        try:
            yield
        finally:
            with _kept(warnings.filters):
                warnings.simplefilter("ignore")
                for (read, write), value in zip(_settings(), values, strict=True):
                    if value is not _UNREADABLE and _value(read) != value:
                        with suppress(Exception):
                            write(value)


@contextmanager
def _kept(container: Any) -> Iterator[None]:
    """A context after which a list or dict contains what it did. Unlike a copy in its
    place, it is the same for another thread that replaces it in the meantime."""
    contents = container.copy()
    try:
        yield
    finally:
        _refill(container, contents)


def _refill(container: Any, contents: Any) -> None:
    if isinstance(container, list):
        container[:] = contents
        return
    for key in container.keys() - contents.keys():
        del container[key]
    container.update(contents)


def _value(read: Callable[[], Any]) -> Any:
    try:
        return read()
    except Exception:  # such as of a device that torch does not have
        return _UNREADABLE


def global_hooks() -> list[dict[int, Any]]:
    """Hooks of all modules."""
    variables = vars(torch_module).items()
    return [v for k, v in variables if k.startswith("_global_") and v is not None]


@cache
def _settings() -> tuple[Setting, ...]:
    """The first ones are put back first."""
    return *_stacks(), *_of_torch(), *_of_python()


def _stacks() -> Iterator[Setting]:
    """What a forward may enter and not leave: transforms, autocast, hooks, modes."""
    depth = _functorch.get_dynamic_layer_stack_depth
    yield depth, _functorch.pop_dynamic_layer_stack_and_undo_to_depth
    level = partial(getattr, forward_ad, "_current_level")
    yield level, partial(_pop_until, level, forward_ad.exit_dual_level)
    yield _nesting, partial(_pop_until, _nesting, torch.autocast_decrement_nesting)
    pop = _autograd._pop_saved_tensors_default_hooks
    yield _last_hooks, partial(_pop_until, _last_hooks, pop)
    modes = _get_current_dispatch_mode_stack
    pop = partial(_C._pop_torch_dispatch_stack, None)
    yield modes, partial(_stack_again, modes, pop, _C._push_on_torch_dispatch_stack)
    modes, pop = _get_current_function_mode_stack, _C._pop_torch_function_stack
    yield modes, partial(_stack_again, modes, pop, _C._push_on_torch_function_stack)
    default = torch._GLOBAL_DEVICE_CONTEXT, "device_context"
    yield partial(getattr, *default, None), partial(setattr, *default)


def _pop_until(read: Callable, pop: Callable, value: Any) -> None:
    while read() != value:
        pop()


def _last_hooks() -> Any:
    """Those of saved tensors; torch 2.6 cannot read them."""
    return _autograd._top_saved_tensors_default_hooks(True)


def _nesting() -> int:
    """The number of autocast contexts around this one."""
    torch.autocast_increment_nesting()
    return torch.autocast_decrement_nesting()


def _stack_again(read: Callable, pop: Callable, push: Callable, modes: list) -> None:
    for _ in read():
        pop()
    for mode in modes:
        push(mode)


def _of_torch() -> Iterator[Setting]:
    yield torch.get_default_dtype, torch.set_default_dtype
    yield torch.get_deterministic_debug_mode, torch.set_deterministic_debug_mode
    yield (
        lambda: (torch.is_anomaly_enabled(), torch.is_anomaly_check_nan_enabled()),
        lambda modes: torch.set_anomaly_enabled(*modes),
    )
    enabled = torch.is_autocast_enabled, torch.set_autocast_enabled
    dtype = torch.get_autocast_dtype, torch.set_autocast_dtype
    for device, (read, write) in product(
        ("cpu", "cuda", "mps", "xpu"), (enabled, dtype)
    ):
        yield partial(read, device), partial(write, device)
    for pattern, settings in FUNCTIONS.items():
        for name in settings.split():
            read, write = pattern.format(name).split()
            yield getattr(_C, read, None), getattr(_C, write, None)


def _of_python() -> Iterator[Setting]:
    """Settings of Python and NumPy, and attributes of modules."""
    yield np.geterr, lambda modes: np.seterr(**modes)
    yield np.geterrcall, np.seterrcall
    yield np.get_printoptions, lambda options: np.set_printoptions(**options)
    yield (
        lambda: decimal.getcontext().prec,
        lambda digits: setattr(decimal.getcontext(), "prec", digits),
    )
    yield sys.getrecursionlimit, sys.setrecursionlimit
    yield sys.getswitchinterval, sys.setswitchinterval
    yield gc.isenabled, lambda is_on: gc.enable() if is_on else gc.disable()
    yield gc.get_threshold, lambda thresholds: gc.set_threshold(*thresholds)
    yield os.getcwd, os.chdir
    # no attributes, as loggers store which levels are enabled
    yield lambda: logging.root.manager.disable, logging.disable
    yield lambda: logging.root.level, logging.root.setLevel
    set_locale = partial(locale.setlocale, locale.LC_ALL)
    yield set_locale, set_locale
    for owner, names in ATTRIBUTES:
        for name in names.split():
            yield partial(getattr, owner, name), partial(setattr, owner, name)
    for container in os.environ, *global_hooks():
        yield container.copy, partial(_refill, container)
