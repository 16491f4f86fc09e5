"""Copies of modules and of their inputs that a trace may change.

Parameters are shared.
"""

import copy
import enum
import logging
import weakref
from collections import ChainMap, OrderedDict, defaultdict, deque
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from types import CellType, FunctionType, MethodType, ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.lazy import LazyModuleMixin
from torch.nn.parameter import is_lazy

SHARED = (
    *(type(None), bool, int, float, complex, str, bytes, type, enum.Enum),
    *(ModuleType, torch.dtype, torch.device, torch.Size),
    *(logging.Logger, torch.optim.Optimizer, torch.utils.data.Dataset),
)
"""Values that a forward does not change, and those that are too large to copy."""

CONTAINERS: tuple[Any, ...] = OrderedDict, dict, deque, set, list
"""Copied item by item."""

HOOKS = [name for name in nn.Module().__dict__ if "hook" in name]
"""Attributes of a module that hold hooks, as `_forward_pre_hooks`."""

TORCH_HOOKS = "torch.nn.utils."
"""Defines hooks that compute weights: weight_norm, spectral_norm, pruning."""


class Copier:
    """Copies values with all that they refer to.

    Parameters are shared. Other tensors are copied, as the forward may write to them.
    Copied modules keep only the hooks that compute weights. Values that cannot be
    copied are shared: locks, files, objects with a `__del__`.
    tensor: how tensors that are no parameters are copied.
    copies: by the `id` of the original.
    originals: kept alive, so that no `id` is used again.
    """

    def __init__(self, tensor: Callable[[Tensor], Tensor] | None = None):
        self._tensor = tensor or cloned
        self.copies: dict[int, Any] = {}
        self.originals: list[Any] = []

    def module(self, module: nn.Module) -> nn.Module:
        """A copy of a module that shares its parameters. Modules of torch.jit are not
        copied."""
        # all of them before any attribute, which may refer to one
        modules = [one for one in module.modules() if self._begin(one)]
        for one in modules:
            self._fill(one)
        return self.copies[id(module)]

    def copy(self, value: Any) -> Any:
        if isinstance(value, SHARED):
            return value
        if id(value) in self.copies:
            return self.copies[id(value)]
        count = len(self.originals)
        try:
            return self.keep(value, self._copied(value))
        except Exception:
            # copies that were begun since may be incomplete
            for original in self.originals[count:]:
                self.copies.pop(id(original), None)
            return self.keep(value, value)

    def keep(self, original: Any, made: Any) -> Any:
        """Stores and returns the copy of a value."""
        self.copies[id(original)] = made
        self.originals.append(original)
        return made

    def _copied(self, value: Any) -> Any:
        if isinstance(value, nn.Module):
            if self._begin(value):
                self._fill(value)
            return self.copies[id(value)]
        if is_lazy(value):
            # another parameter or buffer that has no shape yet
            lazy: Any = type(value)
            return lazy(value.requires_grad, device=value.device, dtype=value.dtype)
        if isinstance(value, nn.Parameter):
            return value
        if isinstance(value, Tensor):
            return self._tensor(value)
        for kind, function in COPIED_TYPES:
            if isinstance(value, kind):
                return function(self, value)
        return _object(self, value)

    def _begin(self, module: nn.Module) -> bool:
        """Stores the copy of a module, without its attributes; returns whether it is
        one."""
        if isinstance(module, torch.jit.ScriptModule):
            self.keep(module, module)
            return False
        self.keep(module, object.__new__(self._kind(module)))
        return True

    def _kind(self, module: nn.Module) -> type:
        return type(module)

    def _is_left_out(self, name: str) -> bool:
        """Whether a copy of a module lacks an attribute."""
        return name == "_compiled_call_impl"

    def _fill(self, module: nn.Module) -> None:
        """Copies the attributes of a module to its copy."""
        attributes = self.copies[id(module)].__dict__
        for name in HOOKS:
            hooks = module.__dict__.get(name)
            if hooks is not None:
                # a handle of the module removes a hook of the copy
                attributes[name] = self.keep(hooks, type(hooks)())
        for name, hook in kept_hooks(module).items():
            attributes["_forward_pre_hooks"][name] = self.copy(hook)
            if name in module._forward_pre_hooks_with_kwargs:
                attributes["_forward_pre_hooks_with_kwargs"][name] = True
        computed = computed_weights(module)
        for name, value in list(module.__dict__.items()):
            if name in attributes or self._is_left_out(name):
                continue
            if name in computed:  # a hook computes it again
                attributes[name] = value.detach()
            else:
                attributes[name] = self.copy(value)


def cloned(tensor: Tensor) -> Tensor:
    """A tensor of the same values that belongs to no autograd graph. A sparse one, such
    as an adjacency matrix, becomes zeros without memory: no trace reads its values."""
    if str(tensor.layout).startswith("torch.sparse"):
        zero = torch.zeros((), dtype=tensor.dtype, device=tensor.device)
        return zero.expand(tensor.shape)
    return tensor.detach().clone().requires_grad_(tensor.requires_grad)


