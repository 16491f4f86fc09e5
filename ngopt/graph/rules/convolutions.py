"""What works alike on all places of feature maps: convolutions and pools.

Channels are neurons, kernel positions slots.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import prod
from re import search
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from ngopt.graph.rules.linear import MAX_USES, add_bias, linear_over_positions
from ngopt.graph.rules.pointwise import note_function
from ngopt.graph.rules.registry import functions, register_rule
from ngopt.graph.rules.reshaping import as_neurons
from ngopt.graph.tracing.edges import Edges
from ngopt.graph.tracing.tracer import Tracer
from ngopt.graph.tracing.values import (
    Elements,
    Neurons,
    Unknown,
    Value,
    has_duplicates,
    same_along,
    without_repeats,
)

aten = torch.ops.aten

POOLS = functions("""
adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d adaptive_max_pool1d adaptive_max_pool2d
adaptive_max_pool3d avg_pool1d avg_pool2d avg_pool3d max_pool1d max_pool2d max_pool3d
max_pool2d_with_indices upsample_nearest1d upsample_nearest2d upsample_nearest3d
upsample_bilinear2d upsample_bicubic2d lp_pool2d _adaptive_avg_pool2d upsample_linear1d
upsample_trilinear3d _upsample_bilinear2d_aa
""")


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
        return linear_over_positions(tracer, call, x, matrix, bias, shape, channel)
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
    tracer: Tracer, call: Node, x: Neurons, cells: Elements, bias: Value
) -> Value:
    """cells: (g, n_out / g, n_in / g, *k)."""
    shape = tracer.shape_of(call)
    kernel = cells.shape[3:]
    maps, which = _different_maps(tracer, x.labels, -len(kernel) - 1)
    counts = [len(rows) for rows in maps]
    # each row is a use of the whole weight; a map of constants alone has none
    if sum(counts) > MAX_USES or 0 in counts:
        return Unknown(shape)
    channels = [_new_channels(tracer, call, rows, cells, bias) for rows in maps]
    # as in shared, where halves of the neurons are in the batch
    labels = torch.stack(channels)[which]  # (*batch, n_out)
    space = [1] * len(kernel)
    labels = labels.reshape(*labels.shape, *space)
    return Neurons(labels.expand(shape), is_pristine=True)


def _new_channels(
    tracer: Tracer, call: Node, rows: Tensor, cells: Elements, bias: Value
) -> Tensor:
    """New neurons (n_out,) with edges from the channels of a map, in one or several
    rows (r, n_in).

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
    """Whether the channels of each place are one neuron, and those of another place
    another.

    Then they are positions.
    """
    (cut,) = tracer.nodes.find_all(labels)
    # a single channel is one neuron in any case
    if labels.shape[channel] == 1 or not same_along(cut, channel):
        return False
    return cut.unique().numel() > 1


def _different_maps(
    tracer: Tracer, labels: Tensor, channel: int
) -> tuple[list[Tensor], Tensor]:
    """The different rows of channels in space, (r, n) for each different batch entry.

    Also which one is where, (*batch). Channels are other neurons in other places behind
    a pixel shuffle, say.
    """
    # first: behind a linear layer that makes a map each place has another row until
    # then
    unify_channel_places(tracer, labels, channel)
    rows, which = tracer.unify_rows(labels, channel)
    # channel is negative; along dimensions in which rows only repeat `which` may have
    # length 1
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


@register_rule(*POOLS)
def pool(tracer: Tracer, call: Node, x: Value, *_: Any, **__: Any) -> Value:
    """Pooling and resampling keep the channels."""
    values = call.meta["val"]
    if isinstance(values, Tensor):
        return _pooled(tracer, call, x, values.shape)
    first, *others = (value.shape for value in values)
    return (_pooled(tracer, call, x, first), *map(Unknown, others))


def _pooled(tracer: Tracer, call: Node, x: Value, shape: torch.Size) -> Value:
    if not isinstance(x, Neurons):
        return Unknown(shape)
    # a single map (channels, *space) has no batch, and comes to the function that its
    # space has
    channel = x.labels.dim() - _spatial_dims(call) - 1
    # a window lies over several neurons of a channel behind a pixel shuffle
    unify_channel_places(tracer, x.labels, channel)
    channels = tracer.unify_places(x.labels, channel)
    if channels is None:
        return Unknown(shape)
    # channels that are pooled otherwise are no twins of these, nor those that are not
    note_function(tracer, call, channels)
    space = [1] * (len(shape) - channel - 1)
    labels = channels.reshape(-1, *space)
    return Neurons(labels.expand(shape))


def _spatial_dims(call: Node) -> int:
    """2 of `max_pool2d`, as its name says."""
    found = search(r"(\d)d", str(call.target))
    assert found is not None
    return int(found[1])


def unify_channel_places(tracer: Tracer, labels: Tensor, channel: int) -> None:
    """Neurons of a map (*batch, channels, *space) become one at all places of a
    channel.

    A linear layer that makes a map, or a pixel shuffle, has a neuron for every place of
    a channel. What works alike on all places tells these apart by nothing but where
    they are: they are slots.
    """
    channel = channel % labels.dim()
    (labels,) = without_repeats([labels], keep=[channel])
    batch = labels.shape[:channel].numel()
    n = labels.shape[channel]
    rows = tracer.nodes.find(labels).movedim(channel, -1)
    maps = rows.reshape(batch, -1, n)
    # batch entries may be maps of different neurons
    for places in maps.unique(dim=0):
        # those before may have joined neurons of these
        rows = tracer.nodes.find(places).unique(dim=0)
        are_neurons = len(rows) > 1 and (rows > 0).all()
        # a neuron in two channels would make these one
        if are_neurons and not has_duplicates(rows):
            first = rows[:1].expand_as(rows)
            tracer.nodes.unify(first, rows)
            # a norm between a linear layer and its map: that layer has channels, too
            _join_partners(tracer)


def _join_partners(tracer: Tracer) -> None:
    """Joins what edges lead to one by one from joined neurons, and what they come from."""
    # finding partners adds no edges, so that one list does
    ways = list(_one_to_one(tracer.all_edges))
    changed = True
    while changed:
        joined = [_join(tracer, here, there) for here, there in ways]
        changed = any(joined)


def _one_to_one(found: Sequence[Edges]) -> Iterator[tuple[Tensor, Tensor]]:
    """Sources and targets of edges from one to one, either way round."""
    for edges in found:
        sources, targets = edges.sources, edges.targets
        if sources is None or sources.shape != targets.shape or not sources.numel():
            continue
        if has_duplicates(sources) or has_duplicates(targets):
            continue
        sources = sources.flatten()
        targets = targets.flatten()
        yield sources, targets
        yield targets, sources


def _join(tracer: Tracer, here: Tensor, there: Tensor) -> bool:
    """Joins nodes there[i] whose here[i] are one node; whether that changes any."""
    here = tracer.nodes.find(here)
    there = tracer.nodes.find(there)
    nodes, which = here.unique(return_inverse=True)
    # the minimum counts these in: as the greatest they change nothing
    oldest = torch.full_like(nodes, int(there.max()))
    oldest.scatter_reduce_(0, which, there, "amin")
    joined = oldest[which]
    if torch.equal(joined, there):
        return False
    tracer.nodes.unify(joined, there)
    return True
