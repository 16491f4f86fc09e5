"""Runs a copy of a module, and restores the state that it shares."""

import functools
import random
import sys
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_module
from torch.nn.parameter import is_lazy

from ngopt.graph.tracing.copies import Copier

HEAP_TYPE = 1 << 9
"""Flag of the classes whose attributes can be set (Py_TPFLAGS_HEAPTYPE)."""

CACHE = functools._lru_cache_wrapper


@contextmanager
def isolated(model: nn.Module) -> Iterator[nn.Module]:
    """A context with a copy of a module that can run without changing the module.

    The copy shares the parameters. Buffers, attributes and the objects that they refer
    to are copied. Users' hooks do not run, except those that compute weights. Class
    attributes and random generators are restored at the end.

    Not protected are parameters that the forward writes through `.data` (under
    `torch.no_grad` they are safe), global variables, closures of methods of its class,
    and objects that cannot be copied, such as open files. Modules of torch.jit, and
    modules whose attributes cannot be copied, run themselves.
    """
    copier = Copier()
    try:
        duplicate = copier.module(model)
    except Exception:  # such as a chain of objects that is too long to follow
        duplicate = model
    with (
        _kept_generators(model),
        _without_global_hooks(),
        _kept_parameters(model),
        _kept_class_attributes(copier.originals),
        ExitStack() as stack,
    ):
        # some modules are not copied
        for module in duplicate.modules():
            stack.callback(setattr, module, "training", module.training)
        yield duplicate


@contextmanager
def _kept_generators(model: nn.Module) -> Iterator[None]:
    """Restores the random generators of Python, NumPy and torch."""
    of_python = random.getstate()
    of_numpy = np.random.get_state()
    devices = {p.device for p in (*model.parameters(), *model.buffers())}
    indices = [device.index for device in devices if device.type == "cuda"]
    try:
        with torch.random.fork_rng(indices):
            yield
    finally:
        random.setstate(of_python)
        np.random.set_state(of_numpy)


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
    for hooks, _ in registries:
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
def _kept_class_attributes(objects: Iterable[Any]) -> Iterator[None]:
    """Restores the class attributes of objects, and their contents."""
    classes: set[type] = set()
    for value in objects:
        classes.update(type(value).__mro__)
    kinds = set(filter(_is_of_user, classes))
    contents = _Contents()
    attributes = {}
    for kind in kinds:
        for value in vars(kind).values():
            contents.add(value)
        attributes[kind] = dict(vars(kind))
    caches = {cache: cache.cache_info().currsize for cache in _caches(kinds)}
    try:
        yield
    finally:
        contents.put_back()
        for kind, own in attributes.items():
            _put_back_attributes(kind, own)
        for cache, size in caches.items():
            if cache.cache_info().currsize != size:
                cache.cache_clear()


def _is_of_user(kind: type) -> bool:
    """Whether a class is written in Python, not by torch or Python itself."""
    package = kind.__module__.partition(".")[0]
    is_of_python = bool(kind.__flags__ & HEAP_TYPE)
    return is_of_python and package not in {"torch", *sys.stdlib_module_names}


def _caches(kinds: Iterable[type]) -> set[Any]:
    """Caches of `functools` among the attributes of classes and in their files."""
    found = set()
    for kind in kinds:
        file = sys.modules.get(kind.__module__)
        values = list(vars(kind).values())
        values += vars(file).values() if file else ()
        for value in values:
            function = getattr(value, "__func__", value)
            if type(function) is CACHE:
                found.add(function)
    return found


class _Contents:
    """The contents of containers, tensors and objects, recursively."""

    def __init__(self) -> None:
        self._known: dict[int, tuple[Any, Any]] = {}
        self._tensors: dict[int, tuple[Tensor, Tensor, int]] = {}  # and their versions

    def add(self, value: Any) -> None:
        if id(value) in self._known:
            return
        if isinstance(value, Tensor) and not isinstance(value, nn.Parameter):
            content = value.detach().clone()
            self._tensors[id(value)] = value, content, value._version
            return
        if isinstance(value, (list, set, deque)):
            inner = list(value)
        elif isinstance(value, dict):
            inner = list(value.values())
        elif _is_of_user(type(value)) and hasattr(value, "__dict__"):
            value = value.__dict__
            inner = list(value.values())
        else:
            return
        self._known[id(value)] = value, value.copy()
        for item in inner:
            self.add(item)

    def put_back(self) -> None:
        for tensor, values, version in self._tensors.values():
            if tensor._version != version:
                tensor.detach().copy_(values)
        for container, content in self._known.values():
            if _are_same(container, content):
                continue
            container.clear()
            if isinstance(container, (list, deque)):
                container.extend(content)
            else:
                container.update(content)


def _are_same(container: Any, content: Any) -> bool:
    """Whether both contain the same objects, by identity."""
    if len(container) != len(content):
        return False
    if isinstance(container, dict):
        missing = object()
        return all(container.get(key, missing) is content[key] for key in content)
    if isinstance(container, set):
        return container == content
    return all(a is b for a, b in zip(container, content, strict=True))


def _put_back_attributes(kind: type, attributes: dict[str, Any]) -> None:
    now = dict(vars(kind))
    for name in now.keys() - attributes.keys():
        # Python may add names such as __abstractmethods__ at any time
        if not name.startswith("__"):
            delattr(kind, name)
    for name, value in attributes.items():
        if name not in now or now[name] is not value:
            setattr(kind, name, value)
