"""Finds layers, and which axis of a weight is its output, by names of parameters."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

CONV1D = re.compile(r"(^|[._])(c_attn|c_proj|c_fc|q_attn)[._]weight$")
"""Names of GPT-2's layers, whose weights are (n_in, n_out) in transformers, where they
are `Conv1D`, and (n_out, n_in) elsewhere."""

Shape = tuple[int, ...]


class Parameter(NamedTuple):
    """A parameter and its position in the list of all."""

    number: int
    name: str
    shape: Shape

    @property
    def is_square(self) -> bool:
        return len(self.shape) == 2 and self.shape[0] == self.shape[1]


class Norm(NamedTuple):
    """The parameters of a norm."""

    scale: Parameter
    shift: Parameter | None


@dataclass
class LayerParameters:
    """Parameters that belong together: a weight (or none) with its bias, and the norms
    behind it.

    recurrent_bias: the second bias of a recurrent layer. is_in_out: whether the weight
    is (n_in, n_out), as in `Conv1D` of transformers.
    """

    weight: Parameter | None
    bias: Parameter | None = None
    recurrent_bias: Parameter | None = None
    norms: list[Norm] = field(default_factory=list)
    rest: list[Parameter] = field(default_factory=list)
    is_in_out: bool = False


def layers_by_name(parameters: Sequence[Parameter]) -> list[LayerParameters]:
    """Parameters of one module are one layer, as are those with names like
    in_proj_weight and in_proj_bias; a module of vectors alone is a norm."""
    rows = {p.name: p.shape[:1] for p in parameters if len(p.shape) > 1}
    modules: dict[str, dict[str, Parameter]] = {}
    separate: dict[str, Parameter] = {}  # biases, by the names of their weights
    for parameter in parameters:
        module, _, name = parameter.name.rpartition(".")
        weight = parameter.name.removesuffix("bias") + "weight"
        if name.endswith("_bias") and rows.get(weight) == parameter.shape:
            separate[weight] = parameter
            continue
        key = module if name in ("weight", "bias") else parameter.name
        modules.setdefault(key, {})[name] = parameter
    for weight, bias in separate.items():
        modules[weight]["bias"] = bias
    layers = list(map(_layer_of_module, modules.values()))
    weights, shapes = [], []
    for layer in layers:
        weight, bias = layer.weight, layer.bias
        if weight is not None and bias is not None:
            weights.append(layer)
            shapes.append((weight.name, weight.shape, bias.shape))
    for layer, is_in_out in zip(weights, are_in_out(shapes), strict=True):
        assert layer.weight is not None
        layer.is_in_out = is_in_out and len(layer.weight.shape) == 2
    return layers


def _layer_of_module(parameters: dict[str, Parameter]) -> LayerParameters:
    """parameters: of a module: a weight and a bias, or a single one."""
    weight = parameters.get("weight")
    bias = parameters.get("bias")
    first = next(iter(parameters.values())) if weight is None else weight
    shape = first.shape
    if not shape or (len(shape) == 1 and weight is None):
        return LayerParameters(None, rest=list(parameters.values()))
    rest = []
    columns = shape[1:] if len(shape) == 2 else None
    if bias is first:  # a matrix with the name "bias"
        bias = None
    elif bias is not None and bias.shape not in (shape[:1], columns):
        bias, rest = None, [bias]
    if len(shape) == 1:
        return LayerParameters(None, norms=[Norm(first, bias)], rest=rest)
    return LayerParameters(first, bias, rest=rest)


def are_in_out(weights: Sequence[tuple[str, Shape, Shape | None]]) -> list[bool]:
    """Whether each weight of a network is (n_in, n_out).

    A bias has the length of the outputs. It does not tell the axes of a square weight
    apart. One with a name of `CONV1D` is (n_in, n_out) if all others with such names
    and a bias are.

    weights: name and shape of each weight (two axes or more), and the shape of its
    bias, if any.
    """
    by_bias, conv1d = [], []
    for name, (rows, columns, *_), bias in weights:
        by_bias.append(rows != columns and bias == (columns,))
        if rows != columns and bias is not None and CONV1D.search(name):
            conv1d.append(by_bias[-1])
    squares_are = bool(conv1d) and all(conv1d)
    result = []
    for (name, (rows, columns, *_), _), fits in zip(weights, by_bias, strict=True):
        is_conv1d = rows == columns and squares_are and CONV1D.search(name) is not None
        result.append(fits or is_conv1d)
    return result
