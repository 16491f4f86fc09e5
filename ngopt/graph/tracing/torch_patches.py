"""Changes of torch while a module is captured.

Functions inside of a transform of `torch.func`, such as vmap, are recorded as this
applies them: a linear layer of one row is a product with all rows. An export concerns
its own thread alone: others do not take the branches of compilers.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from threading import get_ident
from typing import Any
from unittest.mock import patch

import torch
from torch import _C
from torch._C._functorch import peek_interpreter_stack
from torch._functorch.autograd_function import custom_function_call
from torch.fx.experimental import proxy_tensor
from torch.fx.experimental.proxy_tensor import ProxyTorchDispatchMode as Recorder

_record = Recorder.__torch_dispatch__
_exporting_threads: set[int] = set()


@contextmanager
def patched_torch() -> Iterator[None]:
    """A context with these changes."""
    from torch.export import _trace  # takes a second

    export: Any = _trace
    compiler, utils = torch.compiler, export.torch._export.utils
    # replaces modules that are attributes of others, which those of other threads stay
    tracer: Any = proxy_tensor._ModuleStackTracer
    replaced = tracer.getattr

    def attribute(tracer: Any, name: str, value: Any, *others: Any) -> Any:
        is_exporting = get_ident() in _exporting_threads
        return replaced(tracer, name, value, *others) if is_exporting else value

    functions = {Recorder: lambda mode, *a: _below(mode, custom_function_call, *a)}
    patches = (
        (Recorder, "__torch_dispatch__", _record_below_transforms),
        # an autograd.Function inside of a transform
        (custom_function_call, "python_key_table", functions),
        # else functions that enter transforms are recorded
        (utils, "_maybe_find_pre_dispatch_tf_mode_for_export", _ignore),
        (export, "_compiling_state_context", _exporting),
        (compiler, "is_compiling", _or_exporting(compiler.is_compiling)),
        (compiler, "is_exporting", _or_exporting(compiler.is_exporting)),
        (tracer, "getattr", attribute),
        (export, "print", _ignore),  # of the graph of an export that fails
    )
    with ExitStack() as patched:
        for owner, name, value in patches:
            patched.enter_context(patch.object(owner, name, value, create=True))
        yield


def _record_below_transforms(
    mode: Any, function: Any, types: Any, args: tuple = (), kwargs: Any = None
) -> Any:
    """Records a function; if a transform is active, what this makes of the function."""
    if not mode.pre_dispatch or peek_interpreter_stack() is None:
        return _record(mode, function, types, args, kwargs)
    return _below(mode, function, *args, **(kwargs or {}))


def _below(mode: Any, function: Callable, *args: Any, **kwargs: Any) -> Any:
    """Calls a function; the mode records what is below of transforms and autograd."""
    mode.pre_dispatch = False
    _C._push_on_torch_dispatch_stack(mode)
    try:
        return function(*args, **kwargs)
    finally:
        _C._pop_torch_dispatch_stack(mode._mode_key)
        mode.pre_dispatch = True


@contextmanager
def _exporting() -> Iterator[None]:
    _exporting_threads.add(get_ident())
    try:
        yield
    finally:
        _exporting_threads.discard(get_ident())


def _or_exporting(flag: Callable[[], bool]) -> Callable[[], bool]:
    return lambda: flag() or get_ident() in _exporting_threads


def _ignore(*_: Any, **__: Any) -> None:
    pass
