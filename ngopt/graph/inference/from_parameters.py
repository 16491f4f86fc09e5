"""The neural graph from parameters alone: names, where there are any, shapes and order
decide."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from itertools import groupby, pairwise

from ngopt.graph.graph_builder import GraphBuilder, layer_name, whole
from ngopt.graph.groups_and_blocks import EdgeBlock, ParameterSpec, View
from ngopt.graph.inference.layers_by_name import Layer, layers_by_name
from ngopt.graph.neural_graph import NeuralGraph

# Names that the projections of attention have.
PROJECTION = re.compile(
    r"(^|[._])(to_)?(q|k|v|query|key|value|queries|keys|values)(_proj|_lin|_linear)?[._]"
)


def infer_graph(
    parameters: Sequence[ParameterSpec], named: bool = False
) -> NeuralGraph:
    """Chains layers whose input size fits the layer before;
    whatever does not fit stays a component.

    A weight (n_out, n_in, *kernel) connects to the neurons of the layer before it when
    n_in is their number or, for a matrix, a multiple of it (a flattened feature map,
    channels first); a kernel (n, 1, *kernel) behind n neurons is depthwise. Vectors
    behind a weight are its bias and the scales and shifts of norms. A wrong edge is
    worse than none: square matrices that cannot be told from attention projections are
    left unconnected, and so is all that parallel branches make uncertain.

    named: whether the names are those of the network's modules; then they say which
    vectors belong
        to which layer.
    """
    layers = layers_by_name(parameters) if named else _layers_by_order(parameters)
    uncertain = _uncertain(parameters, layers)
    tables = _tables(parameters, layers)
    builder = GraphBuilder(parameters)
    last: int | None = None
    for layer in layers:
        before = None if layer.weight in uncertain else last
        last = _add_layer(builder, layer, before, layer.weight in tables)
    return replace(builder.build(), inferred=(True,) * len(parameters))


def _add_layer(
    builder: GraphBuilder, layer: Layer, last: int | None, table: bool
) -> int | None:
    """Adds a layer behind the group `last`, or as a component of its own;
    returns its last group."""
    if layer.weight is not None:
        add = _add_in_out if layer.is_in_out else _add_weight
        last = add(builder, layer.weight, last, table)
        if layer.bias is not None:
            builder.add_bias(
                whole(layer.bias, builder.parameters[layer.bias].shape), last
            )
    for scale, shift in layer.norms:
        last = _add_norm(builder, scale, shift, last)
    for i in layer.rest:
        component = builder.add_component(i)
        last = component if last is None else last
    return last


def _add_weight(builder: GraphBuilder, i: int, last: int | None, table: bool) -> int:
    if table:
        return _add_table(builder, i)
    if last is None:
        return builder.add_component(i)
    shape, size = builder.parameters[i].shape, builder.groups[last].size
    if len(shape) > 2 and shape[:2] == (size, 1):
        return _add_depthwise(builder, i, last)
    slot_shape = _slots(shape, size)
    if slot_shape is None:
        return builder.add_component(i)
    return builder.add_weight(i, last, slot_shape)


def _add_in_out(builder: GraphBuilder, i: int, last: int | None, _: bool) -> int:
    """Adds a weight (n_in, n_out)."""
    spec = builder.parameters[i]
    n_in, n_out = spec.shape
    if last is None or builder.groups[last].size != n_in:
        last = builder.add_group(f"{layer_name(spec)}.in", n_in)
    target = builder.add_group(layer_name(spec), n_out)
    shape = (1, n_out, n_in)
    view = View(i, shape, (0, 1, n_out))
    builder.blocks.append(EdgeBlock(view, last, target, shape))
    return target


def _add_table(builder: GraphBuilder, i: int) -> int:
    """Adds an embedding (tokens, n) and what it leads from and to."""
    spec = builder.parameters[i]
    rows, columns = spec.shape
    source = builder.add_group(f"{layer_name(spec)}.tokens", rows, "token")
    target = builder.add_group(layer_name(spec), columns)
    shape = (1, columns, rows)
    view = View(i, shape, (0, 1, columns))
    builder.blocks.append(EdgeBlock(view, source, target, shape))
    return target


def _add_depthwise(builder: GraphBuilder, i: int, last: int) -> int:
    """Adds a kernel (n, 1, *kernel) behind n neurons."""
    spec = builder.parameters[i]
    n, _, *kernel = spec.shape
    target = builder.add_group(layer_name(spec), n)
    view = whole(i, (n, 1, 1, *kernel))
    block = EdgeBlock(view, last, target, (n, 1, 1), tuple(kernel))
    builder.blocks.append(block)
    return target


def _add_norm(
    builder: GraphBuilder, scale: int, shift: int | None, last: int | None
) -> int:
    spec = builder.parameters[scale]
    (n,) = spec.shape
    if last is None or builder.groups[last].size != n:
        last = builder.add_group(f"{layer_name(spec)}.in", n)
    target = builder.add_group(layer_name(spec), n)
    shape = (n, 1, 1)
    view = View(scale, shape, (1, 0, 0))
    block = EdgeBlock(view, last, target, shape, kind="gamma")
    builder.blocks.append(block)
    if shift is not None:
        builder.add_bias(whole(shift, (n,)), target, "beta")
    return target


def _slots(shape: tuple[int, ...], size: int) -> tuple[int, ...] | None:
    """Slot shape with which a weight connects to a group of `size` neurons, None if it
    does not."""
    inputs, kernel = shape[1], shape[2:]
    if inputs == size:
        return kernel
    if not kernel and inputs > size > 1 and inputs % size == 0:
        return (inputs // size,)
    return None


def _layers_by_order(parameters: Sequence[ParameterSpec]) -> list[Layer]:
    """A weight starts a layer; an odd number of vectors of its size behind it begins
    with a bias, pairs are norms."""
    layers = [Layer(None)]
    for i, spec in enumerate(parameters):
        if len(spec.shape) < 2:
            layers[-1].rest.append(i)
        else:
            layers.append(Layer(i))
    if not layers[0].rest:
        del layers[0]
    for layer in layers:
        _deal_out(parameters, layer)
    return layers


def _deal_out(parameters: Sequence[ParameterSpec], layer: Layer) -> None:
    """Finds the bias and the norms among the rest of a layer, the vectors behind its
    weight."""
    if layer.weight is not None:
        rows = parameters[layer.weight].shape[0]
        own = [i for i in layer.rest if parameters[i].shape == (rows,)]
        if len(own) % 2:
            layer.bias = own[0]
    behind = [i for i in layer.rest if i != layer.bias]
    layer.norms, layer.rest = _pairs(parameters, behind)


def _pairs(
    parameters: Sequence[ParameterSpec], vectors: list[int]
) -> tuple[list[tuple[int, int | None]], list[int]]:
    """Consecutive vectors of one size are a scale and a shift; what is left over stays
    alone."""
    pairs: list[tuple[int, int | None]] = []
    rest = []
    k = 0
    while k < len(vectors):
        shapes = [parameters[i].shape for i in vectors[k : k + 2]]
        if len(shapes) == 2 and shapes[0] == shapes[1] and len(shapes[0]) == 1:
            pairs.append((vectors[k], vectors[k + 1]))
            k += 2
        else:
            rest.append(vectors[k])
            k += 1
    return pairs, rest


def _tables(parameters: Sequence[ParameterSpec], layers: Sequence[Layer]) -> set[int]:
    """Weights that are embeddings: matrices at the beginning whose columns, not rows,
    are what follows.

    A head may be listed before them, and what it shares with an embedding with it; they
    are several then, of different lengths, and nothing reads what rows they have.
    """
    weights = {
        k: layer.weight for k, layer in enumerate(layers) if layer.weight is not None
    }

    def may_be_table(k: int) -> bool:
        first = next(iter(weights))
        return _may_be_table(parameters, layers[k : k + 2], layers[first])

    runs = groupby(weights, may_be_table)
    found = [{weights[k] for k in run} if may_be else set() for may_be, run in runs]
    if found and found[0]:
        return found[0]
    read = {_inputs(parameters, layer) for layer in layers}
    for some in found:
        rows = {parameters[i].shape[0] for i in some}
        if len(rows) > 1 and read.isdisjoint(rows):
            return some
    return set()


def _may_be_table(
    parameters: Sequence[ParameterSpec], layers: Sequence[Layer], first: Layer
) -> bool:
    """Whether the columns of a layer's weight, not its rows, are what follows.

    layers: it and the following, if there is one. first: of all layers with a weight.
    Behind it, what has as many rows as it has columns reads it, and what is three times
    as long as it is wide makes queries, keys and values.
    """
    layer, *following = layers
    assert layer.weight is not None and first.weight is not None
    is_first = layer is first
    rows, *columns = parameters[layer.weight].shape
    width = parameters[first.weight].shape[1]
    if layer.bias is not None or columns == [rows]:
        return False
    if not is_first and (rows == width or [3 * n for n in columns] == [rows]):
        return False
    vector = _beside_columns(parameters, layer)
    if is_first and vector is not None and not vector.name.endswith("bias"):
        return True  # before the scale of a norm
    behind = [replace(layer, weight=None)] if layer.norms else following
    return [_inputs(parameters, one) for one in behind] == [*columns]


def _beside_columns(
    parameters: Sequence[ParameterSpec], layer: Layer
) -> ParameterSpec | None:
    """The first vector behind a weight, where it is as long as its rows and not as its
    columns."""
    if layer.weight is None or layer.bias is not None or not layer.rest:
        return None
    rows, *columns = parameters[layer.weight].shape
    vector = parameters[layer.rest[0]]
    return vector if [*vector.shape] == columns != [rows] else None


def _inputs(parameters: Sequence[ParameterSpec], layer: Layer) -> int | None:
    """How many neurons a layer reads, None if nothing says so."""
    if layer.weight is not None:
        shape = parameters[layer.weight].shape
        is_in_out = layer.is_in_out or _beside_columns(parameters, layer) is not None
        return shape[0] if is_in_out else shape[1]
    if layer.norms:
        scale, _ = layer.norms[0]
        return parameters[scale].shape[0]
    return None


def _uncertain(
    parameters: Sequence[ParameterSpec], layers: Sequence[Layer]
) -> set[int]:
    """Square matrices that may be parallel projections:
    positions of those not to connect to what is before them.

    In a list that is a plain chain from its first, non-square weight on, square
    matrices are layers, unless names speak of attention. Anywhere else two or more in a
    row could be query, key, value and output projections.
    """
    speaks_of_attention = any(PROJECTION.search(spec.name) for spec in parameters)
    if not speaks_of_attention and _is_plain_chain(parameters, layers):
        return set()
    uncertain: set[int] = set()
    for first, second in pairwise(_weights(layers)):
        shape = parameters[first].shape
        is_square = len(shape) == 2 and shape[0] == shape[1]
        if is_square and parameters[second].shape == shape:
            uncertain |= {first, second}
    return uncertain


def _weights(layers: Sequence[Layer]) -> list[int]:
    return [layer.weight for layer in layers if layer.weight is not None]


def _out_in(parameters: Sequence[ParameterSpec], layer: Layer) -> tuple[int, ...]:
    """The shape of a layer's weight, outputs first."""
    assert layer.weight is not None, "layers without a weight have no shape"
    shape = parameters[layer.weight].shape
    return shape[::-1] if layer.is_in_out else shape


def _is_plain_chain(
    parameters: Sequence[ParameterSpec], layers: Sequence[Layer]
) -> bool:
    """Whether every layer has a weight that fits the one before, and nothing is left
    over."""
    weights = _weights(layers)
    has_more = any(layer.rest or layer.norms for layer in layers)
    if has_more or len(weights) < len(layers):
        return False
    shapes = [_out_in(parameters, layer) for layer in layers]
    if shapes and shapes[0][0] == shapes[0][1]:
        return False
    return all(
        _slots(shape, before[0]) is not None for before, shape in pairwise(shapes)
    )
