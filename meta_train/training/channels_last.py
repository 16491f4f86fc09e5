"""The channels-last memory format, in which a CPU computes convolutions faster."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map


def channels_last(values: Any) -> Any:
    """A pytree with its 4-dimensional tensors in channels-last format.

    Convolutions of most problems then take .65 to .95 of the time.
    """
    return tree_map(_channels_last, values)


class ChannelsLast(TorchFunctionMode):
    """Computes adaptive average pooling as a sum, to keep gradients in channels-last.

    The gradient of torch's pooling is contiguous, and operations on both formats take
    ten times as long.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if func is F.adaptive_avg_pool2d and args[1] in (1, (1, 1)):
            maps = args[0]
            return maps.sum((-2, -1), keepdim=True) / maps.shape[-2:].numel()
        return func(*args, **(kwargs or {}))


def _channels_last(x: Any) -> Any:
    if isinstance(x, Tensor) and x.dim() == 4:
        return x.to(memory_format=torch.channels_last)
    return x
