"""Copies of modules and of their inputs that a trace may change: parameters are shared."""

from __future__ import annotations

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
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter, is_lazy

SHARED = (
    *(type(None), bool, int, float, complex, str, bytes, type, enum.Enum),
    *(ModuleType, torch.dtype, torch.device, torch.Size),
    *(logging.Logger, torch.optim.Optimizer, torch.utils.data.Dataset),
)
"""Values that a forward does not change, and what is too large to copy."""

HOOKS = [name for name in nn.Module().__dict__ if "hook" in name]
"""Attributes of a module that hold hooks, as `_forward_pre_hooks`."""

CONTAINERS = list, dict, set, deque

OF_TORCH = "torch.nn.utils."
"""Where hooks of torch that compute weights are defined: weight_norm, spectral_norm,
pruning."""


class Copier:
    """Copies values with all that they refer to.

    Parameters are shared. Other tensors are copied, as the forward may write to them.
    Modules have no hooks but those that compute weights. What cannot be copied is
    shared: locks, files, objects that release something when they are deleted.
    tensor: how tensors that are no parameters are copied.
    """

    def __init__(self, tensor: Callable[[Tensor], Tensor] | None = None):
        self._tensor = tensor or cloned
        self._known: dict[int, Any] = {}  # copies by the identity of the original
        self._empty: set[int] = set()  # modules whose copies have no attributes yet
        self.originals: list[Any] = []  # kept alive, so that no identity comes again

    def module(self, module: nn.Module) -> nn.Module:
        """A copy of a module that shares its parameters.

        torch.jit's modules are not copied.
        """
        # all of them before any attribute, which may refer to one
        for one in module.modules():
            self._begin(one)
        return self.copy(module)

    def copy(self, value: Any) -> Any:
        if isinstance(value, SHARED):
            return value
        if id(value) not in self._known:
            count = len(self.originals)
            try:
                return self._copied(value)
            except Exception:
                # objects may be incomplete that were begun since
                for original in self.originals[count:]:
                    self._known.pop(id(original), None)
                self._keep(value, value)
        made = self._known[id(value)]
        if id(value) in self._empty:
            self._empty.remove(id(value))
            self._fill(value, made)
        return made

    def _keep(self, original: Any, made: Any) -> Any:
        self._known[id(original)] = made
        self.originals.append(original)
        return made

    def _copied(self, value: Any) -> Any:
        keep = self._keep
        if isinstance(value, nn.Module):
            self._begin(value)
            return self.copy(value)
        if is_lazy(value):
            return keep(value, _lazy(value))
        if isinstance(value, nn.Parameter):
            return keep(value, value)
        if isinstance(value, Tensor):
            return keep(value, self._tensor(value))
        if isinstance(value, CONTAINERS):
            return self._container(value)
        if isinstance(value, tuple):
            return keep(value, self._tuple(value))
        if isinstance(value, frozenset):
            return keep(value, frozenset(map(self.copy, value)))
        if isinstance(value, MethodType):
            owner = self.copy(value.__self__)
            return keep(value, MethodType(value.__func__, owner))
        if isinstance(value, FunctionType):
            return self._function(value)
        if isinstance(value, partial):
            parts = map(self.copy, (value.func, value.args, value.keywords))
            function, args, kwargs = parts
            return keep(value, type(value)(function, *args, **kwargs))
        if isinstance(value, weakref.ref):
            return keep(value, self._reference(value))
        if isinstance(value, torch.Generator):
            return keep(value, value.clone_state())
        return self._object(value)

    def _container(self, value: Any) -> Any:
        kind: Any = type(value)
        made = self._keep(value, kind.__new__(kind))
        if isinstance(value, dict):
            if isinstance(value, defaultdict):
                made.default_factory = value.default_factory
            # the plain functions: a subclass may have others of its own
            put = OrderedDict.__setitem__ if isinstance(value, OrderedDict) else None
            put = put or dict.__setitem__
            for key, item in list(dict.items(value)):
                put(made, self.copy(key), self.copy(item))
        elif isinstance(value, deque):
            deque.__init__(made, map(self.copy, list(value)), value.maxlen)
        elif isinstance(value, set):
            set.update(made, map(self.copy, list(value)))
        else:
            list.extend(made, map(self.copy, list(value)))
        self._fill_attributes(value, made)
        return made

    def _tuple(self, value: tuple) -> tuple:
        items = [self.copy(item) for item in value]
        if all(item is old for item, old in zip(items, value, strict=True)):
            return value
        if hasattr(value, "_fields"):
            return tuple.__new__(type(value), items)
        return type(value)(items)

    def _reference(self, value: weakref.ref) -> Any:
        original = value()
        known = self._known.get(id(original))
        if original is None or known is None or type(value) is not weakref.ref:
            return value
        return weakref.ref(known)

    def _function(self, function: FunctionType) -> Any:
        """A function of the copies of what it refers to, as a `forward` that a user
        replaced."""
        names = function.__code__.co_names
        refers = [(name, function.__globals__.get(name)) for name in names]
        modules = {
            name: value
            for name, value in refers
            if isinstance(value, nn.Module) and id(value) in self._known
        }
        cells = function.__closure__ or ()
        defaults = function.__defaults__, function.__kwdefaults__
        if not (modules or cells or any(defaults)):
            return self._keep(function, function)
        variables = function.__globals__
        if modules:
            variables = {**variables, **modules}
        empty = tuple(CellType() for _ in cells)
        code, name = function.__code__, function.__name__
        made = FunctionType(code, variables, name, None, empty or None)
        self._keep(function, made)
        for module in modules:
            variables[module] = self.copy(modules[module])
        for cell, own in zip(empty, cells, strict=True):
            with suppress(ValueError):  # of a variable that has no value yet
                cell.cell_contents = self.copy(own.cell_contents)
        made.__defaults__, made.__kwdefaults__ = map(self.copy, defaults)
        made.__dict__.update(function.__dict__)
        return made

    def _object(self, value: Any) -> Any:
        kind = type(value)
        if hasattr(kind, "__del__"):
            return self._keep(value, value)
        is_plain = (
            kind.__reduce_ex__ is object.__reduce_ex__
            and kind.__reduce__ is object.__reduce__
            and not hasattr(kind, "__deepcopy__")
        )
        # an object of Python; others, such as locks, can be made by their type alone
        if is_plain and (hasattr(value, "__dict__") or _slots(kind)):
            made = self._keep(value, object.__new__(kind))
            self._fill_attributes(value, made)
            return made
        known: Any = ChainMap({}, self._known)
        return self._keep(value, copy.deepcopy(value, known))

    def _fill_attributes(self, value: Any, made: Any) -> None:
        for key, item in list(getattr(value, "__dict__", {}).items()):
            made.__dict__[key] = self.copy(item)
        for name in _slots(type(value)):
            if hasattr(value, name):
                object.__setattr__(made, name, self.copy(getattr(value, name)))

    def _begin(self, module: nn.Module) -> None:
        """Makes the copy of a module, without its attributes."""
        if id(module) in self._known:
            return
        if isinstance(module, torch.jit.ScriptModule):
            self._keep(module, module)
            return
        self._keep(module, object.__new__(self._kind(module)))
        self._empty.add(id(module))

    def _kind(self, module: nn.Module) -> type:
        """The class of a module's copy."""
        return type(module)

    def _is_left_out(self, name: str) -> bool:
        """Whether a copy of a module lacks an attribute."""
        return name == "_compiled_call_impl"

    def _fill(self, module: nn.Module, made: nn.Module) -> None:
        """Gives a copy of a module its attributes."""
        own = module.__dict__
        attributes = made.__dict__
        for name in own.keys() & {*HOOKS}:
            # a handle that the module has is to remove a hook of the copy
            attributes[name] = self._keep(own[name], type(own[name])())
        for name, hook in kept_hooks(module).items():
            attributes["_forward_pre_hooks"][name] = self.copy(hook)
            if name in own["_forward_pre_hooks_with_kwargs"]:
                attributes["_forward_pre_hooks_with_kwargs"][name] = True
        computed = computed_weights(module)
        for name, value in list(own.items()):
            if name in attributes or self._is_left_out(name):
                continue
            # the hook makes it again
            is_computed = name in computed
            attributes[name] = value.detach() if is_computed else self.copy(value)


