"""Pooling and resampling of feature maps."""

from __future__ import annotations

from re import search

import torch
from torch import Tensor
from torch.fx import Node

from ngopt.graph.rules.convolutions import unify_channel_places
from ngopt.graph.rules.pointwise import note_function
from ngopt.graph.rules.registry import functions, register_rule
from ngopt.graph.tracing.tracer import Tracer
from ngopt.graph.tracing.values import Neurons, Unknown, Value

POOLS = functions("""
adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d adaptive_max_pool1d
adaptive_max_pool2d adaptive_max_pool3d avg_pool1d avg_pool2d avg_pool3d max_pool1d
max_pool2d max_pool3d max_pool2d_with_indices upsample_nearest1d upsample_nearest2d
upsample_nearest3d upsample_bilinear2d upsample_bicubic2d lp_pool2d _adaptive_avg_pool2d
upsample_linear1d upsample_trilinear3d _upsample_bilinear2d_aa
""")


@register_rule(*POOLS)
def pool(tracer: Tracer, call: Node, x: Value, *_, **__) -> Value:
    """The channels stay."""
    values = call.meta["val"]
    if isinstance(values, Tensor):
        return _pooled(tracer, call, x, values.shape)
    first, *others = (value.shape for value in values)
    return (_pooled(tracer, call, x, first), *map(Unknown, others))


def _pooled(tracer: Tracer, call: Node, x: Value, shape: torch.Size) -> Value:
    if not isinstance(x, Neurons):
        return Unknown(shape)
    # a single map (channels, *space) has no batch, but the function of its space
    found = search(r"(\d)d", str(call.target))  # 2 for `max_pool2d`
    assert found is not None
    channel = x.labels.dim() - int(found[1]) - 1
    # behind a pixel shuffle a window contains several neurons of a channel
    unify_channel_places(tracer, x.labels, channel)
    channels = tracer.unify_places(x.labels, channel)
    if channels is None:
        return Unknown(shape)
    # other channels may have another pool, or none
    note_function(tracer, call, channels)
    space = [1] * (len(shape) - channel - 1)
    labels = channels.reshape(-1, *space)
    return Neurons(labels.expand(shape))
