"""Convolutions, pooling and resampling: channels of feature maps are neurons, kernel
positions slots."""

from collections.abc import Iterator, Sequence
from math import prod
from re import search

import torch
from torch import Tensor
from torch.fx import Node

from ngopt.graph.rules.conversions import as_neurons
from ngopt.graph.rules.linear import MAX_USES, add_bias, linear_over_positions
from ngopt.graph.rules.pointwise import note_function
from ngopt.graph.rules.registry import functions, register_layer_rule
from ngopt.graph.tracing.blocks import Edges
from ngopt.graph.tracing.capture import packet_of
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

POOLS = functions("""
adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d adaptive_max_pool1d
adaptive_max_pool2d adaptive_max_pool3d avg_pool1d avg_pool2d avg_pool3d max_pool1d
max_pool2d max_pool3d max_pool2d_with_indices upsample_nearest1d upsample_nearest2d
upsample_nearest3d upsample_bilinear2d upsample_bicubic2d lp_pool2d _adaptive_avg_pool2d
upsample_linear1d upsample_trilinear3d _upsample_bilinear2d_aa
""")
TRANSPOSED = functions("conv_transpose1d conv_transpose2d conv_transpose3d")
REGION_POOLS = "torchvision.roi_align", "torchvision.roi_pool"
"""Maps (n, channels, *size) of n regions."""


@register_layer_rule(
    *functions("conv1d conv2d conv3d convolution"),
    *TRANSPOSED,
    "torchvision.deform_conv2d",
)
def convolution(tracer: Tracer, call: Node, x: Value, weight: Value, *_, **__) -> Value:
    """W (n_out, n_in / g, *k), or (n_in, n_out / g, *k) of a transposed convolution;
    Kofinas et al. 2024, section 2.2."""
    if not isinstance(weight, Elements):
        return tracer.unknown(call)
    x = as_neurons(tracer, x)
    kernel = weight.shape[2:]
    channel = -len(kernel) - 1
    groups = tracer.argument(call, "groups")
    kernels = weight.apply(lambda w: w.unflatten(0, (groups, -1)))
    if packet_of(call) in TRANSPOSED or tracer.argument(call, "transposed"):
        kernels = kernels.apply(lambda w: w.transpose(1, 2))
        return _convolution(tracer, call, x, kernels)
    tracer.read_features(x.labels, channel)
    is_pointwise = prod(kernel) == kernels.shape[0] == 1
    # a pointwise convolution of positions: a layer between these, and channels stay
    if is_pointwise and _are_positions(tracer, x.labels, channel):
        matrix = weight.apply(lambda w: w.flatten(1))
        bias, shape = tracer.argument(call, "bias"), tracer.shape_of(call)
        return linear_over_positions(tracer, call, x, matrix, bias, shape, channel)
    return _convolution(tracer, call, x, kernels)


def _convolution(tracer: Tracer, call: Node, x: Neurons, kernels: Elements) -> Value:
    """kernels: (g, n_out / g, n_in / g, *k)."""
    shape = tracer.shape_of(call)
    groups, n_target, n_source, *kernel = kernels.shape
    maps, which = _different_maps(tracer, x.labels, -len(kernel) - 1)
    counts = list(map(len, maps))
    # each row is a use of the whole weight; a map of constants alone has no row
    if sum(counts) > MAX_USES or 0 in counts:
        return Unknown(shape)
    outputs = []  # new neurons (n_out,) with edges from the channels of all rows
    for rows in maps:
        channels = tracer.new_layer(kernels, groups * n_target)
        targets = channels.reshape(groups, n_target, 1)
        for row in rows:
            row = tracer.source_nodes(row, tracer.name_of(kernels))
            tracer.edges(kernels, row.reshape(groups, 1, n_source), targets, call=call)
            if len(rows) > 1:
                tracer.pin(row)  # the graph does not contain the place of each row
        add_bias(tracer, tracer.argument(call, "bias"), channels)
        outputs.append(channels)
    # batch entries may have different neurons
    labels = torch.stack(outputs)[which]  # (*batch, n_out)
    labels = labels.reshape(*labels.shape, *[1] * len(kernel))
    return Neurons(labels.expand(shape), is_pristine=True)


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
    """The rows of channels (r, n) in each different map, and the number of each map,
    (*batch). A map has several rows where channels are different neurons at different
    places, as behind a pixel shuffle."""
    # first: behind a linear layer that makes a map, each place has another row
    unify_channel_places(tracer, labels, channel)
    rows, which = tracer.unify_rows(labels, channel)
    # channel is negative; `which` may have length 1 along dimensions of repeats
    batch = which.shape[: labels.dim() + channel]
    number_of_rows: dict[tuple[int, ...], int] = {}
    numbers = []
    for places in which.reshape(batch.numel(), -1):
        row_indices = tuple(places.unique().tolist())
        numbers.append(number_of_rows.setdefault(row_indices, len(number_of_rows)))
    maps = []
    for row_indices in number_of_rows:
        different = rows[list(row_indices)]
        maps.append(different[(different > 0).any(1)])
    return maps, torch.tensor(numbers).reshape(batch)


