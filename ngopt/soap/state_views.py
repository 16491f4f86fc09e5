"""State as programs read and edit it."""

from collections import OrderedDict
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor

# By which programs cut the state of points, or append to it.
EDITS_OF_ROWS = "__getitem__", "index_select", "cat", "concat"


class StateView(Tensor):
    """A view of a packed tensor, which a record stores.

    Results are plain tensors. A saved view takes its own bytes, not those of the packed
    tensor. Where a program edits rows, state that has none stays as it is.
    """

    @classmethod
    def __torch_function__(
        cls, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if function is Tensor.__setitem__ and isinstance(args[1], Tensor | list):
            return None  # it might set what is no row
        if function is Tensor.zero_:
            raise ValueError(
                "NGOptimizer: expected eigenbases that are not zero; got zero_() of "
                "state. To start anew, use optimizer.state.pop(parameter)."
            )
        with torch._C.DisableTorchFunctionSubclass():
            try:
                return function(*args, **kwargs or {})
            except (IndexError, RuntimeError):
                is_one = function is Tensor.__getitem__ and isinstance(args[1], int)
                if function.__name__ not in EDITS_OF_ROWS or is_one:
                    raise
                values = [args[0]] if isinstance(args[0], Tensor) else args[0]
                return next(x for x in values if isinstance(x, cls))

    def __reduce_ex__(self, protocol: Any) -> Any:
        return plain(self).clone().__reduce_ex__(protocol)

    def __deepcopy__(self, memo: Any) -> Tensor:
        return deepcopy(plain(self), memo)


class ParameterState(dict):
    """A record of an optimizer; saved and copied as torch's unpickler allows."""

    def __missing__(self, key: Any) -> Any:
        raise KeyError(
            f"NGOptimizer: the state of a parameter has no '{key}', but {[*self]}. To "
            "cut or copy rows with their state, use optimizer.select_rows."
        )

    def __reduce__(self) -> Any:
        return OrderedDict, (), None, None, iter(self.items())


def plain(value: Any) -> Any:
    """Records and views as torch's own dicts and tensors; other values as they are."""
    if isinstance(value, ParameterState):
        return {key: plain(x) for key, x in value.items()}
    return value.as_subclass(Tensor) if isinstance(value, StateView) else value
