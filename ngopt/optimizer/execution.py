"""How steps are executed, which is chosen once, when a rule is bound to a graph."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ngopt.accelerator.soap import AcceleratedSoapRule
from ngopt.distributed.shards import Shards
from ngopt.distributed.soap import ShardedSoapRule
from ngopt.functional import UpdateRule
from ngopt.graph import NeuralGraph
from ngopt.pretrained import LearnedOptimizer
from ngopt.soap.soap import Soap, SoapRule


def bound_rule(
    learned: LearnedOptimizer,
    graph: NeuralGraph,
    params: Sequence[Tensor],
    total_steps: int | None,
    renew_every: int | None,
    dtype: torch.dtype | None,
    shards: Shards | None,
) -> UpdateRule:
    """A learned optimizer as a rule on the graph of an optimizer's parameters.

    SOAP is executed in several processes, on accelerators, or by plain tensor
    functions on a CPU.

    Args:
        params: in the graph; a metanet computes on the device of the first one.
        renew_every: see `SoapRule`.
        dtype: to compute in; None: the rule's own choice.
        shards: the processes that share the parameters; None: one process.
    """
    if not isinstance(learned.base, Soap):
        device = params[0].device
        return learned.bind(graph, total_steps, device=device, dtype=dtype)
    options: dict[str, Any] = {"compute_dtype": dtype, "renew_every": renew_every}
    if shards is not None:
        options["shards"] = shards
        return ShardedSoapRule(learned.base, graph, total_steps, **options)
    is_on_host = all(p.is_cpu for p in params)
    rule = SoapRule if is_on_host else AcceleratedSoapRule
    return rule(learned.base, graph, total_steps, **options)
