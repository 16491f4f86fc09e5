"""Networks whose parameters are sharded among processes."""

import sys
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from ngopt.graph.tracing.copies import Copier
from ngopt.shard_layout import are_divided, is_dtensor

# Attribute of the flat parameters of FullyShardedDataParallel.
FLATTENED = "_fsdp_flattened"
# Prefix of the attributes in which `fully_shard` keeps its state of a module.
STATE = "__composable_api_state_key"

EXPECTED = (
    "expected whole parameters, or those that fully_shard has sharded; got flat "
    "parameters of FullyShardedDataParallel, which have no matrix shapes. Use "
    "torch.distributed.fsdp.fully_shard(model) in its place."
)


def check_not_flattened(named: Iterable[tuple[str, Tensor]]) -> None:
    """Raises ValueError for a flat parameter of FullyShardedDataParallel."""
    for name, p in named:
        if getattr(p, FLATTENED, False):
            raise ValueError(f"NGOptimizer: '{name}': {EXPECTED}")


def check_no_dtensors(named: Iterable[tuple[str, Any]]) -> None:
    """Raises ValueError for a parameter that is a DTensor."""
    for name, p in named:
        if is_dtensor(p):
            raise ValueError(
                f"NGOptimizer: '{name}': expected a whole tensor, as metanets read the "
                "whole network; got a DTensor. rule='default' trains networks that "
                "fully_shard or parallelize_module has sharded."
            )


def is_sharded(model: nn.Module) -> bool:
    """Whether `fully_shard` or `parallelize_module` has sharded a module.

    Raises ValueError if FullyShardedDataParallel has.
    """
    # not imported: a sharded network implies that the caller has imported it
    fsdp = sys.modules.get("torch.distributed.fsdp")
    if fsdp is not None:
        for module in model.modules():
            if isinstance(module, fsdp.FullyShardedDataParallel):
                raise ValueError(f"{type(model).__name__}: {EXPECTED}")
            if isinstance(module, fsdp.FSDPModule):
                return True
    return are_divided(list(model.parameters()))


def free_gathered() -> None:
    """Frees the copies of whole parameters that `fully_shard` keeps after a forward
    pass without backward: they would not follow what is written into the parameters."""
    fsdp = sys.modules.get("torch.distributed.fsdp")
    states = sys.modules.get("torch.distributed._composable_state")
    for module in list(getattr(states, "_module_state_mapping", ())):
        if fsdp is not None and isinstance(module, fsdp.FSDPModule):
            module.reshard()


def as_whole(model: nn.Module, inputs: Any) -> nn.Module:
    """A copy of a sharded module as it was before, to be traced with `inputs`.

    It has the classes, names and shapes of the whole module and none of its hooks,
    which would gather parameters. Each parameter is one number expanded to its shape,
    on the device of the inputs.
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
        zero = torch.zeros((), dtype=value.dtype, device=self._device or value.device)
        whole = zero.expand(value.shape)
        if isinstance(value, nn.Parameter):
            return nn.Parameter(whole, value.requires_grad)
        return whole

    def _kind(self, module: nn.Module) -> type:
        kind = type(module)
        place = getattr(kind, "_orig_cls_mro_index", None)  # of an FSDPModule
        return kind if place is None else kind.__mro__[place]

    def _is_left_out(self, name: str) -> bool:
        return name.startswith(STATE) or super()._is_left_out(name)
