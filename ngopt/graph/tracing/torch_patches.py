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
from torch.fx.experimental.proxy_tensor import ProxyTorchDispatchMode

_record = ProxyTorchDispatchMode.__torch_dispatch__
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
        (export, "print", _ignore),  # of the graph of an export that fails
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
    mode.pre_dispatch = False
    _C._push_on_torch_dispatch_stack(mode)
    try:
        return function(*args, **(kwargs or {}))
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
    return lambda: get_ident() in _exporting_threads or flag()


def _ignore(*_: Any, **__: Any) -> None:
    pass
