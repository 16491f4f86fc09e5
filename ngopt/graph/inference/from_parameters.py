"""The neural graph from parameters alone: names (if there are any), shapes, order."""

import re
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

from ngopt.graph.graph_builder import GraphBuilder, layer_name, slot_shape
from ngopt.graph.groups_and_blocks import EdgeBlock, ParameterSpec, View
from ngopt.graph.inference.layers_by_name import (
    LayerParameters,
    Norm,
    Parameter,
    layers_by_name,
)
from ngopt.graph.neural_graph import NeuralGraph

# Names of the projections of attention.
PROJECTION = re.compile(
    r"(^|[._])(to_)?(q|k|v|query|key|value|queries|keys|values)(_proj|_lin|_linear)?[._]"
)


def infer_graph(specs: Sequence[ParameterSpec], named: bool = False) -> NeuralGraph:
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
    parameters = [Parameter(i, spec.name, spec.shape) for i, spec in enumerate(specs)]
    layers = layers_by_name(parameters) if named else _layers_by_order(parameters)
    uncertain = _uncertain(parameters, layers)
    embeddings = _embeddings(layers)
    builder = GraphBuilder(specs)
    last: int | None = None
    for layer in layers:
        if layer.weight is not None:
            before = None if layer.weight in uncertain else last
            last = _add_weight(builder, layer, before, layer.weight in embeddings)
        last = _add_vectors(builder, layer, last)
    return replace(builder.build(), inferred=(True,) * len(specs))


# Construction


def _add_weight(
    builder: GraphBuilder, layer: LayerParameters, last: int | None, is_embedding: bool
) -> int:
    """Adds a weight after the group `last`, or as a component of its own; returns its
    last group."""
    weight = layer.weight
    assert weight is not None, "only layers with a weight come here"
    shape = weight.shape
    if layer.is_in_out:
        return _add_transposed(builder, weight, _inputs_of(builder, weight, last))
    if is_embedding:
        name = f"{layer_name(weight.name)}.tokens"
        tokens = builder.add_group(name, shape[0], "token")
        return _add_transposed(builder, weight, tokens)
    if last is None:
        return builder.add_component(weight.number)
    size = builder.groups[last].size
    if len(shape) > 2 and shape[:2] == (size, 1):
        # depthwise: a kernel for each neuron
        target = builder.add_group(layer_name(weight.name), size)
        view = View.whole(weight.number, (size, 1, *shape[1:]))
        builder.blocks.append(EdgeBlock(view, last, target, (size, 1, 1), shape[2:]))
        return target
    slots = slot_shape(shape, size, smallest=2)
    if slots is None:
        return builder.add_component(weight.number)
    return builder.add_weight(weight.number, last, slots)


def _inputs_of(builder: GraphBuilder, parameter: Parameter, last: int | None) -> int:
    """The last group if it has a neuron for each row of a parameter, else a new one."""
    size = parameter.shape[0]
    if last is None or builder.groups[last].size != size:
        return builder.add_group(f"{layer_name(parameter.name)}.in", size)
    return last


def _add_transposed(builder: GraphBuilder, weight: Parameter, source: int) -> int:
    """Adds the edges of a weight (n_source, n_target) and its target."""
    n_source, n_target = weight.shape
    target = builder.add_group(layer_name(weight.name), n_target)
    shape = (1, n_target, n_source)
    view = View(weight.number, shape, (0, 1, n_target))
    builder.blocks.append(EdgeBlock(view, source, target, shape))
    return target


def _add_vectors(
    builder: GraphBuilder, layer: LayerParameters, last: int | None
) -> int | None:
    """Adds the bias, norms and other parameters of a layer; returns its last group."""
    for bias in (layer.bias, layer.recurrent_bias):
        if bias is not None:
            assert last is not None, "only layers with a weight have a bias"
            builder.add_bias(View.whole(bias.number, bias.shape), last)
    for scale, shift in layer.norms:
        source = _inputs_of(builder, scale, last)
        (n,) = scale.shape
        last = builder.add_group(layer_name(scale.name), n)
        shape = (n, 1, 1)
        view = View(scale.number, shape, (1, 0, 0))
        builder.blocks.append(EdgeBlock(view, source, last, shape, kind="gamma"))
        if shift is not None:
            builder.add_bias(View.whole(shift.number, (n,)), last, "beta")
    for parameter in layer.rest:
        component = builder.add_component(parameter.number)
        last = component if last is None else last
    return last


# Layers by the order of their parameters


def _layers_by_order(parameters: Sequence[Parameter]) -> list[LayerParameters]:
    """A weight begins a layer, with the vectors after it."""
    layers = [LayerParameters(None)]
    for parameter in parameters:
        if len(parameter.shape) < 2:
            layers[-1].rest.append(parameter)
        else:
            layers.append(LayerParameters(parameter))
    if not layers[0].rest:
        del layers[0]
    _assign_recurrent_biases(layers)
    for layer in layers:
        if layer.weight is not None:
            # an odd number of vectors as long as the outputs begins with a bias
            fitting = [p for p in layer.rest if p.shape == layer.weight.shape[:1]]
            if len(fitting) % 2:
                layer.bias = fitting[0]
                layer.rest.remove(layer.bias)
        _assign_norms(layer)
    return layers


