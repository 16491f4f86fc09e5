"""Parameters of networks that are divided among processes, each of which holds parts of them."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any

from torch import Tensor

# What FullyShardedDataParallel sets on the flat pieces that it makes of parameters.
FLATTENED = "_fsdp_flattened"


def are_pieces(params: Iterable[Tensor]) -> bool:
    """Whether parameters are flat pieces of those of a network."""
    return any(getattr(p, FLATTENED, False) for p in params)


def check_whole(named: Iterable[tuple[str, Any]]) -> None:
    """Raises ValueError for a parameter that `fully_shard` has divided among processes."""
    # looked up, not imported: who divides a network has imported it
    distributed = sys.modules.get("torch.distributed.tensor")
    if distributed is None:
        return
    for name, p in named:
        if isinstance(p, distributed.DTensor):
            raise ValueError(
                f"NGOptimizer: '{name}': expected a whole tensor, or a piece that "
                "FullyShardedDataParallel made; got a DTensor"
            )