def cloned(tensor: Tensor) -> Tensor:
    """A tensor of the same values that belongs to no autograd graph."""
    return tensor.detach().clone().requires_grad_(tensor.requires_grad)


def _lazy(tensor: Any) -> Tensor:
    """Another parameter or buffer that has no shape yet."""
    if isinstance(tensor, UninitializedBuffer):
        kind: Any = UninitializedBuffer
        return kind(tensor.requires_grad, device=tensor.device, dtype=tensor.dtype)
    kind = UninitializedParameter
    return kind(tensor.requires_grad, device=tensor.device, dtype=tensor.dtype)


def kept_hooks(module: nn.Module) -> dict[int, Any]:
    """The forward pre-hooks of a module that compute its weights."""
    hooks = module.__dict__.get("_forward_pre_hooks", {})
    of_torch = {name: hook for name, hook in hooks.items() if _is_of_torch(hook)}
    # users' hooks may compute a weight, too, but mostly log or check
    return of_torch if of_torch or not computed_weights(module) else dict(hooks)


def _is_of_torch(hook: Any) -> bool:
    """Whether a hook is that of weight_norm and its like, or of a lazy module."""
    lazy: Any = LazyModuleMixin
    if getattr(hook, "__func__", None) is lazy._infer_parameters:
        return True
    return type(hook).__module__.startswith(OF_TORCH)


def computed_weights(module: nn.Module) -> set[str]:
    """Attributes that are made of a parameter of a longer name: `weight` of
    `weight_orig`."""
    found = set()
    for name, value in module.__dict__.items():
        if not isinstance(value, Tensor) or isinstance(value, nn.Parameter):
            continue
        if any(own.startswith(f"{name}_") for own in module._parameters):
            found.add(name)
    return found


def _slots(kind: type) -> list[str]:
    """Attributes that the objects of a class have outside their `__dict__`."""
    found = []
    for parent in kind.__mro__:
        names = vars(parent).get("__slots__", ())
        names = [names] if isinstance(names, str) else names
        for name in names:
            if name in ("__dict__", "__weakref__"):
                continue
            is_private = name.startswith("__") and not name.endswith("__")
            stem = parent.__name__.lstrip("_")
            found.append(f"_{stem}{name}" if is_private else name)
    return found