def unify_channel_places(tracer: Tracer, labels: Tensor, channel: int) -> None:
    """Each channel of a map (*batch, channels, *space) becomes one neuron.

    A linear layer that makes a map, or a pixel shuffle, has a neuron for every place of
    a channel. A function that works alike on all places distinguishes them only by
    their place, so they become slots.
    """
    channel = channel % labels.dim()
    tracer.read_features(labels, channel)
    (labels,) = without_repeats([labels], keep=[channel])
    shape = (labels.shape[:channel].numel(), -1, labels.shape[channel])
    maps = tracer.nodes.find(labels).movedim(channel, -1).reshape(shape)
    # batch entries may be maps of different neurons
    for places in maps.unique(dim=0):
        # earlier maps may have unified neurons of this one
        rows = tracer.nodes.find(places).unique(dim=0)
        are_neurons = len(rows) > 1 and (rows > 0).all()
        # a neuron of two channels would unify these
        if are_neurons and not has_duplicates(rows):
            tracer.nodes.unify(rows[:1].expand_as(rows), rows)
            # the linear layer before a norm has channels, too: edges from one to one
            # connect unified nodes to partners, which are unified
            pairs = list(_one_to_one(tracer.all_edges))
            changed = [True]
            while any(changed):
                changed = [_unify_each(tracer, *pair) for pair in pairs]


def _one_to_one(all_edges: Sequence[Edges]) -> Iterator[tuple[Tensor, Tensor]]:
    """Sources and targets of edges from one to one, and targets and sources."""
    for edges in all_edges:
        sources, targets = edges.sources, edges.targets
        if sources is None or sources.shape != targets.shape or not sources.numel():
            continue
        if not has_duplicates(sources) and not has_duplicates(targets):
            yield sources.flatten(), targets.flatten()
            yield targets.flatten(), sources.flatten()


def _unify_each(tracer: Tracer, ends: Tensor, partners: Tensor) -> bool:
    """Unifies partners[i] whose ends[i] are one node; returns whether any changed."""
    ends, partners = tracer.nodes.find(ends), tracer.nodes.find(partners)
    nodes, which = ends.unique(return_inverse=True)
    # the initial values are the maximum, so that they change no minimum
    oldest = torch.full_like(nodes, int(partners.max()))
    oldest.scatter_reduce_(0, which, partners, "amin")
    unified = oldest[which]
    if torch.equal(unified, partners):
        return False
    tracer.nodes.unify(unified, partners)
    return True


@register_layer_rule(*POOLS, *REGION_POOLS)
def pool(tracer: Tracer, call: Node, x: Value, *_, **__) -> Value:
    """The channels stay."""
    shape = tracer.shape_of(call)
    if not isinstance(x, Neurons):
        return Unknown(shape)
    # a single map (channels, *space) has no batch, but the function of its space
    digit = search(r"(\d)d", str(call.target))  # 2 for `max_pool2d`
    channel = 1 if digit is None else x.labels.dim() - int(digit[1]) - 1
    # behind a pixel shuffle a window contains several neurons of a channel
    unify_channel_places(tracer, x.labels, channel)
    channels = tracer.unify_places(x.labels, channel)
    if channels is None:
        return Unknown(shape)
    # other channels may have another pool, or none
    note_function(tracer, call, channels)
    space = [1] * (len(shape) - channel - 1)
    return Neurons(channels.reshape(-1, *space).expand(shape))
