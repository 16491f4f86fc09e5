"""Settings of the process, which are the same after a trace as before.

A forward may change them, and may fail inside of a mode or a transform.
"""
# pyright: reportPrivateImportUsage=false, reportAttributeAccessIssue=false

import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from threading import RLock
from typing import Any

import torch
import torch.fx.config
from torch import _C
from torch._C import _functorch
from torch.autograd import forward_ad
from torch.nn.modules import module as torch_module
from torch.overrides import _get_current_function_mode_stack
from torch.utils import _device

one_thread = RLock()
"""Held by the thread that traces."""


@contextmanager
def process_kept() -> Iterator[None]:
    """A context that one thread at a time can enter, and after which the settings are
    as before."""
    with one_thread, ExitStack() as restored:
        for read, write in _settings():
            restored.callback(_write_if_changed, read, write, read())
        yield


def _write_if_changed(read: Callable, write: Callable, value: Any) -> None:
    if read() != value:
        write(value)


def global_hooks() -> list[dict[int, Any]]:
    """Hooks of all modules."""
    variables = vars(torch_module).items()
    return [v for k, v in variables if k.startswith("_global_") and v is not None]


def _settings() -> Iterator[tuple[Callable[[], Any], Callable[[Any], Any]]]:
    """Functions that read and write each; the last ones are written first."""
    yield warnings.filters.copy, _set_filters
    # no attribute, as loggers store which levels are enabled
    yield lambda: logging.root.manager.disable, logging.disable
    for hooks in global_hooks():
        yield hooks.copy, partial(_set_hooks, hooks)
    for owner, name in (
        (torch.fx.config, "do_not_emit_stack_traces"),
        (_device, "CURRENT_DEVICE"),
        (torch._GLOBAL_DEVICE_CONTEXT, "device_context"),
    ):
        yield partial(getattr, owner, name, None), partial(setattr, owner, name)
    yield torch.get_default_dtype, torch.set_default_dtype
    yield torch.is_grad_enabled, _C._set_grad_enabled
    yield torch.get_deterministic_debug_mode, torch.set_deterministic_debug_mode
    yield torch.is_autocast_cache_enabled, torch.set_autocast_cache_enabled
    for device in "cpu", "cuda", "mps":
        for read, write in (
            (torch.is_autocast_enabled, torch.set_autocast_enabled),
            (torch.get_autocast_dtype, torch.set_autocast_dtype),
        ):
            yield partial(read, device), partial(write, device)
    yield _get_current_function_mode_stack, _enter_function_modes
    yield partial(getattr, forward_ad, "_current_level"), _leave_dual_levels
    depth = _functorch.get_dynamic_layer_stack_depth
    yield depth, _functorch.pop_dynamic_layer_stack_and_undo_to_depth


def _set_filters(filters: list) -> None:
    warnings.simplefilter("ignore")  # Python reads them again only after such a change
    # not another list, which other modules would not have
    warnings.filters[:] = filters  # type: ignore[index]


def _set_hooks(hooks: dict[int, Any], before: dict[int, Any]) -> None:
    hooks.clear()
    hooks.update(before)


def _enter_function_modes(modes: list) -> None:
    for _ in _get_current_function_mode_stack():
        _C._pop_torch_function_stack()
    for mode in modes:
        _C._push_on_torch_function_stack(mode)


def _leave_dual_levels(level: int) -> None:
    while forward_ad._current_level > level:
        forward_ad.exit_dual_level()
