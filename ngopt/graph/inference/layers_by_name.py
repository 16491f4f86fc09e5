"""Finds layers, and which axis of a weight is its output, by names of parameters."""

import re
from collections.abc import Iterable, Sequence
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
    """Parameters of one module are one layer; a module of vectors alone is a norm."""
    modules: dict[str, dict[str, Parameter]] = {}
    for parameter in parameters:
        module, _, name = parameter.name.rpartition(".")
        key = module if name in ("weight", "bias") else parameter.name
        modules.setdefault(key, {})[name] = parameter
    layers = list(map(_layer_of_module, modules.values()))
    _orient_square_weights(layers)
    return _with_separate_biases(layers)


def _layer_of_module(parameters: dict[str, Parameter]) -> LayerParameters:
    """parameters: of a module: a weight and a bias, or a single one."""
    weight = parameters.get("weight")
    bias = parameters.get("bias")
    first = next(iter(parameters.values())) if weight is None else weight
    shape = first.shape
    if not shape or (len(shape) == 1 and weight is None):
        return LayerParameters(None, rest=list(parameters.values()))
    rest = []
    is_in_out = False
    if bias is first:  # a matrix with the name "bias"
        bias = None
    elif bias is not None and bias.shape != shape[:1]:
        is_in_out = len(shape) == 2 and fits_columns(shape, bias.shape)
        if not is_in_out:
            bias, rest = None, [bias]
    if len(shape) == 1:
        return LayerParameters(None, norms=[Norm(first, bias)], rest=rest)
    return LayerParameters(first, bias, rest=rest, is_in_out=is_in_out)


def fits_columns(weight: Shape, bias: Shape) -> bool:
    """Whether a bias has the length of the columns of a weight, and not of its rows: a
    bias has the length of the outputs, so that the weight is (n_in, n_out)."""
    rows, columns = weight[:2]
    return rows != columns and bias == (columns,)


def square_weights_are_in_out(layers: Iterable[tuple[str, Shape, Shape]]) -> bool:
    """Whether square weights with names of `CONV1D` are (n_in, n_out): the biases of
    all others with such names show that these are.

    layers: name and shape of each weight of a network, and the shape of its bias.
    """
    fits = []
    for name, weight, bias in layers:
        if CONV1D.search(name) and weight[0] != weight[1]:
            fits.append(fits_columns(weight, bias))
    return bool(fits) and all(fits)


def _orient_square_weights(layers: Sequence[LayerParameters]) -> None:
    """Sets `is_in_out` of square weights with names and biases of `Conv1D`."""
    shapes = []
    square = []
    for layer in layers:
        weight, bias = layer.weight, layer.bias
        if weight is None or bias is None:
            continue
        shapes.append((weight.name, weight.shape, bias.shape))
        if weight.is_square and CONV1D.search(weight.name):
            square.append(layer)
    are_in_out = square_weights_are_in_out(shapes)
    for layer in square:
        layer.is_in_out = are_in_out


def _with_separate_biases(layers: Sequence[LayerParameters]) -> list[LayerParameters]:
    """Joins weights and biases with names like in_proj_weight and in_proj_bias."""
    owners: dict[str, LayerParameters] = {}
    for layer in layers:
        if layer.weight is not None:
            owners[layer.weight.name.removesuffix("weight") + "bias"] = layer
    kept = []
    for layer in layers:
        owner = None
        if layer.weight is None and not layer.norms and len(layer.rest) == 1:
            bias = layer.rest[0]
            owner = owners.get(bias.name) if bias.name.endswith("_bias") else None
        if owner is None or owner.weight is None or owner.bias is not None:
            kept.append(layer)
        elif bias.shape == owner.weight.shape[:1]:
            owner.bias = bias
        else:
            kept.append(layer)
    return kept
