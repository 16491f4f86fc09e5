"""Changes of torch while a module is captured.

Functions inside of a transform of `torch.func`, such as vmap, are recorded as this
applies them: a linear layer of one row is a product with all rows. The flags of an
export hold in its own thread alone: others do not take the branches of compilers.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from importlib import import_module
from threading import get_ident
from typing import Any
from unittest.mock import patch

import torch
from torch import _C
from torch._C._functorch import peek_interpreter_stack
from torch._functorch.autograd_function import custom_function_call
from torch.fx.experimental.proxy_tensor import (
    ProxyTorchDispatchMode,
    _ModuleStackTracer,
)

_record = ProxyTorchDispatchMode.__torch_dispatch__
_traced_call, _traced_getattr = (
    _ModuleStackTracer.call_module,
    _ModuleStackTracer.getattr,
)
_exporting_threads: set[int] = set()


@contextmanager
def patched_torch() -> Iterator[None]:
    """A context with these changes."""
    export: Any = import_module("torch.export._trace")  # takes a second
    compiler = torch.compiler
    patches = (
        (ProxyTorchDispatchMode, "__torch_dispatch__", _record_below_transforms),
        # else functions that enter a transform would be recorded
        (
            export.torch._export.utils,
            "_maybe_find_pre_dispatch_tf_mode_for_export",
            _ignore,
        ),
        (export, "_compiling_state_context", _exporting),
        (compiler, "is_compiling", _or_exporting(compiler.is_compiling)),
        (compiler, "is_exporting", _or_exporting(compiler.is_exporting)),
        (_ModuleStackTracer, "call_module", _call_module),
        (_ModuleStackTracer, "getattr", _getattr),
        (export, "print", _ignore),  # of the graph of an export that fails
        (custom_function_call, "python_key_table", AUTOGRAD_FUNCTIONS),
    )
    with ExitStack() as patched:
        for owner, name, value in patches:
            patched.enter_context(patch.object(owner, name, value, create=True))
        yield


def _record_below_transforms(
    mode: Any,
    function: Any,
    types: Sequence[type],
    args: tuple = (),
    kwargs: Any = None,
) -> Any:
    """Records a function; if a transform is active, what this makes of the function."""
    if not mode.pre_dispatch or peek_interpreter_stack() is None:
        return _record(mode, function, types, args, kwargs)
    return _call_below(mode, function, *args, **(kwargs or {}))


def _call_below(mode: Any, function: Callable, *args: Any, **kwargs: Any) -> Any:
    """Calls a function while the mode records below transforms and autograd."""
    mode.pre_dispatch = False
    _C._push_on_torch_dispatch_stack(mode)
    try:
        return function(*args, **kwargs)
    finally:
        _C._pop_torch_dispatch_stack(mode._mode_key)
        mode.pre_dispatch = True


AUTOGRAD_FUNCTIONS = {
    ProxyTorchDispatchMode: lambda mode, *args: _call_below(
        mode, custom_function_call, *args
    )
}
"""How an autograd.Function inside of a transform is recorded."""


@contextmanager
def _exporting() -> Iterator[None]:
    _exporting_threads.add(get_ident())
    try:
        yield
    finally:
        _exporting_threads.discard(get_ident())


def _call_module(
    tracer: _ModuleStackTracer, module: Any, forward: Callable, args: Any, kwargs: Any
) -> Any:
    """Modules that other threads call are none of the module that is exported."""
    if get_ident() not in _exporting_threads:
        return forward(*args, **kwargs)
    return _traced_call(tracer, module, forward, args, kwargs)


def _getattr(tracer: _ModuleStackTracer, name: str, value: Any, cache: Any) -> Any:
    if get_ident() not in _exporting_threads:
        return value
    return _traced_getattr(tracer, name, value, cache)


def _or_exporting(flag: Callable[[], bool]) -> Callable[[], bool]:
    return lambda: get_ident() in _exporting_threads or flag()


def _ignore(*_: Any, **__: Any) -> None:
    pass