def _assign_recurrent_biases(layers: Sequence[LayerParameters]) -> None:
    """The biases of GRUs and LSTMs: two vectors after W_ih and W_hh, as long as both.

    A norm of two parallel projections can have these shapes, too. Then the next weight
    reads all of their outputs, which the gates of a recurrent layer are not.
    """
    following = [*layers[2:], LayerParameters(None)]
    for first, second, third in zip(layers, layers[1:], following, strict=False):
        if first.rest or not _have_gates(first.weight, second.weight):
            continue
        assert second.weight is not None, "it has gates"
        rows = second.weight.shape[0]
        biases = [p for p in second.rest if p.shape == (rows,)]
        if len(biases) != 2 or biases != second.rest[:2]:
            continue
        if third.weight is None or slot_shape(third.weight.shape, rows) is None:
            second.bias, second.recurrent_bias = biases
            del second.rest[:2]


def _have_gates(first: Parameter | None, second: Parameter | None) -> bool:
    """Whether two weights have the shapes of W_ih and W_hh, with 3 or 4 gates."""
    if first is None or second is None:
        return False
    inputs, hidden = first.shape, second.shape
    if len(inputs) != 2 or len(hidden) != 2 or inputs[0] != hidden[0]:
        return False
    return hidden[0] in (3 * hidden[1], 4 * hidden[1])


def _assign_norms(layer: LayerParameters) -> None:
    """Two vectors of one size in a row are a norm."""
    vectors = layer.rest
    layer.rest = []
    k = 0
    while k < len(vectors):
        first, *second = vectors[k : k + 2]
        if second and len(first.shape) == 1 and second[0].shape == first.shape:
            layer.norms.append(Norm(first, second[0]))
            k += 2
        else:
            layer.rest.append(first)
            k += 1


# Embeddings


def _embeddings(layers: Sequence[LayerParameters]) -> set[Parameter]:
    """Weights that are embeddings: the first matrices, if the next layer reads their
    columns and not their rows.

    An output layer may be listed before them, with the weight that it shares with an
    embedding. Then there are several embeddings of different lengths, and no layer
    reads their rows.
    """
    # weights that may be embeddings, in runs between other weights
    runs: list[set[Parameter]] = [set()]
    weights = [layer.weight for layer in layers if layer.weight is not None]
    for k, layer in enumerate(layers):
        if layer.weight is None:
            continue
        if _may_be_embedding(layers[k : k + 2], weights[0]):
            runs[-1].add(layer.weight)
        else:
            runs.append(set())
    if runs[0]:
        return runs[0]
    read = set(map(_inputs, layers))
    for run in runs:
        lengths = {weight.shape[0] for weight in run}
        if len(lengths) > 1 and read.isdisjoint(lengths):
            return run
    return set()


def _may_be_embedding(layers: Sequence[LayerParameters], first: Parameter) -> bool:
    """Whether what follows a layer reads the columns of its weight and not its rows.

    layers: the layer, and the next if there is one. first: the first weight of all.
    """
    layer, *following = layers
    weight = layer.weight
    assert weight is not None, "only layers with a weight come here"
    if layer.bias is not None or len(weight.shape) != 2 or weight.is_square:
        return False
    if following and following[0].recurrent_bias is not None:
        return False  # W_ih of a recurrent layer
    rows, columns = weight.shape
    if weight is first:
        vector = _vector_of_columns(layer)
        if vector is not None and not vector.name.endswith("bias"):
            return True  # the scale of a norm follows
    elif rows in (first.shape[1], 3 * columns):
        return False  # reads an embedding, or produces queries, keys and values
    if not layer.norms and following:
        return _inputs(following[0]) == columns
    return _norm_inputs(layer) == columns


def _vector_of_columns(layer: LayerParameters) -> Parameter | None:
    """The first vector after a weight, if it has the length of its columns and not of
    its rows."""
    if layer.weight is None or layer.bias is not None or not layer.rest:
        return None
    shape = layer.weight.shape
    vector = layer.rest[0]
    return vector if vector.shape == shape[1:] != shape[:1] else None


def _inputs(layer: LayerParameters) -> int | None:
    """Number of neurons that a layer reads; None if its parameters do not show it."""
    if layer.weight is None:
        return _norm_inputs(layer)
    is_in_out = layer.is_in_out or _vector_of_columns(layer) is not None
    return layer.weight.shape[0 if is_in_out else 1]


def _norm_inputs(layer: LayerParameters) -> int | None:
    return layer.norms[0].scale.shape[0] if layer.norms else None


# Attention projections and parallel branches


def _uncertain(
    parameters: Sequence[Parameter], layers: Sequence[LayerParameters]
) -> set[Parameter]:
    """Square matrices that may be parallel projections and so stay unconnected.

    In a plain chain that begins with a weight that is not square, square matrices are
    layers, unless names are those of attention. Elsewhere two or more in a row may be
    query, key, value and output projections.
    """
    has_attention = any(PROJECTION.search(p.name) for p in parameters)
    if not has_attention and _is_plain_chain(layers):
        return set()
    weights = [layer.weight for layer in layers if layer.weight is not None]
    uncertain: set[Parameter] = set()
    for first, second in pairwise(weights):
        if first.is_square and second.shape == first.shape:
            uncertain |= {first, second}
    return uncertain


def _is_plain_chain(layers: Sequence[LayerParameters]) -> bool:
    """Whether every layer is a weight that fits the layer before, perhaps with a bias,
    and the first is not square."""
    outputs: int | None = None
    for layer in layers:
        if layer.weight is None or layer.rest or layer.norms:
            return False
        shape = layer.weight.shape
        shape = shape[::-1] if layer.is_in_out else shape
        if outputs is None and shape[0] == shape[1]:
            return False
        if outputs is not None and slot_shape(shape, outputs, smallest=2) is None:
            return False
        outputs = shape[0]
    return True
