"""Runs a copy of a module, and restores what the copy shares with the process.

A forward may change settings of the process, and may fail inside of a mode or a
transform.
"""
# pyright: reportPrivateImportUsage=false, reportAttributeAccessIssue=false

import logging
import random
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import _lru_cache_wrapper, partial
from itertools import chain
from threading import RLock
from typing import Any

import numpy as np
import torch
import torch.fx.config
from torch import _C, Tensor, nn
from torch._C import _functorch
from torch.autograd import forward_ad
from torch.nn.modules import module as torch_module
from torch.nn.parameter import is_lazy
from torch.overrides import _get_current_function_mode_stack
from torch.utils import _device

from ngopt.graph.tracing.copies import Copier

one_thread = RLock()
"""Held by the thread that traces."""


@contextmanager
def isolated(model: nn.Module) -> Iterator[nn.Module]:
    """A context with a copy of a module that can run without changing the module.

    Copied: buffers, attributes, and the objects that they or the classes of all these
    objects refer to. Users' hooks are left out, except those that compute weights.

    Shared, and restored at the end: the memory and the gradients of parameters; the
    attributes of classes written in Python; hooks of all modules, which do not run; the
    random generators of Python, NumPy and torch; the modes of modules that are not
    copied; settings of the process, see `_settings`. Caches of `functools.lru_cache`
    that stored something are cleared.

    Neither copied nor restored: parameters that the forward writes through `.data`
    (under `torch.no_grad` they are safe), global variables, attributes that it adds to
    a class, closures of methods of its class, and objects that cannot be copied, such
    as open files. Modules of torch.jit, and modules whose attributes cannot be copied,
    run themselves.
    """
    copier = Copier()
    try:
        duplicate = copier.module(model)
    except Exception:  # such as a chain of objects that is too long to follow
        duplicate = model
        copier.copies.clear()  # some are incomplete
    devices = {p.device for p in (*model.parameters(), *model.buffers())}
    indices = [device.index for device in devices if device.type == "cuda"]
    with one_thread, ExitStack() as restored:
        restored.callback(random.setstate, random.getstate())
        restored.callback(np.random.set_state, np.random.get_state())
        restored.enter_context(torch.random.fork_rng(indices))
        for p in model.parameters():
            if not is_lazy(p):
                restored.callback(_restore_parameter, p, p.data, p.grad)
                p.grad = None
        _replace_class_attributes(copier, restored)
        # some modules are not copied
        for module in duplicate.modules():
            restored.callback(setattr, module, "training", module.training)
        # left first, as what is restored above may fail inside of a transform
        restored.enter_context(process_kept())
        for hooks in _global_hooks():
            hooks.clear()
        yield duplicate


def _restore_parameter(p: nn.Parameter, data: Tensor, grad: Tensor | None) -> None:
    if p.data_ptr() != data.data_ptr() or p.shape != data.shape:
        p.data = data
    p.grad = grad


def _replace_class_attributes(copier: Copier, restored: ExitStack) -> None:
    """Replaces the attributes of classes by copies until the end, when caches of
    `functools` in their files that were used are cleared.

    copier: has copied objects of these classes.
    """
    kinds = {kind for value in copier.originals for kind in type(value).__mro__}
    kinds = set(filter(_is_of_user, kinds))
    files = {kind.__module__ for kind in kinds} & sys.modules.keys()
    places = (*kinds, *(sys.modules[name] for name in files))
    attributes = [list(vars(place).values()) for place in places]
    for value in chain(copier.originals, *attributes):
        cache = getattr(value, "__func__", value)  # of a static method
        if type(cache) is _lru_cache_wrapper:
            restored.callback(_clear_if_used, cache, cache.cache_info().misses)
    for kind in kinds:
        for name, value in list(vars(kind).items()):
            # methods and properties are no values
            if not name.startswith("__") and not hasattr(type(value), "__get__"):
                with suppress(AttributeError, TypeError):  # of a read-only class
                    setattr(kind, name, copier.copy(value))
                    restored.callback(setattr, kind, name, value)


def _is_of_user(kind: type) -> bool:
    """Whether a class is neither of torch nor of Python itself."""
    library = str(kind.__module__).partition(".")[0]
    return library != "torch" and library not in sys.stdlib_module_names


def _clear_if_used(cache: Any, misses: int) -> None:
    if cache.cache_info().misses != misses:
        cache.cache_clear()


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


def _global_hooks() -> list[dict[int, Any]]:
    """Hooks of all modules."""
    variables = vars(torch_module).items()
    return [v for k, v in variables if k.startswith("_global_") and v is not None]


def _settings() -> Iterator[tuple[Callable[[], Any], Callable[[Any], Any]]]:
    """Functions that read and write each; the last ones are written first."""
    yield warnings.filters.copy, _set_filters
    # no attribute, as loggers store which levels are enabled
    yield lambda: logging.root.manager.disable, logging.disable
    for hooks in _global_hooks():
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
