"""FiLM messages along edges, and their statistics for both ends.

A message is the sum of a term of each end, with the scale and shift of the edge.

One autograd function with a backward pass of its own: where autograd goes step by step,
the bool masks of its minima and maxima alone take as long as all matrix products of a
layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ngopt.metanets.layers.aggregation import TO_SOURCES, TO_TARGETS, Axes


def statistics(messages: Tensor, axes: Axes) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Mean, variance, minimum and maximum of messages (groups, n_target, n_source,
    tiles, *batch, width) over two axes, which stay with length 1."""
    if messages.is_cpu:
        mean = messages.mean(axes, keepdim=True)
        # several times as fast as torch.var_mean over inner axes
        var = (messages - mean).square().mean(axes, keepdim=True)
    else:
        var, mean = torch.var_mean(messages, axes, correction=0, keepdim=True)
    if messages.is_cpu or messages.shape[axes[1]] > 1:
        low = messages.amin(axes, keepdim=True)
        high = messages.amax(axes, keepdim=True)
    else:  # reads them once
        low, high = torch.aminmax(messages, dim=axes[0], keepdim=True)
    return mean, var, low, high


def gradient_of_messages(
    messages: Tensor, axes: Axes, found: Sequence[Tensor], gradients: Sequence[Tensor]
) -> Tensor:
    """The gradient of the messages from those of their `statistics`, which are `found`.

    All messages that attain an extremum share its gradient.
    """
    mean, _, least, greatest = found
    to_mean, to_var, to_low, to_high = gradients
    count = messages.shape[axes[0]] * messages.shape[axes[1]]
    above = (messages - least).sign()
    below = (greatest - messages).sign()
    low = to_low / (count - above.sum(axes, keepdim=True))
    high = to_high / (count - below.sum(axes, keepdim=True))
    slope = to_var * (2 / count)
    constant = to_mean / count - slope * mean + low + high
    total = torch.addcmul(constant, slope, messages)
    total = torch.addcmul(total, low, above, value=-1)
    return torch.addcmul(total, high, below, value=-1)


class FiLMStatistics(torch.autograd.Function):
    """Statistics of messages m = scale * (target + source) + shift (Kofinas et al.
    2024, Eq. 4).

    Shapes: scale, shift (groups, n_target, n_source, tiles, *batch, width), target
    (groups, n_target, 1, 1, *batch, width), source (groups, 1, n_source, 1, *batch,
    width) -> their `statistics`. With the batch inside, broadcasts and
    reductions run over long rows.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(
        scale: Tensor, shift: Tensor, target: Tensor, source: Tensor, axes: Axes
    ) -> tuple[Tensor, ...]:
        messages = torch.addcmul(shift, scale, target + source)
        return statistics(messages, axes)

    @staticmethod
    def setup_context(
        ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]
    ) -> None:
        *tensors, ctx.axes = inputs
        ctx.save_for_backward(*tensors, *output)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        scale, shift, target, source, *found = ctx.saved_tensors
        sums = target + source
        messages = torch.addcmul(shift, scale, sums)
        gradient = gradient_of_messages(messages, ctx.axes, found, gradients)
        to_sums = gradient * scale
        to_target = to_sums.sum(TO_TARGETS, keepdim=True)
        to_source = to_sums.sum(TO_SOURCES, keepdim=True)
        return gradient * sums, gradient, to_target, to_source, None
