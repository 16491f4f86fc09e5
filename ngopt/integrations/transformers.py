"""NGOptimizer in the Trainer of Hugging Face transformers."""

from __future__ import annotations

from typing import Any

from torch import nn

from ngopt.optimizer import NGOptimizer


def trainer_arguments(
    model: nn.Module, **settings: Any
) -> tuple[type[NGOptimizer], dict[str, Any]]:
    """The value of Trainer's `optimizer_cls_and_kwargs`.

    All trainable parameters form one group with the default's own weight decay. The
    Trainer alone would set the decay to that of its arguments, 0 unless given.

    settings: other settings of NGOptimizer, such as `total_steps`. `model=` is not
        among them, because the Trainer would take it for parameters.
    """
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    return NGOptimizer, {"params": named, **settings}
