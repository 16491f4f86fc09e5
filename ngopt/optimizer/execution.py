"""How steps are executed, which is chosen once, when a rule is bound to a graph."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ngopt.accelerator.soap import AcceleratedSoapRule
from ngopt.distributed.shards import Shards
from ngopt.distributed.soap import ShardedSoapRule
from ngopt.functional import BoundRule, UpdateRule
from ngopt.graph import NeuralGraph
from ngopt.soap.soap import Soap, SoapRule


class Settings(NamedTuple):
    """What a rule is bound with; None: the rule's own choice.

    precondition_frequency, factor_rows: see `SoapRule`. device: of the first parameter,
    on which other rules than SOAP compute. dtype: to compute in.
    """

    total_steps: int | None
    precondition_frequency: int | None
    factor_rows: int | None
    device: torch.device
    dtype: torch.dtype | None


def bound_rule(
    rule: UpdateRule,
    graph: NeuralGraph,
    params: Sequence[Tensor],
    settings: Settings,
    shards: Shards | None,
) -> BoundRule:
    """A rule on the graph of an optimizer's parameters.

    SOAP is executed in several processes, on accelerators, or by plain tensor
    functions on a CPU.

    Args:
        params: in the graph.
        shards: the processes that share the parameters; None: one process.

    Raises ValueError for several processes and a rule that is not SOAP.
    """
    total_steps, precondition_frequency, factor_rows, device, dtype = settings
    if not isinstance(rule, Soap):
        if shards is not None:
            raise ValueError(
                "rule: expected SOAP, the only one that several processes can divide; "
                f"got {type(rule).__name__} with shards=True. Set shards to False."
            )
        return rule.bind(graph, total_steps, device=device, dtype=dtype)
    is_on_host = all(p.is_cpu for p in params)
    if not is_on_host:
        factor_rows = factor_rows or rule.unlimited_rows
    options: dict[str, Any] = {
        "compute_dtype": dtype,
        "precondition_frequency": precondition_frequency,
        "factor_rows": factor_rows,
    }
    if shards is not None:
        return ShardedSoapRule(rule, graph, total_steps, **options, shards=shards)
    kind = SoapRule if is_on_host else AcceleratedSoapRule
    return kind(rule, graph, total_steps, **options)