def kept_hooks(module: nn.Module) -> dict[int, Any]:
    """The forward pre-hooks of a module that compute its weights."""
    hooks = module.__dict__.get("_forward_pre_hooks", {})
    lazy: Any = LazyModuleMixin
    of_torch = {
        name: hook
        for name, hook in hooks.items()
        if getattr(hook, "__func__", None) is lazy._infer_parameters
        or type(hook).__module__.startswith(TORCH_HOOKS)
    }
    # users' hooks may compute a weight, too, but mostly log or check
    return of_torch if of_torch or not computed_weights(module) else dict(hooks)


def computed_weights(module: nn.Module) -> set[str]:
    """Attributes computed from a longer name: `weight` from `weight_orig`."""
    return {
        name
        for name, value in module.__dict__.items()
        if isinstance(value, Tensor)
        and not isinstance(value, nn.Parameter)
        and any(longer.startswith(f"{name}_") for longer in module._parameters)
    }


def _container(copier: Copier, value: dict | list | set | deque) -> Any:
    kind: Any = type(value)
    # before its items, which may refer to it
    made = copier.keep(value, kind.__new__(kind))
    if isinstance(value, defaultdict):
        made.default_factory = value.default_factory
    if isinstance(value, deque):
        deque.__init__(made, maxlen=value.maxlen)
    # functions of the base class: a subclass may override them
    base = next(base for base in CONTAINERS if isinstance(value, base))
    if isinstance(value, dict):
        for key, item in list(dict.items(value)):
            base.__setitem__(made, copier.copy(key), copier.copy(item))
    else:
        extend = base.update if base is set else base.extend
        extend(made, map(copier.copy, list(value)))
    _copy_attributes(copier, value, made)
    return made


def _tuple(copier: Copier, value: tuple) -> Any:
    items = list(map(copier.copy, value))
    if all(item is old for item, old in zip(items, value, strict=True)):
        return value
    if hasattr(value, "_fields"):
        return tuple.__new__(type(value), items)
    return type(value)(items)


def _partial(copier: Copier, value: partial) -> Any:
    function, args = copier.copy(value.func), copier.copy(value.args)
    return type(value)(function, *args, **copier.copy(value.keywords))


def _reference(copier: Copier, value: weakref.ref) -> Any:
    known = copier.copies.get(id(value()))
    is_plain = type(value) is weakref.ref
    return weakref.ref(known) if is_plain and known is not None else value


def _function(copier: Copier, function: FunctionType) -> Any:
    """A function that refers to copies, such as a `forward` that a user replaced."""
    variables = function.__globals__
    # global variables that are modules with a copy
    modules = {}
    for name in function.__code__.co_names:
        value = variables.get(name)
        if isinstance(value, nn.Module) and id(value) in copier.copies:
            modules[name] = copier.copies[id(value)]
    cells = function.__closure__ or ()
    if not (modules or cells or function.__defaults__ or function.__kwdefaults__):
        return function
    if modules:
        variables = {**variables, **modules}
    empty = tuple(CellType() for _ in cells)
    name = function.__name__
    made = FunctionType(function.__code__, variables, name, None, empty or None)
    copier.keep(function, made)  # before its variables, which may refer to it
    for made_cell, cell in zip(empty, cells, strict=True):
        with suppress(ValueError):  # of a variable that has no value yet
            made_cell.cell_contents = copier.copy(cell.cell_contents)
    made.__defaults__ = copier.copy(function.__defaults__)
    made.__kwdefaults__ = copier.copy(function.__kwdefaults__)
    made.__dict__.update(function.__dict__)
    return made


def _object(copier: Copier, value: Any) -> Any:
    kind = type(value)
    # an object() is compared by identity, and has nothing that could change
    if kind is object or hasattr(kind, "__del__"):
        return value
    reductions = kind.__reduce_ex__, kind.__reduce__
    is_usual = reductions == (object.__reduce_ex__, object.__reduce__)
    is_plain = is_usual and not hasattr(kind, "__deepcopy__")
    # an object of Python; others, such as locks, can be made by their type alone
    if is_plain and object.__getstate__(value) is not None:
        made = copier.keep(value, object.__new__(kind))
        _copy_attributes(copier, value, made)
        return made
    memo: Any = ChainMap({}, copier.copies)
    return copy.deepcopy(value, memo)


def _copy_attributes(copier: Copier, value: Any, made: Any) -> None:
    """Copies what an object has in its `__dict__` and in its slots."""
    state: Any = object.__getstate__(value)  # a dict or None; with slots a pair
    attributes, slots = state if isinstance(state, tuple) else (state, None)
    for name, item in list((attributes or {}).items()):
        made.__dict__[name] = copier.copy(item)
    for name, item in (slots or {}).items():
        object.__setattr__(made, name, copier.copy(item))


COPIED_TYPES: tuple[tuple[Any, Callable], ...] = (
    (CONTAINERS, _container),
    (tuple, _tuple),
    (frozenset, lambda copier, value: frozenset(map(copier.copy, value))),
    (MethodType, lambda copier, f: MethodType(f.__func__, copier.copy(f.__self__))),
    (FunctionType, _function),
    (partial, _partial),
    (weakref.ref, _reference),
    (torch.Generator, lambda copier, value: value.clone_state()),
)
