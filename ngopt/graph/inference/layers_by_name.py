"""Which parameters form a layer, and which axis of a weight is its output, by their
names."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from ngopt.graph.groups_and_blocks import ParameterSpec

# Modules of GPT-2 in transformers whose weights are (n_in, n_out).
CONV1D = re.compile(r"(^|\.)(c_attn|q_attn|c_fc|c_proj)\.weight$")


class Norm(NamedTuple):
    """Positions of the parameters of a norm."""

    scale: int
    shift: int | None


@dataclass
class LayerParameters:
    """Positions of parameters that belong together: a weight (or none) with its bias,
    and the norms behind it.

    recurrent_bias: the second bias of a recurrent layer. is_in_out: whether the weight
    is (n_in, n_out), as in `Conv1D` of transformers.
    """

    weight: int | None
    bias: int | None = None
    recurrent_bias: int | None = None
    norms: list[Norm] = field(default_factory=list)
    rest: list[int] = field(default_factory=list)
    is_in_out: bool = False


def layers_by_name(parameters: Sequence[ParameterSpec]) -> list[LayerParameters]:
    """Parameters of one module are one layer; a module of vectors alone is a norm."""
    modules: dict[str, dict[str, int]] = {}
    for i, spec in enumerate(parameters):
        module, _, name = spec.name.rpartition(".")
        key = module if name in ("weight", "bias") else spec.name
        modules.setdefault(key, {})[name] = i
    layers = [_layer_of_module(parameters, names) for names in modules.values()]
    _orient_square_weights(parameters, layers)
    return _with_separate_biases(parameters, layers)


def _layer_of_module(
    parameters: Sequence[ParameterSpec], names: dict[str, int]
) -> LayerParameters:
    """names: the parameters of a module: a weight and a bias, or a single parameter."""
    weight = names.get("weight")
    bias = names.get("bias")
    first = next(iter(names.values())) if weight is None else weight
    shape = parameters[first].shape
    if not shape or (len(shape) == 1 and weight is None):
        return LayerParameters(None, rest=list(names.values()))
    rest = []
    is_in_out = False
    if bias == first:  # a matrix with the name "bias"
        bias = None
    elif bias is not None and parameters[bias].shape != shape[:1]:
        # a bias has the length of the outputs
        is_in_out = len(shape) == 2 and parameters[bias].shape == shape[1:]
        if not is_in_out:
            bias, rest = None, [bias]
    if len(shape) == 1:
        return LayerParameters(None, norms=[Norm(first, bias)], rest=rest)
    return LayerParameters(first, bias, rest=rest, is_in_out=is_in_out)


def _orient_square_weights(
    parameters: Sequence[ParameterSpec], layers: Sequence[LayerParameters]
) -> None:
    """Decides whether square weights with names of GPT-2 are (n_in, n_out).

    They are if all weights with such names are whose bias shows it.
    """
    named = [layer for layer in layers if _has_conv1d_name(parameters, layer)]
    square = []
    are_in_out = True
    for layer in named:
        assert layer.weight is not None
        if is_square(parameters[layer.weight].shape):
            square.append(layer)
        else:
            are_in_out = are_in_out and layer.is_in_out
    for layer in square:
        layer.is_in_out = are_in_out


def _has_conv1d_name(
    parameters: Sequence[ParameterSpec], layer: LayerParameters
) -> bool:
    """Whether a layer has the name of a `Conv1D`, and a bias, as `Conv1D` has."""
    if layer.weight is None or layer.bias is None:
        return False
    return bool(CONV1D.search(parameters[layer.weight].name))


def is_square(shape: Sequence[int]) -> bool:
    return len(shape) == 2 and shape[0] == shape[1]


def _with_separate_biases(
    parameters: Sequence[ParameterSpec], layers: Sequence[LayerParameters]
) -> list[LayerParameters]:
    """Joins weights and biases with names like in_proj_weight and in_proj_bias."""
    owners: dict[str | None, LayerParameters] = {}
    for layer in layers:
        if layer.weight is not None:
            stem = parameters[layer.weight].name.removesuffix("weight")
            owners[f"{stem}bias"] = layer
    kept = []
    for layer in layers:
        owner = owners.get(_single_name(parameters, layer))
        if owner is not None and _is_bias_of(parameters, layer.rest[0], owner):
            owner.bias = layer.rest[0]
        else:
            kept.append(layer)
    return kept


def _single_name(
    parameters: Sequence[ParameterSpec], layer: LayerParameters
) -> str | None:
    """Name of the only parameter of a layer without a weight."""
    is_single = layer.weight is None and not layer.norms and len(layer.rest) == 1
    return parameters[layer.rest[0]].name if is_single else None


def _is_bias_of(
    parameters: Sequence[ParameterSpec], number: int, layer: LayerParameters
) -> bool:
    """Whether a parameter can be the bias of a layer, which has none yet."""
    assert layer.weight is not None, "only layers with a weight have a bias"
    bias = parameters[number]
    fits = bias.shape == parameters[layer.weight].shape[:1]
    return fits and bias.name.endswith("_bias") and layer.bias is None
