"""Runs a copy of a module, and restores what the copy shares with the process."""

import functools
import random
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from itertools import chain
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from ngopt.graph.tracing.copies import Copier
from ngopt.graph.tracing.process_state import global_hooks, one_thread, process_kept


@contextmanager
def isolated(model: nn.Module) -> Iterator[nn.Module]:
    """A context with a copy of a module that can run without changing the module.

    Copied: buffers, attributes, and the objects that they or the classes of all these
    objects refer to. Users' hooks are left out, except those that compute weights.

    Shared, and restored at the end: the memory and the gradients of parameters; the
    attributes of classes written in Python; hooks of all modules, which do not run; the
    random generators of Python, NumPy and torch; the modes of modules that are not
    copied; settings of the process, see `process_state`. Caches of
    `functools.lru_cache` that stored something are cleared.

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
        for hooks in global_hooks():
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
        if type(cache) is functools._lru_cache_wrapper:
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
