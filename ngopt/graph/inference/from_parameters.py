"""The neural graph from parameters alone: names (if there are any), shapes and
order."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

from ngopt.graph.graph_builder import GraphBuilder, layer_name
from ngopt.graph.groups_and_blocks import EdgeBlock, ParameterSpec, View
from ngopt.graph.inference.layers_by_name import (
    LayerParameters,
    Norm,
    is_square,
    layers_by_name,
)
from ngopt.graph.neural_graph import NeuralGraph

# Names of the projections of attention.
PROJECTION = re.compile(
    r"(^|[._])(to_)?(q|k|v|query|key|value|queries|keys|values)(_proj|_lin|_linear)?[._]"
)


def infer_graph(
    parameters: Sequence[ParameterSpec], named: bool = False
) -> NeuralGraph:
    """Chains layers whose input size fits the layer before; others stay components.

    A weight (n_out, n_in, *kernel) connects to the neurons of the layer before it if
    n_in is their number or, for a matrix, a multiple of it (a flattened feature map,
    channels first). A kernel (n, 1, *kernel) after n neurons is depthwise. Vectors
    after a weight are its bias and the scales and shifts of norms. A wrong edge is
    worse than none: square matrices that may be attention projections or parallel
    branches stay unconnected.

    named: whether the names are those of the network's modules. Then vectors belong to
        layers by their names, otherwise by their order.
    """
    layers = layers_by_name(parameters) if named else _layers_by_order(parameters)
    uncertain = _uncertain(parameters, layers)
    embeddings = _embeddings(parameters, layers)
    builder = GraphBuilder(parameters)
    last: int | None = None
    for layer in layers:
        if layer.weight is not None:
            before = None if layer.weight in uncertain else last
            is_embedding = layer.weight in embeddings
            last = _add_weight(builder, layer, before, is_embedding)
        last = _add_vectors(builder, layer, last)
    return replace(builder.build(), inferred=(True,) * len(parameters))


# Construction


def _add_weight(
    builder: GraphBuilder, layer: LayerParameters, last: int | None, is_embedding: bool
) -> int:
    """Adds a weight after the group `last`, or as a component of its own; returns its
    last group."""
    i = layer.weight
    assert i is not None, "only layers with a weight come here"
    if layer.is_in_out:
        return _add_in_out(builder, i, last)
    if is_embedding:
        return _add_embedding(builder, i)
    if last is None:
        return builder.add_component(i)
    shape = builder.parameters[i].shape
    size = builder.groups[last].size
    if len(shape) > 2 and shape[:2] == (size, 1):
        return _add_depthwise(builder, i, last)
    slot_shape = _slot_shape(shape, size)
    if slot_shape is None:
        return builder.add_component(i)
    return builder.add_weight(i, last, slot_shape)


def _add_in_out(builder: GraphBuilder, i: int, last: int | None) -> int:
    """Adds a weight (n_in, n_out)."""
    spec = builder.parameters[i]
    if last is None or builder.groups[last].size != spec.shape[0]:
        last = builder.add_group(f"{layer_name(spec)}.in", spec.shape[0])
    return _add_transposed(builder, i, last)


def _add_embedding(builder: GraphBuilder, i: int) -> int:
    """Adds an embedding (tokens, n) with its tokens."""
    spec = builder.parameters[i]
    tokens = builder.add_group(f"{layer_name(spec)}.tokens", spec.shape[0], "token")
    return _add_transposed(builder, i, tokens)


def _add_transposed(builder: GraphBuilder, i: int, source: int) -> int:
    """Adds the edges of a weight (n_source, n_target) and its target."""
    spec = builder.parameters[i]
    n_source, n_target = spec.shape
    target = builder.add_group(layer_name(spec), n_target)
    shape = (1, n_target, n_source)
    view = View(i, shape, (0, 1, n_target))
    builder.blocks.append(EdgeBlock(view, source, target, shape))
    return target


def _add_depthwise(builder: GraphBuilder, i: int, last: int) -> int:
    """Adds a kernel (n, 1, *kernel) after n neurons."""
    spec = builder.parameters[i]
    n, _, *kernel = spec.shape
    target = builder.add_group(layer_name(spec), n)
    view = View.whole(i, (n, 1, 1, *kernel))
    block = EdgeBlock(view, last, target, (n, 1, 1), tuple(kernel))
    builder.blocks.append(block)
    return target


def _add_vectors(
    builder: GraphBuilder, layer: LayerParameters, last: int | None
) -> int | None:
    """Adds the bias, norms and other parameters of a layer; returns its last group."""
    for bias in (layer.bias, layer.recurrent_bias):
        if bias is not None:
            assert last is not None, "only layers with a weight have a bias"
            shape = builder.parameters[bias].shape
            builder.add_bias(View.whole(bias, shape), last)
    for norm in layer.norms:
        last = _add_norm(builder, norm, last)
    for i in layer.rest:
        component = builder.add_component(i)
        last = component if last is None else last
    return last


def _add_norm(builder: GraphBuilder, norm: Norm, last: int | None) -> int:
    spec = builder.parameters[norm.scale]
    (n,) = spec.shape
    if last is None or builder.groups[last].size != n:
        last = builder.add_group(f"{layer_name(spec)}.in", n)
    target = builder.add_group(layer_name(spec), n)
    shape = (n, 1, 1)
    view = View(norm.scale, shape, (1, 0, 0))
    builder.blocks.append(EdgeBlock(view, last, target, shape, kind="gamma"))
    if norm.shift is not None:
        builder.add_bias(View.whole(norm.shift, (n,)), target, "beta")
    return target


def _slot_shape(shape: tuple[int, ...], size: int) -> tuple[int, ...] | None:
    """Slots of the edges from `size` neurons to a weight (n_out, n_in, *kernel); None
    if the sizes do not fit."""
    inputs = shape[1]
    kernel = shape[2:]
    if inputs == size:
        return kernel
    if not kernel and inputs > size > 1 and inputs % size == 0:
        return (inputs // size,)
    return None


# Layers by the order of their parameters


def _layers_by_order(parameters: Sequence[ParameterSpec]) -> list[LayerParameters]:
    """A weight begins a layer, with the vectors after it."""
    layers = [LayerParameters(None)]
    for i, spec in enumerate(parameters):
        if len(spec.shape) < 2:
            layers[-1].rest.append(i)
        else:
            layers.append(LayerParameters(i))
    if not layers[0].rest:
        del layers[0]
    _assign_recurrent_biases(parameters, layers)
    for layer in layers:
        _assign_bias(parameters, layer)
        _assign_norms(parameters, layer)
    return layers


def _assign_recurrent_biases(
    parameters: Sequence[ParameterSpec], layers: Sequence[LayerParameters]
) -> None:
    """The biases of GRUs and LSTMs: two vectors after W_ih and W_hh, as long as both.

    A norm of two parallel projections can have these shapes, too. Then the next weight
    reads all of their outputs, which the gates of a recurrent layer are not.
    """
    following = [*layers[2:], None]
    for first, second, third in zip(layers, layers[1:], following, strict=False):
        if first.rest or not _have_gates(parameters, first, second):
            continue
        assert second.weight is not None, "it has gates"
        rows = parameters[second.weight].shape[0]
        biases = [i for i in second.rest if parameters[i].shape == (rows,)]
        if len(biases) != 2 or biases != second.rest[:2]:
            continue
        if third is None or not _reads(parameters, third, rows):
            second.bias, second.recurrent_bias = biases
            del second.rest[:2]


def _have_gates(
    parameters: Sequence[ParameterSpec], first: LayerParameters, second: LayerParameters
) -> bool:
    """Whether two weights have the shapes of W_ih and W_hh, with 3 or 4 gates."""
    if first.weight is None or second.weight is None:
        return False
    inputs = parameters[first.weight].shape
    hidden = parameters[second.weight].shape
    if len(inputs) != 2 or len(hidden) != 2 or inputs[0] != hidden[0]:
        return False
    return hidden[0] in (3 * hidden[1], 4 * hidden[1])


def _reads(
    parameters: Sequence[ParameterSpec], layer: LayerParameters, size: int
) -> bool:
    """Whether the shape of a weight fits `size` neurons before it."""
    if layer.weight is None:
        return False
    return _slot_shape(parameters[layer.weight].shape, size) is not None


def _assign_bias(parameters: Sequence[ParameterSpec], layer: LayerParameters) -> None:
    """An odd number of vectors as long as the outputs begins with a bias."""
    if layer.weight is None:
        return
    outputs = parameters[layer.weight].shape[:1]
    fitting = [i for i in layer.rest if parameters[i].shape == outputs]
    if len(fitting) % 2:
        layer.bias = fitting[0]
        layer.rest.remove(layer.bias)


def _assign_norms(parameters: Sequence[ParameterSpec], layer: LayerParameters) -> None:
    """Two vectors of one size in a row are a norm."""
    vectors = layer.rest
    layer.rest = []
    k = 0
    while k < len(vectors):
        first, *second = vectors[k : k + 2]
        shape = parameters[first].shape
        if second and len(shape) == 1 and parameters[second[0]].shape == shape:
            layer.norms.append(Norm(first, second[0]))
            k += 2
        else:
            layer.rest.append(first)
            k += 1


# Embeddings


def _embeddings(
    parameters: Sequence[ParameterSpec], layers: Sequence[LayerParameters]
) -> set[int]:
    """Weights that are embeddings: the first matrices, if the next layer reads their
    columns and not their rows.

    An output layer may be listed before them, with the weight that it shares with an
    embedding. Then there are several embeddings of different lengths, and no layer
    reads their rows.
    """
    runs = _embedding_candidates(parameters, layers)
    if runs[0]:
        return runs[0]
    read = {_inputs(parameters, layer) for layer in layers}
    for run in runs:
        lengths = {parameters[i].shape[0] for i in run}
        if len(lengths) > 1 and read.isdisjoint(lengths):
            return run
    return set()


def _embedding_candidates(
    parameters: Sequence[ParameterSpec], layers: Sequence[LayerParameters]
) -> list[set[int]]:
    """Weights that may be embeddings, in runs between other weights."""
    runs: list[set[int]] = [set()]
    first = None
    for k, layer in enumerate(layers):
        if layer.weight is None:
            continue
        first = layer.weight if first is None else first
        if _may_be_embedding(parameters, layers[k : k + 2], first):
            runs[-1].add(layer.weight)
        else:
            runs.append(set())
    return runs


def _may_be_embedding(
    parameters: Sequence[ParameterSpec], layers: Sequence[LayerParameters], first: int
) -> bool:
    """Whether what follows a layer reads the columns of its weight and not its rows.

    layers: the layer, and the next if there is one. first: the first weight of all.
    """
    layer, *following = layers
    assert layer.weight is not None, "only layers with a weight come here"
    shape = parameters[layer.weight].shape
    if layer.bias is not None or len(shape) != 2 or is_square(shape):
        return False
    if following and following[0].recurrent_bias is not None:
        return False  # W_ih of a recurrent layer
    rows, columns = shape
    if layer.weight == first:
        vector = _vector_of_columns(parameters, layer)
        if vector is not None and not vector.name.endswith("bias"):
            return True  # the scale of a norm follows
    elif rows in (parameters[first].shape[1], 3 * columns):
        return False  # reads an embedding, or produces queries, keys and values
    if not layer.norms and following:
        return _inputs(parameters, following[0]) == columns
    return _norm_inputs(parameters, layer) == columns


def _vector_of_columns(
    parameters: Sequence[ParameterSpec], layer: LayerParameters
) -> ParameterSpec | None:
    """The first vector after a weight, if it has the length of its columns and not of
    its rows."""
    if layer.weight is None or layer.bias is not None or not layer.rest:
        return None
    shape = parameters[layer.weight].shape
    vector = parameters[layer.rest[0]]
    return vector if vector.shape == shape[1:] != shape[:1] else None


def _inputs(parameters: Sequence[ParameterSpec], layer: LayerParameters) -> int | None:
    """Number of neurons that a layer reads; None if its parameters do not show it."""
    if layer.weight is None:
        return _norm_inputs(parameters, layer)
    shape = parameters[layer.weight].shape
    if layer.is_in_out or _vector_of_columns(parameters, layer) is not None:
        return shape[0]
    return shape[1]


def _norm_inputs(
    parameters: Sequence[ParameterSpec], layer: LayerParameters
) -> int | None:
    return parameters[layer.norms[0].scale].shape[0] if layer.norms else None


# Attention projections and parallel branches


def _uncertain(
    parameters: Sequence[ParameterSpec], layers: Sequence[LayerParameters]
) -> set[int]:
    """Square matrices that may be parallel projections and so stay unconnected.

    In a plain chain that begins with a weight that is not square, square matrices are
    layers, unless names are those of attention. Elsewhere two or more in a row may be
    query, key, value and output projections.
    """
    has_attention = any(PROJECTION.search(spec.name) for spec in parameters)
    if not has_attention and _is_plain_chain(parameters, layers):
        return set()
    weights = [layer.weight for layer in layers if layer.weight is not None]
    uncertain: set[int] = set()
    for first, second in pairwise(weights):
        shape = parameters[first].shape
        if is_square(shape) and parameters[second].shape == shape:
            uncertain |= {first, second}
    return uncertain


def _is_plain_chain(
    parameters: Sequence[ParameterSpec], layers: Sequence[LayerParameters]
) -> bool:
    """Whether every layer is a weight that fits the layer before, perhaps with a bias,
    and the first is not square."""
    outputs: int | None = None
    for layer in layers:
        if layer.weight is None or layer.rest or layer.norms:
            return False
        shape = parameters[layer.weight].shape
        shape = shape[::-1] if layer.is_in_out else shape
        if outputs is None:
            fits = shape[0] != shape[1]
        else:
            fits = _slot_shape(shape, outputs) is not None
        if not fits:
            return False
        outputs = shape[0]
    return True
