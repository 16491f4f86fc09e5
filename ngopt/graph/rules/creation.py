"""Functions that make a constant of the shape of another tensor."""

from __future__ import annotations

from typing import Any

import torch
from torch.fx import Node

from ngopt.graph.rules.registry import functions, register_rule
from ngopt.graph.tracing.capture import packet_of
from ngopt.graph.tracing.tracer import Tracer
from ngopt.graph.tracing.values import Value

KNOWN_CREATIONS = functions(
    "new_zeros new_ones new_full zeros_like ones_like full_like"
)
RANDOM_CREATIONS = functions("new_empty rand_like randn_like empty_like")


@register_rule(*KNOWN_CREATIONS, *RANDOM_CREATIONS)
def creation(tracer: Tracer, call: Node, like: Value, *args, **kwargs) -> Value:
    """Random numbers are represented as zeros, the same for all neurons."""
    # the result depends on the shape of the input alone: zeros stay 0
    tracer.input_dependent.discard(call)
    (source,) = call.all_input_nodes[:1]
    dtype = source.meta["val"].dtype
    zeros = torch.zeros(tuple(like.shape), dtype=dtype)
    function: Any = call.target
    value = function(zeros, *args, **kwargs)
    is_known = packet_of(call) in KNOWN_CREATIONS
    return value if is_known else torch.zeros_like(value)
