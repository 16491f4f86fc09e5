"""Functions that stand below those of users, as inside of torch.func.vmap.

They return more than the result, such as the statistics of a norm.
"""

from collections.abc import Callable
from typing import Any

from torch.fx import Node

from ngopt.graph.rules.attention import attention
from ngopt.graph.rules.norms import channel_norm, group_norm, layer_norm
from ngopt.graph.rules.registry import aten, functions, register_layer_rule
from ngopt.graph.tracing.tracer import Tracer


def _first_by(rule: Callable) -> Callable:
    """A rule for the first of several results."""

    def first(tracer: Tracer, call: Node, *args: Any, **kwargs: Any) -> Any:
        others = tracer.unknown(call)[1:]
        return rule(tracer, call, *args, **kwargs), *others

    return first


def _native_group_norm(tracer: Tracer, call: Node, x: Any, *args: Any) -> Any:
    return group_norm(tracer, call, x, tracer.argument(call, "group"))


register_layer_rule(aten.native_layer_norm)(_first_by(layer_norm))
register_layer_rule(aten.native_group_norm)(_first_by(_native_group_norm))
register_layer_rule(aten.native_batch_norm)(_first_by(channel_norm))
register_layer_rule(
    *functions(
        "_scaled_dot_product_flash_attention_for_cpu "
        "_scaled_dot_product_efficient_attention _scaled_dot_product_flash_attention"
    )
)(_first_by(attention))
