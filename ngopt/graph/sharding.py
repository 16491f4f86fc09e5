"""Networks that are divided among processes, each of which holds parts of them."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn

# What FullyShardedDataParallel sets on the flat pieces that it makes of parameters.
FLATTENED = "_fsdp_flattened"

# Modules of torch are looked up and not imported: who divides a network has imported them.


def is_sharded(model: nn.Module) -> bool:
    """Whether a module gathers its parameters when it runs, by `fully_shard` or its forerunner.

    Such a module must see all its forward passes: nothing else may run or trace it.
    """
    fsdp = sys.modules.get("torch.distributed.fsdp")
    if fsdp is None:
        return False
    kinds = fsdp.FSDPModule, fsdp.FullyShardedDataParallel
    return any(isinstance(module, kinds) for module in model.modules())


def are_pieces(params: Iterable[Tensor]) -> bool:
    """Whether parameters are flat pieces of those of a network."""
    return any(getattr(p, FLATTENED, False) for p in params)


def check_whole(named: Iterable[tuple[str, Any]]) -> None:
    """Raises ValueError for a parameter that `fully_shard` has divided among processes."""
    distributed = sys.modules.get("torch.distributed.tensor")
    if distributed is None:
        return
    for name, p in named:
        if isinstance(p, distributed.DTensor):
            raise ValueError(
                f"NGOptimizer: '{name}': expected a whole tensor, or a piece that "
                "FullyShardedDataParallel made; got a DTensor"
            )
