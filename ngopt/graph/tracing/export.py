"""Exports a module to a graph of torch functions (`torch.export`), with an example input or a guessed one."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

BATCH = 2  # rows of an example that are used: norms in training mode need more than one


def export_module(model: nn.Module, example_input: Any) -> ExportedProgram:
    """The functions that a module applies to an example input (a tensor or a tuple of arguments).

    Of the module's state nothing changes. Raises whatever the module or `torch.export` raises.
    """
    args = example_input if isinstance(example_input, tuple) else (example_input,)
    few = tuple(_few_rows(a) for a in args)
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.simplefilter("ignore")
        try:
            return torch.export.export(model, few)
        except Exception:
            if all(a is b for a, b in zip(args, few, strict=True)):
                raise
            return torch.export.export(model, args)


def _few_rows(value: Any) -> Any:
    return value[:BATCH] if isinstance(value, Tensor) and value.dim() > 0 and len(value) > BATCH else value


def guess_inputs(model: nn.Module) -> Iterator[Tensor]:
    """Inputs that a module might take, judging by the first of its layers that has weights."""
    for module in model.modules():
        if isinstance(module, nn.Embedding):
            yield torch.zeros(BATCH, 8, dtype=torch.long)
        elif isinstance(module, nn.Conv1d | nn.ConvTranspose1d):
            yield from (torch.randn(BATCH, module.in_channels, n) for n in (64, 1024))
        elif isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            yield from (torch.randn(BATCH, module.in_channels, n, n) for n in (224, 32, 28))
        elif isinstance(module, nn.Conv3d | nn.ConvTranspose3d):
            yield torch.randn(BATCH, module.in_channels, 16, 32, 32)
        elif isinstance(module, nn.Linear):
            yield torch.randn(BATCH, module.in_features)
            yield torch.randn(BATCH, 8, module.in_features)
        elif isinstance(module, nn.RNNBase):
            yield torch.randn(BATCH, 8, module.input_size)
        elif isinstance(module, nn.MultiheadAttention):
            yield torch.randn(BATCH, 8, module.embed_dim)
        else:
            continue
        return
