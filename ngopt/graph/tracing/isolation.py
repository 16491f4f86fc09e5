"""Runs a copy of a module, and restores what the copy shares with the process."""

import functools
import random
import sys
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.modules import module as torch_module
from torch.nn.parameter import is_lazy

from ngopt.graph.tracing.copies import Copier


@contextmanager
def isolated(model: nn.Module) -> Iterator[nn.Module]:
    """A context with a copy of a module that can run without changing the module.

    Copied: buffers, attributes, and the objects that they or the classes of all these
    objects refer to. Users' hooks are left out, except those that compute weights.

    Shared, and restored at the end: the memory and the gradients of parameters; the
    attributes of classes written in Python; hooks of all modules, which do not run; the
    random generators of Python, NumPy and torch; the modes of modules that are not
    copied. Caches of `functools.lru_cache` that stored something are cleared.

    Neither copied nor restored: parameters that the forward writes through `.data`
    (under `torch.no_grad` they are safe), global variables, closures of methods of its
    class, and objects that cannot be copied, such as open files. Modules of torch.jit,
    and modules whose attributes cannot be copied, run themselves.
    """
    copier = Copier()
    try:
        duplicate = copier.module(model)
    except Exception:  # such as a chain of objects that is too long to follow
        duplicate = model
        copier.copies.clear()  # some are incomplete
    with (
        _kept_generators(model),
        _without_global_hooks(),
        _kept_parameters(model),
        _copied_class_attributes(copier),
        ExitStack() as stack,
    ):
        # some modules are not copied
        for module in duplicate.modules():
            stack.callback(setattr, module, "training", module.training)
        yield duplicate


@contextmanager
def _kept_generators(model: nn.Module) -> Iterator[None]:
    """Restores the random generators of Python, NumPy and torch."""
    python_state = random.getstate()
    numpy_state = np.random.get_state()
    devices = {p.device for p in (*model.parameters(), *model.buffers())}
    indices = [device.index for device in devices if device.type == "cuda"]
    try:
        with torch.random.fork_rng(indices):
            yield
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)


@contextmanager
def _kept_parameters(model: nn.Module) -> Iterator[None]:
    """Restores the gradients and the memory of parameters."""
    kept = []
    for p in model.parameters():
        if not is_lazy(p):
            kept.append((p, p.data, p.grad))
            p.grad = None
    try:
        yield
    finally:
        for p, data, grad in kept:
            if p.data_ptr() != data.data_ptr() or p.shape != data.shape:
                p.data = data
            p.grad = grad


@contextmanager
def _without_global_hooks() -> Iterator[None]:
    """Hooks that are registered for all modules do not run."""
    registries = []
    for name, hooks in vars(torch_module).items():
        if name.startswith("_global_") and isinstance(hooks, dict) and hooks:
            registries.append((hooks, dict(hooks)))
            hooks.clear()
    try:
        yield
    finally:
        for hooks, kept in registries:
            # before those that were registered meanwhile
            later = dict(hooks)
            hooks.clear()
            hooks.update({**kept, **later})


@contextmanager
def _copied_class_attributes(copier: Copier) -> Iterator[None]:
    """Replaces the attributes of classes by copies; at the end every class has the
    attributes that it had.

    copier: has copied objects of these classes.
    """
    classes: set[type] = set()
    # written in Python, not by torch or Python itself
    foreign = {"torch", *sys.stdlib_module_names}
    for value in copier.originals:
        for kind in type(value).__mro__:
            is_heap_type = bool(kind.__flags__ & 1 << 9)  # its attributes can be set
            if is_heap_type and kind.__module__.partition(".")[0] not in foreign:
                classes.add(kind)
    attributes = {kind: dict(vars(kind)) for kind in classes}
    caches = [(cache, cache.cache_info().misses) for cache in _caches(classes)]
    try:
        for kind, values in attributes.items():
            for name, value in values.items():
                # methods and properties are no values
                if name.startswith("__") or hasattr(type(value), "__get__"):
                    continue
                with suppress(AttributeError, TypeError):  # of a read-only class
                    _set_attribute(kind, name, copier.copy(value))
        yield
    finally:
        for kind, values in attributes.items():
            # Python may add names such as __abstractmethods__ at any time
            for name in vars(kind).keys() - values.keys():
                if not name.startswith("__"):
                    delattr(kind, name)
            for name, value in values.items():
                _set_attribute(kind, name, value)
        for cache, misses in caches:
            if cache.cache_info().misses != misses:
                cache.cache_clear()


def _set_attribute(kind: type, name: str, value: Any) -> None:
    if name not in vars(kind) or vars(kind)[name] is not value:
        setattr(kind, name, value)


def _caches(classes: Iterable[type]) -> set[Any]:
    """Caches of `functools` among the attributes of classes and in their files."""
    caches = set()
    for kind in classes:
        file = sys.modules.get(kind.__module__)
        for value in (*vars(kind).values(), *(vars(file).values() if file else ())):
            function = getattr(value, "__func__", value)  # of a static method
            if type(function) is functools._lru_cache_wrapper:
                caches.add(function)
    return caches
