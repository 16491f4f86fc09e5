"""NGOptimizer by name in timm: `create_optimizer_v2(model, opt="ngopt")`."""

from typing import Any

from ngopt.optimizer import NGOptimizer


def register(name: str = "ngopt") -> None:
    """Adds NGOptimizer to timm's registry of optimizers under a name.

    timm passes a weight decay of 0 unless one is set. That becomes the default's own
    weight decay here; any other number stays.

    Raises ImportError without timm.
    """
    from timm.optim._optim_factory import OptimInfo, default_registry

    description = "SOAP with one setting, without a learning rate"
    make: Any = _make  # annotated as a class, but only called
    info = OptimInfo(name, make, description=description, has_eps=False)
    default_registry.register(info)


def _make(params: Any, weight_decay: float | None = None, **settings: Any) -> Any:
    params = [dict(entry) if isinstance(entry, dict) else entry for entry in params]
    groups = [entry for entry in params if isinstance(entry, dict)]
    if not weight_decay and all(g.get("weight_decay", 0.0) == 0.0 for g in groups):
        weight_decay = None
        for group in groups:
            group.pop("weight_decay", None)
    return NGOptimizer(params, weight_decay=weight_decay, **settings)
