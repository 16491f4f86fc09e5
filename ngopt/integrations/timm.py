"""NGOptimizer by name in timm: `create_optimizer_v2(model, opt="ngopt")`.

In timm's own script: `python -m ngopt.integrations.timm train.py --opt ngopt ...`.
"""

import runpy
import sys
from pathlib import Path
from typing import Any

from ngopt.optimizer import NGOptimizer

UNSET_DECAYS = 0.0, 2e-5  # defaults of `create_optimizer_v2` and of train.py


def register(name: str = "ngopt") -> None:
    """Adds NGOptimizer to timm's registry of optimizers under a name.

    timm passes a weight decay of 0, and its train.py one of 2e-5, unless one is set.
    That becomes the default's own weight decay here; any other number stays.

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
    decays = {group.get("weight_decay", 0.0) for group in groups}
    if decays.union([weight_decay or 0.0]).issubset(UNSET_DECAYS):
        weight_decay = None
        for group in groups:
            group.pop("weight_decay", None)
    return NGOptimizer(params, weight_decay=weight_decay, **settings)


if __name__ == "__main__":
    if not Path(*sys.argv[1:2]).is_file():
        sys.exit("usage: python -m ngopt.integrations.timm train.py --opt ngopt ...")
    register()
    sys.argv = sys.argv[1:]
    sys.path.insert(0, str(Path(sys.argv[0]).parent))
    runpy.run_path(sys.argv[0], run_name="__main__")
