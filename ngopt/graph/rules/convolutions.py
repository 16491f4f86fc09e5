"""Convolutions: channels are neurons, kernel positions slots."""

from __future__ import annotations

from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from ngopt.graph.rules.entries import as_neurons
from ngopt.graph.rules.layers import USES, add_bias, position_mixing
from ngopt.graph.rules.places import join_places
from ngopt.graph.rules.registry import register_rule
from ngopt.graph.tracing.elements import Elements
from ngopt.graph.tracing.tracer import Tracer
from ngopt.graph.tracing.values import Neurons, Unknown, Value, same_along

aten = torch.ops.aten


@register_rule(aten.conv1d, aten.conv2d, aten.conv3d)
def convolution(
    tracer: Tracer,
    call: Node,
    x: Value,
    weight: Value,
    bias: Value = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Value:
    """Channels are neurons, kernel positions slots (Kofinas et al. 2024, section 2.2).

    W (n_out, n_in / g, *k).
    """
    if not isinstance(weight, Elements):
        return tracer.unknown(call)
    x = as_neurons(tracer, call, x)
    kernel = weight.shape[2:]
    channel = -len(kernel) - 1
    # along places it is a layer between these, and channels stay, as the gate in mixer
    is_pointwise = prod(kernel) == groups == 1
    if is_pointwise and _is_one_neuron(tracer, x.labels, channel):
        matrix = weight.apply(lambda w: w.flatten(1))
        shape = tracer.shape_of(call)
        return position_mixing(tracer, call, x, matrix, bias, shape, channel)
    cells = weight.apply(lambda w: w.unflatten(0, (groups, -1)))
    return _convolution(tracer, call, x, cells, bias)


@register_rule(aten.conv_transpose1d, aten.conv_transpose2d, aten.conv_transpose3d)
def transposed_convolution(
    tracer: Tracer,
    call: Node,
    x: Value,
    weight: Value,
    bias: Value = None,
    stride: Any = 1,
    padding: Any = 0,
    output_padding: Any = 0,
    groups: int = 1,
    dilation: Any = 1,
) -> Value:
    """As a convolution, with W (n_in, n_out / g, *k)."""
    if not isinstance(weight, Elements):
        return tracer.unknown(call)
    x = as_neurons(tracer, call, x)
    # (g, n_in / g, n_out / g, *k) before axes are exchanged
    cells = weight.apply(lambda w: w.unflatten(0, (groups, -1)).transpose(1, 2))
    return _convolution(tracer, call, x, cells, bias)


def _convolution(
    tracer: Tracer,
    call: Node,
    x: Neurons,
    cells: Elements,
    bias: Value,
) -> Value:
    """cells: (g, n_out / g, n_in / g, *k)."""
    shape = tracer.shape_of(call)
    kernel = cells.shape[3:]
    maps, which = _different_maps(tracer, x.labels, -len(kernel) - 1)
    counts = [len(rows) for rows in maps]
    # each row is a use of the whole weight; a map of constants alone has none
    if sum(counts) > USES or 0 in counts:
        return Unknown(shape)
    channels = [_new_channels(tracer, call, rows, cells, bias) for rows in maps]
    # as in shared, where halves of the neurons are in the batch
    labels = torch.stack(channels)[which]  # (*batch, n_out)
    space = [1] * len(kernel)
    labels = labels.reshape(*labels.shape, *space)
    return Neurons(labels.expand(shape), is_pristine=True)


def _new_channels(
    tracer: Tracer,
    call: Node,
    rows: Tensor,
    cells: Elements,
    bias: Value,
) -> Tensor:
    """New neurons (n_out,) with edges from the channels of a map, in one or several rows (r, n_in).

    cells: (g, n_out / g, n_in / g, *k).
    """
    groups, n_target, n_source, *_ = cells.shape
    channels = tracer.new_layer(cells, groups * n_target)
    targets = channels.reshape(groups, n_target, 1)
    for row in rows:
        row = tracer.source_nodes(row, tracer.name_of(cells))
        sources = row.reshape(groups, 1, n_source)
        tracer.edges(cells, sources, targets, call=call)
        if len(rows) > 1:
            tracer.pin(row)  # which of them is where matters
    add_bias(tracer, bias, channels)
    return channels


def _is_one_neuron(tracer: Tracer, labels: Tensor, channel: int) -> bool:
    """Whether the channels of each place are one neuron, and those of another place another.

    Then they are positions.
    """
    (cut,) = tracer.nodes.find_all(labels)
    # a single channel is one neuron in any case
    if labels.shape[channel] == 1 or not same_along(cut, channel):
        return False
    return cut.unique().numel() > 1


def _different_maps(
    tracer: Tracer,
    labels: Tensor,
    channel: int,
) -> tuple[list[Tensor], Tensor]:
    """The different rows of channels in space, (r, n) for each different batch entry.

    Also which one is where, (*batch). Channels are other neurons in other places behind a pixel
    shuffle, say.
    """
    # first: behind a linear layer that makes a map each place has another row until then
    join_places(tracer, labels, channel)
    rows, which = tracer.unify_rows(labels, channel)
    # channel is negative; along dimensions in which rows only repeat `which` may have length 1
    batch = which.shape[: labels.dim() + channel]
    maps = which.reshape(batch.numel(), -1)
    found = [tuple(places.unique().tolist()) for places in maps]
    different = list(dict.fromkeys(found))
    present = []
    for places in different:
        own = rows[list(places)]
        is_present = (own > 0).any(1)
        present.append(own[is_present])
    numbers = [different.index(places) for places in found]
    return present, torch.tensor(numbers).reshape(batch)
