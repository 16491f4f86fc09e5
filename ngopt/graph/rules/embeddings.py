"""Tables and grids whose rows data select: embedding, embedding_bag, grid_sample."""

import torch
from torch import Tensor
from torch.fx import Node

from ngopt.graph.rules.attention import product_of_activations
from ngopt.graph.rules.conversions import rearranged
from ngopt.graph.rules.pointwise import pointwise_function
from ngopt.graph.rules.registry import aten, functions, register_layer_rule
from ngopt.graph.tracing.tracer import Tracer
from ngopt.graph.tracing.values import Elements, Neurons, Unknown, Value

BAGS = functions("embedding_bag _embedding_bag _embedding_bag_forward_only")


@register_layer_rule(aten.embedding)
def embedding(tracer: Tracer, call: Node, weight: Value, index: Value, *_) -> Value:
    """Rows of a table are input nodes; W (tokens, n)."""
    if not isinstance(weight, Elements):
        return pointwise_function(tracer, call, weight)
    # data select the row: all places have the same neurons
    labels = table(tracer, call, weight).expand(tracer.shape_of(call))
    return Neurons(labels, is_pristine=True)


def table(tracer: Tracer, call: Node, weight: Elements) -> Tensor:
    """The neurons (n,) of a table (tokens, n)."""
    rows, columns = weight.shape
    tokens = tracer.nodes.new(f"{tracer.name_of(weight)}.tokens", rows, "token")
    targets = tracer.new_layer(weight, columns)
    tracer.edges(weight, tokens[:, None], targets, call=call)
    return targets


@register_layer_rule(*BAGS)
def embedding_bag(
    tracer: Tracer, call: Node, weight: Value, index: Value, *_, **__
) -> Value:
    """Rows of a table, as in `embedding`, summed or averaged over bags."""
    if not isinstance(weight, Elements):
        return tracer.unknown(call)
    result = Neurons(table(tracer, call, weight))
    # a factor for each index, (indices,)
    factors = tracer.argument(call, "per_sample_weights")
    if isinstance(factors, Neurons):
        # the product of a row, of all indices, and a matrix, of rows of the table
        left = Neurons(factors.labels[None])
        right = Neurons(result.labels.expand(len(factors.labels), -1))
        shape = torch.Size((1, len(result.labels)))
        result = product_of_activations(tracer, call.name, left, right, shape)
    return rearranged(result, lambda x: x.expand(tracer.shape_of(call)))


@register_layer_rule(aten.grid_sampler, aten.grid_sampler_2d, aten.grid_sampler_3d)
def grid_sample(tracer: Tracer, call: Node, planes: Value, grid: Value, *_) -> Value:
    """A grid (planes, features, *space): its places have edges to its features."""
    shape = tracer.shape_of(call)
    labels = None
    if isinstance(planes, Neurons):
        labels = tracer.unify_places(planes.labels, 1)
    elif isinstance(planes, Elements):
        features = []
        for k in range(planes.shape[0]):
            # each plane is sampled at coordinates of its own: places are not shared
            plane = planes.apply(lambda p, k=k: p[k].flatten(1))
            name = f"{tracer.name_of(planes)}.{k}"
            n_features, size = plane.shape
            places = tracer.nodes.new(f"{name}.places", size, "position")
            targets = tracer.nodes.new(name, n_features)
            tracer.edges(plane, places, targets[:, None], call=call)
            features.append(targets)
        labels = torch.stack(features)
    if labels is None:
        return Unknown(shape)
    # (features,) of activations, (planes, features) of a parameter
    labels = labels.reshape(*labels.shape, *[1] * (len(shape) - 2))
    return Neurons(labels.expand(shape))
