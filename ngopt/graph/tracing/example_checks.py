"""Checks of an example input: its batch axis, and its dtype."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from ngopt.graph.tracing.capture import Program, packet_of

aten = torch.ops.aten

UNBATCHED_DIMS = {aten.linear: 1, aten.conv1d: 2, aten.conv2d: 3, aten.conv3d: 4}
"""Axes of the input of a layer if there is no batch axis."""


def check_example(program: Program, name: str) -> None:
    """Raises ValueError if a layer would multiply integers by its weight, which fails
    where numbers are computed. Warns if a layer reads an input without a batch axis.

    name: of the module.
    """
    for call in program.graph.nodes:
        dims = UNBATCHED_DIMS.get(packet_of(call))
        if dims is None:
            continue
        layer = packet_of(call).__name__
        x, weight = (_tensor(operand) for operand in call.args[:2])
        if x is None or weight is None:
            continue
        if weight.is_floating_point() and not (x.is_floating_point() or x.is_complex()):
            raise ValueError(
                f"build_graph: {name} does not run on the example input: {layer} "
                f"expects a tensor of {weight.dtype}; got {x.dtype}"
            )
        # the only channel may be taken for a batch of one
        is_unbatched = x.dim() == dims and len(x) > 1
        if is_unbatched and _is_input(program, call.args[0]):
            warnings.warn(
                "build_graph: expected an example_input with a batch axis first; got "
                f"shape {tuple(x.shape)}, which {layer} reads without one. Pass "
                "example_input.unsqueeze(0).",
                stacklevel=5,
            )
            return


def _tensor(operand: Any) -> Tensor | None:
    """What a function gets, without its numbers."""
    value = operand.meta.get("val") if isinstance(operand, Node) else None
    return value if isinstance(value, Tensor) else None


def _is_input(program: Program, operand: Any) -> bool:
    """Whether it is an input of the module, or made of one without a change of
    shape."""
    shape = operand.meta["val"].shape
    while operand.op == "call_function" and operand.all_input_nodes:
        operand = operand.all_input_nodes[0]
        value = _tensor(operand)
        if value is None or value.shape != shape:
            return False
    return operand.op == "placeholder" and operand.name not in program.state
