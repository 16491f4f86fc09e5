"""Parameters of networks that are divided among processes, each of which holds parts of them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor

from ngopt.distributed.pieces import is_dtensor

# What FullyShardedDataParallel sets on the flat pieces that it makes of parameters.
FLATTENED = "_fsdp_flattened"


def are_pieces(params: Iterable[Tensor]) -> bool:
    """Whether parameters are flat pieces of those of a network."""
    return any(getattr(p, FLATTENED, False) for p in params)


def check_whole(named: Iterable[tuple[str, Any]]) -> None:
    """Raises ValueError for a parameter that is divided among processes, a DTensor."""
    for name, p in named:
        if is_dtensor(p):
            raise ValueError(
                f"NGOptimizer: '{name}': expected a whole tensor, as metanets see the whole "
                "network; got a DTensor. weights='default' trains networks that fully_shard or "
                "parallelize_module has divided."
            )
