"""Exports a module to a graph of torch functions (`torch.export`), with an example input or a guessed one."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

BATCH = 2  # rows of an example that are used: norms in training mode need more than one


def export_module(model: nn.Module, example_input: Any) -> ExportedProgram:
    """The functions that a module applies to an example input (a tensor or a tuple of arguments)."""
    args = example_input if isinstance(example_input, tuple) else (example_input,)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return torch.export.export(model, tuple(_few_rows(a) for a in args))
        except Exception:
            return torch.export.export(model, args)


def _few_rows(value: Any) -> Any:
    return value[:BATCH] if isinstance(value, Tensor) and value.dim() > 0 and len(value) > BATCH else value
