"""Which parameters are of one layer, and which axis of a weight is its output, by their
names."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from ngopt.graph.groups_and_blocks import ParameterSpec

# Modules of GPT-2 whose weights are (n_in, n_out) in transformers.
CONV1D = re.compile(r"(^|\.)(c_attn|q_attn|c_fc|c_proj)\.weight$")


@dataclass
class Layer:
    """Parameters that belong together: a weight (or none) with its bias and the norms
    behind it.

    Each is the position of a parameter; norms are pairs of a scale and a shift (or
    None).
    is_in_out: whether the weight is (n_in, n_out), as that of `Conv1D` of transformers.
    """

    weight: int | None
    bias: int | None = None
    norms: list[tuple[int, int | None]] = field(default_factory=list)
    rest: list[int] = field(default_factory=list)
    is_in_out: bool = False


def layers_by_name(parameters: Sequence[ParameterSpec]) -> list[Layer]:
    """Parameters of one module are one layer; a module of vectors alone is a norm."""
    modules: dict[str, dict[str, int]] = {}
    for i, spec in enumerate(parameters):
        module, _, name = spec.name.rpartition(".")
        key = module if name in ("weight", "bias") else spec.name
        modules.setdefault(key, {})[name] = i
    layers = [_layer_of_module(parameters, members) for members in modules.values()]
    _orient_square(parameters, layers)
    return _with_loose_biases(parameters, layers)


def _orient_square(parameters: Sequence[ParameterSpec], layers: list[Layer]) -> None:
    """Decides whether square weights with names as in GPT-2 are (n_in, n_out).

    They are as others of such names, of which the lengths of biases say it; `Conv1D`
    has a bias.
    """
    named = [layer for layer in layers if _is_named_as_conv1d(parameters, layer)]
    square = [layer for layer in named if _is_square(parameters, layer)]
    others = [layer.is_in_out for layer in named if layer not in square]
    for layer in square:
        layer.is_in_out = all(others)


def _is_named_as_conv1d(parameters: Sequence[ParameterSpec], layer: Layer) -> bool:
    if layer.weight is None or layer.bias is None:
        return False
    return bool(CONV1D.search(parameters[layer.weight].name))


def _is_square(parameters: Sequence[ParameterSpec], layer: Layer) -> bool:
    assert layer.weight is not None, "layers without a weight have no shape"
    shape = parameters[layer.weight].shape
    return len(shape) == 2 and shape[0] == shape[1]


def _layer_of_module(
    parameters: Sequence[ParameterSpec], members: dict[str, int]
) -> Layer:
    """members: parameters of a module by their names, a weight and a bias or a single
    one."""
    weight = members.get("weight")
    bias = members.get("bias")
    first = next(iter(members.values())) if weight is None else weight
    shape = parameters[first].shape
    if not shape or (len(shape) == 1 and weight is None):
        return Layer(None, rest=list(members.values()))
    rest = []
    is_in_out = False
    if bias == first:  # a matrix of that name, alone in its module
        bias = None
    elif bias is not None and parameters[bias].shape != shape[:1]:
        # a bias is as long as there are outputs
        is_in_out = len(shape) == 2 and parameters[bias].shape == shape[1:]
        if not is_in_out:
            bias, rest = None, [bias]
    if len(shape) == 1:
        return Layer(None, norms=[(first, bias)], rest=rest)
    return Layer(first, bias, rest=rest, is_in_out=is_in_out)


def _with_loose_biases(
    parameters: Sequence[ParameterSpec], layers: list[Layer]
) -> list[Layer]:
    """Names like in_proj_weight and in_proj_bias belong together too."""
    owners = {}
    for layer in layers:
        if layer.weight is not None:
            stem = parameters[layer.weight].name.removesuffix("weight")
            owners[f"{stem}bias"] = layer
    kept = []
    for layer in layers:
        owner = _owner(parameters, layer, owners)
        if owner is None:
            kept.append(layer)
        else:
            owner.bias = layer.rest[0]
    return kept


def _owner(
    parameters: Sequence[ParameterSpec],
    layer: Layer,
    owners: dict[str, Layer],
) -> Layer | None:
    """The layer whose bias is all that another layer has, if it has none yet and that
    fits."""
    if layer.weight is not None or layer.norms or len(layer.rest) != 1:
        return None
    bias = parameters[layer.rest[0]]
    owner = owners.get(bias.name) if bias.name.endswith("_bias") else None
    if owner is None or owner.weight is None or owner.bias is not None:
        return None
    rows = parameters[owner.weight].shape[:1]
    return owner if bias.shape == rows else None
