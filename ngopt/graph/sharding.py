"""Networks that are divided among processes, each of which holds parts of the
parameters."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from ngopt.graph.tracing.copies import Copier
from ngopt.shard_layout import are_divided, is_dtensor

# What FullyShardedDataParallel sets on the flat pieces that it makes of parameters.
FLATTENED = "_fsdp_flattened"
# How the attributes begin in which a module has what `fully_shard` knows of it.
STATE = "__composable_api_state_key"

REMEDY = (
    "expected whole parameters or those that fully_shard has divided; got flat pieces, which "
    "FullyShardedDataParallel makes of them and which show no matrix. Use "
    "torch.distributed.fsdp.fully_shard(model) in its place."
)


def check_no_pieces(named: Iterable[tuple[str, Tensor]]) -> None:
    """Raises ValueError for a flat piece of parameters."""
    for name, p in named:
        if getattr(p, FLATTENED, False):
            raise ValueError(f"NGOptimizer: '{name}': {REMEDY}")


def check_whole(named: Iterable[tuple[str, Any]]) -> None:
    """Raises ValueError for a parameter that is divided among processes, a DTensor."""
    for name, p in named:
        if is_dtensor(p):
            raise ValueError(
                f"NGOptimizer: '{name}': expected a whole tensor, as metanets see the whole "
                "network; got a DTensor. weights='default' trains networks that fully_shard or "
                "parallelize_module has divided."
            )


def is_sharded(model: nn.Module) -> bool:
    """Whether processes divide a module's parameters, by `fully_shard` or
    `parallelize_module`.

    Raises ValueError if FullyShardedDataParallel does.
    """
    # looked up, not imported: who divides a network has imported it
    fsdp = sys.modules.get("torch.distributed.fsdp")
    if fsdp is not None:
        for module in model.modules():
            if isinstance(module, fsdp.FullyShardedDataParallel):
                raise ValueError(f"{type(model).__name__}: {REMEDY}")
            if isinstance(module, fsdp.FSDPModule):
                return True
    return are_divided(list(model.parameters()))


def as_whole(model: nn.Module, inputs: Any) -> nn.Module:
    """A copy of a divided module as it was before, to be traced with `inputs`.

    It has the classes, names and shapes of the whole module and none of the hooks,
    which would gather parameters. A parameter has one number for all of its elements,
    and so no memory; it is where the inputs are.
    """
    devices = [x.device for x in tree_leaves(inputs) if isinstance(x, Tensor)]
    return _WholeCopier(devices[0] if devices else None).module(model)


class _WholeCopier(Copier):
    def __init__(self, device: torch.device | None):
        super().__init__()
        self._device = device

    def _copied(self, value: Any) -> Any:
        if not is_dtensor(value):
            return super()._copied(value)
        one = torch.zeros((), dtype=value.dtype, device=self._device or value.device)
        whole = one.expand(value.shape)
        if isinstance(value, nn.Parameter):
            whole = nn.Parameter(whole, value.requires_grad)
        return self.keep(value, whole)

    def _kind(self, module: nn.Module) -> type:
        kind = type(module)
        place = getattr(kind, "_orig_cls_mro_index", None)  # of an FSDPModule
        return kind if place is None else kind.__mro__[place]

    def _is_left_out(self, name: str) -> bool:
        return name.startswith(STATE) or super()._is_left_out(name)
