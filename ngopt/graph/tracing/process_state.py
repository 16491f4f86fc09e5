"""Settings of the process, which are the same after a trace as before.

A forward may change settings of torch, NumPy and Python, and may fail while one is
changed; `torch.export` changes some, too.
"""
# pyright: reportPrivateImportUsage=false, reportAttributeAccessIssue=false

import decimal
import gc
import locale
import logging
import os
import re
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from itertools import product
from threading import RLock
from typing import Any

import numpy as np
import torch
import torch.fx.config
from torch import _C
from torch._C import _functorch
from torch.autograd import forward_ad
from torch.nn.modules import module as torch_module
from torch.nn.utils import parametrize
from torch.overrides import _get_current_function_mode_stack
from torch.utils import _device, checkpoint

READERS = re.compile(r"_?(?:get|is)_(\w+?)(?:_sdp_enabled)?")
"""Names of functions of torch._C; those for which others write are settings."""

ATTRIBUTES: tuple[tuple[Any, str], ...] = (
    (torch._tensor_str.PRINT_OPTS, "precision threshold edgeitems linewidth sci_mode"),
    (checkpoint, "_enable_checkpoint_early_stop"),
    (parametrize, "_cache_enabled"),
    (sys, "stdin stdout stderr displayhook excepthook"),
    (torch.backends, "fp32_precision"),
    (torch.backends.cudnn, "benchmark_limit"),
    (torch.backends.opt_einsum, "enabled strategy"),
    (torch.compiler, "_is_compiling_flag _is_exporting_flag"),
    (torch.distributions.Distribution, "_validate_args"),
    (torch.fx.config, "do_not_emit_stack_traces"),
    (_device, "CURRENT_DEVICE"),
    (torch._GLOBAL_DEVICE_CONTEXT, "device_context"),
)

one_thread = RLock()
"""Held by the thread that traces."""


@contextmanager
def process_kept() -> Iterator[None]:
    """A context that one thread at a time can enter, and after which the settings are
    as before."""
    with one_thread, ExitStack() as restored:
        # not a copy in its place, which another thread would keep
        filters = warnings.filters.copy()
        for container in warnings.filters, parametrize._cache:
            restored.callback(_refill, container, container.copy())
        warnings.simplefilter("ignore")  # torch warns of some that are read
        for read, write in _settings():
            with suppress(Exception):  # such as of a device that torch does not have
                restored.callback(_write_if_changed, read, write, read())
        _refill(warnings.filters, filters)
        restored.callback(warnings.simplefilter, "ignore")
        yield


def _refill(container: Any, contents: Any) -> None:
    """Gives a list or dict the contents that it had."""
    if isinstance(container, list):
        container[:] = contents
        return
    for key in container.keys() - contents.keys():
        del container[key]
    container.update(contents)


def _write_if_changed(read: Callable, write: Callable, value: Any) -> None:
    with suppress(Exception):
        if read() != value:
            write(value)


def global_hooks() -> list[dict[int, Any]]:
    """Hooks of all modules."""
    variables = vars(torch_module).items()
    return [v for k, v in variables if k.startswith("_global_") and v is not None]


def _settings() -> Iterator[tuple[Callable[[], Any], Callable[[Any], Any]]]:
    """Functions that read and write each; the last ones are written first."""
    yield np.geterr, lambda modes: np.seterr(**modes)
    yield np.get_printoptions, lambda options: np.set_printoptions(**options)
    yield sys.getrecursionlimit, sys.setrecursionlimit
    yield sys.getswitchinterval, sys.setswitchinterval
    yield gc.isenabled, lambda is_on: gc.enable() if is_on else gc.disable()
    yield gc.get_threshold, lambda thresholds: gc.set_threshold(*thresholds)
    yield os.getcwd, os.chdir
    set_locale = partial(locale.setlocale, locale.LC_ALL)  # reads it without a value
    yield set_locale, set_locale
    # no attributes, as loggers store which levels are enabled
    yield lambda: logging.root.manager.disable, logging.disable
    yield lambda: logging.root.level, logging.root.setLevel
    for container in os.environ, *global_hooks():
        yield container.copy, partial(_refill, container)
    # decimal has a context for each thread
    for owner, names in (decimal.getcontext(), "prec"), *ATTRIBUTES:
        for name in names.split():
            yield partial(getattr, owner, name, None), partial(setattr, owner, name)
    for reader in filter(None, map(READERS.fullmatch, dir(_C))):
        for pattern in "_set_{}", "set_{}", "_set_sdp_use_{}":
            write = getattr(_C, pattern.format(reader[1]), None)
            if write is not None:
                yield getattr(_C, reader[0]), write
    # the strategy of determinism is two settings
    yield torch.get_deterministic_debug_mode, torch.set_deterministic_debug_mode
    enabled = torch.is_autocast_enabled, torch.set_autocast_enabled
    dtype = torch.get_autocast_dtype, torch.set_autocast_dtype
    for device, (read, write) in product(("cpu", "cuda", "mps"), (enabled, dtype)):
        yield partial(read, device), partial(write, device)
    yield _get_current_function_mode_stack, _enter_function_modes
    yield partial(getattr, forward_ad, "_current_level"), _leave_dual_levels
    depth = _functorch.get_dynamic_layer_stack_depth
    yield depth, _functorch.pop_dynamic_layer_stack_and_undo_to_depth


def _enter_function_modes(modes: list) -> None:
    for _ in _get_current_function_mode_stack():
        _C._pop_torch_function_stack()
    for mode in modes:
        _C._push_on_torch_function_stack(mode)


def _leave_dual_levels(level: int) -> None:
    while forward_ad._current_level > level:
        forward_ad.exit_dual_level()
