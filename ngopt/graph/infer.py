"""The neural graph from parameters alone: names, where there are any, shapes and order decide."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from ngopt.graph.core import EdgeBlock, NeuralGraph, ParameterSpec, View
from ngopt.graph.topology import GraphBuilder, layer_name, whole

# Names that the projections of attention have.
PROJECTION = re.compile(
    r"(^|[._])(to_)?(q|k|v|query|key|value|queries|keys|values)(_proj|_lin|_linear)?[._]"
)


@dataclass
class Layer:
    """Parameters that belong together: a weight (or none) with its bias and the norms behind it.

    Each is the position of a parameter; norms are pairs of a scale and a shift (or None).
    """

    weight: int | None
    bias: int | None = None
    norms: list[tuple[int, int | None]] = field(default_factory=list)
    rest: list[int] = field(default_factory=list)


def infer_graph(parameters: Sequence[ParameterSpec], named: bool = False) -> NeuralGraph:
    """Chains layers whose input size fits the layer before;
    whatever does not fit stays a component.

    A weight (n_out, n_in, *kernel) connects to the neurons of the layer before it when n_in is
    their number or, for a matrix, a multiple of it (a flattened feature map, channels first); a
    kernel (n, 1, *kernel) behind n neurons is depthwise. Vectors behind a weight are its bias and
    the scales and shifts of norms. A wrong edge is worse than none: square matrices that cannot be
    told from attention projections are left unconnected, and so is all that parallel branches make
    uncertain.

    named: whether the names are those of the network's modules; then they say which vectors belong
        to which layer.
    """
    layers = _layers_by_name(parameters) if named else _layers_by_order(parameters)
    uncertain = _uncertain(parameters, layers)
    builder = GraphBuilder(parameters)
    last: int | None = None
    for k, layer in enumerate(layers):
        last = _add_layer(
            builder,
            layer,
            None if layer.weight in uncertain else last,
            _is_table(parameters, layers, k),
        )
    return replace(builder.build(), inferred=(True,) * len(parameters))


def _add_layer(builder: GraphBuilder, layer: Layer, last: int | None, table: bool) -> int | None:
    """Adds a layer behind the group `last`, or as a component of its own;
    returns its last group."""
    if layer.weight is not None:
        last = _add_weight(builder, layer.weight, last, table)
        if layer.bias is not None:
            builder.add_bias(whole(layer.bias, builder.parameters[layer.bias].shape), last)
    for scale, shift in layer.norms:
        last = _add_norm(builder, scale, shift, last)
    for i in layer.rest:
        component = builder.add_component(i)
        last = component if last is None else last
    return last


def _add_weight(builder: GraphBuilder, i: int, last: int | None, table: bool) -> int:
    spec = builder.parameters[i]
    if table:
        rows, columns = spec.shape
        source = builder.add_group(f"{layer_name(spec)}.tokens", rows, "token")
        target = builder.add_group(layer_name(spec), columns)
        view = View(i, (1, columns, rows), (0, 1, columns))
        builder.blocks.append(EdgeBlock(view, source, target, (1, columns, rows)))
        return target
    size = None if last is None else builder.groups[last].size
    if last is not None and spec.shape[:2] == (size, 1) and len(spec.shape) > 2:
        target = builder.add_group(layer_name(spec), spec.shape[0])
        shape = (spec.shape[0], 1, 1)
        builder.blocks.append(
            EdgeBlock(whole(i, (*shape, *spec.shape[2:])), last, target, shape, spec.shape[2:])
        )
        return target
    slot_shape = None if last is None or size is None else _slots(spec.shape, size)
    if last is None or slot_shape is None:
        return builder.add_component(i)
    return builder.add_weight(i, last, slot_shape)


def _add_norm(builder: GraphBuilder, scale: int, shift: int | None, last: int | None) -> int:
    spec = builder.parameters[scale]
    (n,) = spec.shape
    if last is None or builder.groups[last].size != n:
        last = builder.add_group(f"{layer_name(spec)}.in", n)
    target = builder.add_group(layer_name(spec), n)
    builder.blocks.append(
        EdgeBlock(View(scale, (n, 1, 1), (1, 0, 0)), last, target, (n, 1, 1), kind="gamma")
    )
    if shift is not None:
        builder.add_bias(whole(shift, (n,)), target, "beta")
    return target


def _slots(shape: tuple[int, ...], size: int) -> tuple[int, ...] | None:
    """Slot shape with which a weight connects to a group of `size` neurons, None if it does not."""
    inputs, kernel = shape[1], shape[2:]
    if inputs == size:
        return kernel
    if not kernel and inputs > size > 1 and inputs % size == 0:
        return (inputs // size,)
    return None


def _layers_by_order(parameters: Sequence[ParameterSpec]) -> list[Layer]:
    """A weight starts a layer; an odd number of vectors of its size behind it begins with a bias,
    pairs are norms."""
    layers: list[Layer] = []
    vectors: list[int] = []

    def close() -> None:
        """Deals out the vectors collected behind the last weight."""
        layer = layers[-1] if layers else Layer(None)
        if not layers and vectors:
            layers.append(layer)
        rows = None if layer.weight is None else parameters[layer.weight].shape[0]
        own = [i for i in vectors if parameters[i].shape == (rows,)] if rows is not None else []
        if own and len(own) % 2:
            layer.bias = own[0]
        behind = [i for i in vectors if i != layer.bias]
        layer.norms, layer.rest = _pairs(parameters, behind)
        vectors.clear()

    for i, spec in enumerate(parameters):
        if len(spec.shape) < 2:
            vectors.append(i)
        else:
            close()
            layers.append(Layer(i))
    close()
    return layers


def _pairs(
    parameters: Sequence[ParameterSpec], vectors: list[int]
) -> tuple[list[tuple[int, int | None]], list[int]]:
    """Consecutive vectors of one size are a scale and a shift; what is left over stays alone."""
    pairs: list[tuple[int, int | None]] = []
    rest, k = [], 0
    while k < len(vectors):
        i = vectors[k]
        if (
            len(parameters[i].shape) == 1
            and k + 1 < len(vectors)
            and parameters[i].shape == parameters[vectors[k + 1]].shape
        ):
            pairs.append((i, vectors[k + 1]))
            k += 2
        else:
            rest.append(i)
            k += 1
    return pairs, rest


def _layers_by_name(parameters: Sequence[ParameterSpec]) -> list[Layer]:
    """Parameters of one module are one layer; a module of vectors alone is a norm."""
    modules: dict[str, dict[str, int]] = {}
    for i, spec in enumerate(parameters):
        module, _, name = spec.name.rpartition(".")
        key = module if name in ("weight", "bias") else f"{spec.name}"
        modules.setdefault(key, {})[name] = i
    layers = []
    for members in modules.values():
        weight, bias = members.get("weight"), members.get("bias")
        first = next(iter(members.values())) if weight is None else weight
        dims = len(parameters[first].shape)
        if dims >= 2:
            fits = bias is not None and parameters[bias].shape == parameters[first].shape[:1]
            rest = [bias] if bias is not None and not fits else []
            layers.append(Layer(first, bias if fits else None, rest=rest))
        elif dims == 1 and weight is not None:
            fits = bias is not None and parameters[bias].shape == parameters[weight].shape
            rest = [bias] if bias is not None and not fits else []
            layers.append(Layer(None, norms=[(weight, bias if fits else None)], rest=rest))
        else:
            layers.append(Layer(None, rest=list(members.values())))
    return _with_loose_biases(parameters, layers)


def _with_loose_biases(parameters: Sequence[ParameterSpec], layers: list[Layer]) -> list[Layer]:
    """Names like in_proj_weight and in_proj_bias belong together too."""
    by_stem = {
        parameters[layer.weight].name.removesuffix("weight"): layer
        for layer in layers
        if layer.weight is not None
    }
    kept = []
    for layer in layers:
        if layer.weight is None and len(layer.rest) == 1 and not layer.norms:
            spec = parameters[layer.rest[0]]
            owner = (
                by_stem.get(spec.name.removesuffix("bias")) if spec.name.endswith("_bias") else None
            )
            if (
                owner
                and owner.weight is not None
                and owner.bias is None
                and spec.shape == parameters[owner.weight].shape[:1]
            ):
                owner.bias = layer.rest[0]
                continue
        kept.append(layer)
    return kept


def _is_table(parameters: Sequence[ParameterSpec], layers: Sequence[Layer], k: int) -> bool:
    """Whether the layer is an embedding: a matrix at the beginning whose columns, not rows,
    are what follows."""
    layer = layers[k]
    if layer.weight is None or layer.bias is not None or len(parameters[layer.weight].shape) != 2:
        return False
    if any(
        other.weight is not None and not _is_table(parameters, layers, i)
        for i, other in enumerate(layers[:k])
    ):
        return False
    rows, columns = parameters[layer.weight].shape
    if rows == columns:
        return False
    if layer.norms:
        return parameters[layer.norms[0][0]].shape == (columns,)
    following = layers[k + 1] if k + 1 < len(layers) else None
    if following is None:
        return False
    if following.weight is not None:
        return parameters[following.weight].shape[1] == columns
    return bool(following.norms) and parameters[following.norms[0][0]].shape == (columns,)


def _uncertain(parameters: Sequence[ParameterSpec], layers: Sequence[Layer]) -> set[int]:
    """Square matrices that may be parallel projections:
    positions of those not to connect to what is before them.

    In a list that is a plain chain from its first, non-square weight on, square matrices are
    layers, unless names speak of attention. Anywhere else two or more in a row could be query, key,
    value and output projections.
    """
    weights = [
        (layer.weight, parameters[layer.weight].shape)
        for layer in layers
        if layer.weight is not None
    ]
    if _is_plain_chain(parameters, layers) and not any(
        PROJECTION.search(spec.name) for spec in parameters
    ):
        return set()
    square = [len(shape) == 2 and shape[0] == shape[1] for _, shape in weights]
    return {
        i
        for k, (i, shape) in enumerate(weights)
        if square[k]
        and (
            (k > 0 and weights[k - 1][1] == shape)
            or (k + 1 < len(weights) and weights[k + 1][1] == shape)
        )
    }


def _is_plain_chain(parameters: Sequence[ParameterSpec], layers: Sequence[Layer]) -> bool:
    """Whether every layer has a weight that fits the one before, and nothing is left over."""
    size: int | None = None
    for layer in layers:
        if layer.weight is None or layer.rest or layer.norms:
            return False
        shape = parameters[layer.weight].shape
        if (size is None and shape[0] == shape[1]) or (
            size is not None and _slots(shape, size) is None
        ):
            return False
        size = shape[0]
    return True
