"""MessageStatistics along edges, a scale and shift of what both ends bring,
and their statistics for both ends.

One autograd function with a backward pass of its own: where autograd goes step by step,
the bool masks of its minima and maxima alone take as long as all matrix products of a
layer.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from ngopt.metanets.layers.aggregation import TO_SOURCES, TO_TARGETS, Axes


class Statistics(NamedTuple):
    """Of messages (groups, n_target, n_source, tiles, *batch, width) over two axes,
    which stay with length 1."""

    mean: Tensor
    var: Tensor
    low: Tensor
    high: Tensor

    @classmethod
    def of(cls, messages: Tensor, axes: Axes) -> Statistics:
        if messages.is_cpu:
            mean = messages.mean(axes, keepdim=True)
            # several times as fast as torch.var_mean over inner axes
            var = (messages - mean).square().mean(axes, keepdim=True)
        else:
            var, mean = torch.var_mean(messages, axes, correction=0, keepdim=True)
        low, high = extrema(messages, axes)
        return cls(mean, var, low, high)

    def pulled_back(self, messages: Tensor, axes: Axes, gradient: Statistics) -> Tensor:
        """The gradient of the messages. All messages that attain an extremum share its
        gradient."""
        count = messages.shape[axes[0]] * messages.shape[axes[1]]
        above = (messages - self.low).sign()
        below = (self.high - messages).sign()
        low = gradient.low / (count - above.sum(axes, keepdim=True))
        high = gradient.high / (count - below.sum(axes, keepdim=True))
        slope = gradient.var * (2 / count)
        constant = gradient.mean / count - slope * self.mean + low + high
        total = torch.addcmul(constant, slope, messages)
        total = torch.addcmul(total, low, above, value=-1)
        return torch.addcmul(total, high, below, value=-1)


def extrema(messages: Tensor, axes: Axes) -> tuple[Tensor, Tensor]:
    """Minima and maxima over two axes, which stay with length 1."""
    if messages.is_cpu or messages.shape[axes[1]] > 1:
        low = messages.amin(axes, keepdim=True)
        return low, messages.amax(axes, keepdim=True)
    low, high = torch.aminmax(messages, dim=axes[0], keepdim=True)  # reads them once
    return low, high


class FiLMStatistics(torch.autograd.Function):
    """Statistics of messages m = scale * (target + source) + shift (Kofinas et al.
    2024, Eq. 4).

    Shapes: scale, shift (groups, n_target, n_source, tiles, *batch, width), target
    (groups, n_target, 1, 1, *batch, width), source (groups, 1, n_source, 1, *batch,
    width) -> the fields of `Statistics`. With the batch inside, broadcasts and
    reductions run over long rows.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(
        scale: Tensor,
        shift: Tensor,
        target: Tensor,
        source: Tensor,
        axes: Axes,
    ) -> tuple[Tensor, ...]:
        messages = torch.addcmul(shift, scale, target + source)
        return tuple(Statistics.of(messages, axes))

    @staticmethod
    def setup_context(
        ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]
    ) -> None:
        *tensors, ctx.axes = inputs
        ctx.save_for_backward(*tensors, *output)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        scale, shift, target, source, *statistics = ctx.saved_tensors
        sums = target + source
        messages = torch.addcmul(shift, scale, sums)
        gradient = Statistics(*statistics).pulled_back(
            messages, ctx.axes, Statistics(*gradients)
        )
        to_sums = gradient * scale
        to_target = to_sums.sum(TO_TARGETS, keepdim=True)
        to_source = to_sums.sum(TO_SOURCES, keepdim=True)
        return gradient * sums, gradient, to_target, to_source, None
