"""Convolutions: channels are neurons, kernel positions slots."""

from __future__ import annotations

from math import prod

import torch
from torch import Tensor
from torch.fx import Node

from ngopt.graph.rules.conversions import as_neurons
from ngopt.graph.rules.feature_maps import unify_channel_places
from ngopt.graph.rules.linear import MAX_USES, add_bias, linear_over_positions
from ngopt.graph.rules.registry import register_rule
from ngopt.graph.tracing.tracer import Tracer
from ngopt.graph.tracing.values import Elements, Neurons, Unknown, Value, same_along

aten = torch.ops.aten


@register_rule(aten.conv1d, aten.conv2d, aten.conv3d)
def convolution(
    tracer: Tracer, call: Node, x: Value, weight: Value, bias: Value = None, *_
) -> Value:
    """W (n_out, n_in / g, *k); Kofinas et al. 2024, section 2.2."""
    if not isinstance(weight, Elements):
        return tracer.unknown(call)
    x = as_neurons(tracer, x)
    kernel = weight.shape[2:]
    channel = -len(kernel) - 1
    kernels = _by_group(tracer, call, weight)
    is_pointwise = prod(kernel) == kernels.shape[0] == 1
    # a pointwise convolution of positions: a layer between these, and channels stay
    if is_pointwise and _are_positions(tracer, x.labels, channel):
        matrix = weight.apply(lambda w: w.flatten(1))
        shape = tracer.shape_of(call)
        return linear_over_positions(tracer, call, x, matrix, bias, shape, channel)
    return _convolution(tracer, call, x, kernels, bias)


@register_rule(aten.conv_transpose1d, aten.conv_transpose2d, aten.conv_transpose3d)
def transposed_convolution(
    tracer: Tracer, call: Node, x: Value, weight: Value, bias: Value = None, *_
) -> Value:
    """W (n_in, n_out / g, *k)."""
    if not isinstance(weight, Elements):
        return tracer.unknown(call)
    x = as_neurons(tracer, x)
    # (g, n_in / g, n_out / g, *k)
    kernels = _by_group(tracer, call, weight)
    kernels = kernels.apply(lambda w: w.transpose(1, 2))
    return _convolution(tracer, call, x, kernels, bias)


def _by_group(tracer: Tracer, call: Node, weight: Elements) -> Elements:
    """A weight (n, *rest) as (groups, n / groups, *rest)."""
    groups = tracer.argument(call, "groups")
    return weight.apply(lambda w: w.unflatten(0, (groups, -1)))


def _convolution(
    tracer: Tracer, call: Node, x: Neurons, kernels: Elements, bias: Value
) -> Value:
    """kernels: (g, n_out / g, n_in / g, *k)."""
    shape = tracer.shape_of(call)
    kernel = kernels.shape[3:]
    channel = -len(kernel) - 1
    maps, which = _different_maps(tracer, x.labels, channel)
    counts = list(map(len, maps))
    # each row is a use of the whole weight; a map of constants alone has no row
    if sum(counts) > MAX_USES or 0 in counts:
        return Unknown(shape)
    channels = []
    for rows in maps:
        new = _new_channels(tracer, call, rows, kernels, bias)
        channels.append(new)
    # batch entries may have different neurons
    labels = torch.stack(channels)[which]  # (*batch, n_out)
    space = [1] * len(kernel)
    labels = labels.reshape(*labels.shape, *space)
    return Neurons(labels.expand(shape), is_pristine=True)


def _new_channels(
    tracer: Tracer, call: Node, rows: Tensor, kernels: Elements, bias: Value
) -> Tensor:
    """New neurons (n_out,) with edges from the channels of all rows (r, n_in).

    kernels: (g, n_out / g, n_in / g, *k).
    """
    groups, n_target, n_source, *_ = kernels.shape
    channels = tracer.new_layer(kernels, groups * n_target)
    targets = channels.reshape(groups, n_target, 1)
    for row in rows:
        row = tracer.source_nodes(row, tracer.name_of(kernels))
        sources = row.reshape(groups, 1, n_source)
        tracer.edges(kernels, sources, targets, call=call)
        if len(rows) > 1:
            tracer.pin(row)  # the graph does not contain the place of each row
    add_bias(tracer, bias, channels)
    return channels


def _are_positions(tracer: Tracer, labels: Tensor, channel: int) -> bool:
    """Whether all channels of a place are one neuron, and places differ."""
    (cut,) = tracer.nodes.find_all(labels)
    # a single channel is one neuron in any case
    if labels.shape[channel] == 1 or not same_along(cut, channel):
        return False
    return cut.unique().numel() > 1


def _different_maps(
    tracer: Tracer, labels: Tensor, channel: int
) -> tuple[list[Tensor], Tensor]:
    """The rows of channels (r, n) in each different map, and the number of each map.

    The numbers have the shape of the batch. A map has several rows where channels are
    different neurons at different places, as behind a pixel shuffle.
    """
    # first: behind a linear layer that makes a map, each place has another row
    unify_channel_places(tracer, labels, channel)
    rows, which = tracer.unify_rows(labels, channel)
    # channel is negative; `which` may have length 1 along dimensions of repeats
    batch = which.shape[: labels.dim() + channel]
    number_of_rows: dict[tuple[int, ...], int] = {}
    numbers = []
    for places in which.reshape(batch.numel(), -1):
        own = tuple(places.unique().tolist())
        number = number_of_rows.setdefault(own, len(number_of_rows))
        numbers.append(number)
    maps = []
    for own in number_of_rows:
        different = rows[list(own)]
        has_neuron = (different > 0).any(1)
        maps.append(different[has_neuron])
    return maps, torch.tensor(numbers).reshape(batch)
