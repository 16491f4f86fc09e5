"""How steps are executed, which is chosen once, when a rule is bound to a graph."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ngopt.accelerator.soap import AcceleratedSoapRule
from ngopt.distributed.shards import Shards
from ngopt.distributed.soap import ShardedSoapRule
from ngopt.functional import BoundRule, UpdateRule
from ngopt.graph import NeuralGraph
from ngopt.soap.soap import Soap, SoapRule


def bound_rule(
    rule: UpdateRule,
    graph: NeuralGraph,
    params: Sequence[Tensor],
    total_steps: int | None,
    precondition_frequency: int | None,
    dtype: torch.dtype | None,
    shards: Shards | None,
) -> BoundRule:
    """A rule on the graph of an optimizer's parameters.

    SOAP is executed in several processes, on accelerators, or by plain tensor
    functions on a CPU.

    Args:
        params: in the graph; other rules compute on the device of the first one.
        precondition_frequency: see `SoapRule`.
        dtype: to compute in; None: the rule's own choice.
        shards: the processes that share the parameters; None: one process.
    """
    if not isinstance(rule, Soap):
        return rule.bind(graph, total_steps, device=params[0].device, dtype=dtype)
    options: dict[str, Any] = {
        "compute_dtype": dtype,
        "precondition_frequency": precondition_frequency,
    }
    if shards is not None:
        return ShardedSoapRule(rule, graph, total_steps, **options, shards=shards)
    is_on_host = all(p.is_cpu for p in params)
    kind = SoapRule if is_on_host else AcceleratedSoapRule
    return kind(rule, graph, total_steps, **options)
