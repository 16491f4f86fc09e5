"""PNA with FiLM messages along the edges of a chunk, as Triton kernels.

Hidden values and messages stay in registers. With one call for each operation they are
written to memory and read again: at a width of 32 in bfloat16 about 1,100 bytes an edge
for the messages of a layer, of which the kernels read 128, and 700 bytes for new edges,
of which the kernel reads and writes 128.

Edges are (groups, n_target, n_source, tiles, width), without a batch. Statistics and
products are accumulated in float32.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ngopt.metanets.graph_data.graph_tensors import EdgeChunk
from ngopt.metanets.layers.aggregation import (
    TO_SOURCES,
    TO_TARGETS,
    Axes,
    MessageStatistics,
)
from ngopt.metanets.layers.graph_layer import EndTerms

# Neurons that receive messages, and messages to each that a program computes at once.
RECEIVERS, MESSAGES = 8, 8
# Programs that keep a GPU busy, and the fewest messages for each of their neurons.
PROGRAMS, MIN_MESSAGES = 1024, 64
# Edges that a program computes at once, and how often.
EDGES, REPEATS = 64, 8


@triton.jit
def _matrix(weight, first, WIDTH: tl.constexpr, dtype: tl.constexpr):
    """Rows (WIDTH, WIDTH) of a weight from the first on, transposed."""
    c = tl.arange(0, WIDTH)
    rows = weight + (first + c[:, None]) * WIDTH
    return tl.load(rows + c[None, :]).to(dtype).trans()


@triton.jit
def _vector(bias, first, WIDTH: tl.constexpr):
    values = tl.load(bias + first + tl.arange(0, WIDTH))
    return values.to(tl.float32)[None, :]


@triton.jit
def _moments(
    mean, squares, counts, total,
    RECEIVERS: tl.constexpr, MESSAGES: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """Mean and variance of each receiver from those of its rows (Chan et al. 1983).

    squares: sums of squares. counts: messages of each row. total: of each receiver.
    """
    counts = tl.reshape(counts.to(tl.float32), (MESSAGES, RECEIVERS, 1))
    mean = tl.reshape(mean, (MESSAGES, RECEIVERS, WIDTH))
    center = tl.sum(mean * counts, 0) / total
    between = mean - center[None, :, :]
    squares = tl.reshape(squares, (MESSAGES, RECEIVERS, WIDTH))
    return center, tl.sum(squares + between * between * counts, 0) / total


@triton.jit(do_not_specialize=["groups", "n", "messages", "length"])
def _statistics(
    edges, weight, bias, receiver, sender, out, edge_group, edge_receiver, edge_sender,
    receiver_group, receiver_row, sender_group, sender_row, groups, n, messages, tiles,
    length,
    WIDTH: tl.constexpr, RECEIVERS: tl.constexpr, MESSAGES: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Mean, variance, minimum and maximum of some messages to some neurons.

    receiver, sender: terms of the neurons that receive and that send. out: (4, splits,
    groups, n, WIDTH). length: messages of a split.
    """
    dtype: tl.constexpr = edges.dtype.element_ty
    blocks = tl.cdiv(n, RECEIVERS)
    group = (tl.program_id(0) // blocks).to(tl.int64)
    first = tl.program_id(0) % blocks * RECEIVERS
    start = tl.program_id(1) * length
    stop = tl.minimum(start + length, messages)
    # row: a receiver, and a place among its messages
    row = tl.arange(0, RECEIVERS * MESSAGES)
    place = row // RECEIVERS
    i = (first + row % RECEIVERS).to(tl.int64)
    has_receiver = i < n
    c = tl.arange(0, WIDTH)[None, :]
    to_term = receiver + group * receiver_group + i[:, None] * receiver_row + c
    term_here = tl.load(to_term, has_receiver[:, None], 0.0).to(tl.float32)
    edges += group * edge_group + i[:, None] * edge_receiver + c
    sender += group * sender_group + c
    to_scale = _matrix(weight, 0, WIDTH, dtype)
    to_shift = _matrix(weight, WIDTH, WIDTH, dtype)
    scale_bias = _vector(bias, 0, WIDTH)
    shift_bias = _vector(bias, WIDTH, WIDTH)

    # of the messages of each row so far (Welford 1962)
    mean = tl.zeros((RECEIVERS * MESSAGES, WIDTH), tl.float32)
    squares = mean
    low = mean + float("inf")
    high = mean - float("inf")
    count = 0.0
    for begin in range(start, stop, MESSAGES):
        number = begin + place
        has_edge = (has_receiver & (number < stop))[:, None]
        j = (number // tiles).to(tl.int64)[:, None]
        tile = (number % tiles)[:, None]
        e = tl.load(edges + j * edge_sender + tile * WIDTH, has_edge, 0.0)
        term = tl.load(sender + j * sender_row, has_edge, 0.0).to(tl.float32)
        term += term_here
        scale = tl.dot(e, to_scale, input_precision=PRECISION) + scale_bias
        shift = tl.dot(e, to_shift, input_precision=PRECISION) + shift_bias
        x = scale * term + shift
        count += 1.0
        step = tl.where(has_edge, x - mean, 0.0)
        mean += step * (1 / count)
        squares += step * tl.where(has_edge, x - mean, 0.0)
        low = tl.minimum(low, tl.where(has_edge, x, float("inf")))
        high = tl.maximum(high, tl.where(has_edge, x, float("-inf")))

    counts = tl.maximum(tl.cdiv(stop - start - place, MESSAGES), 0)
    total = (stop - start).to(tl.float32)
    mean, var = _moments(mean, squares, counts, total, RECEIVERS, MESSAGES, WIDTH)
    low = tl.min(tl.reshape(low, (MESSAGES, RECEIVERS, WIDTH)), 0)
    high = tl.max(tl.reshape(high, (MESSAGES, RECEIVERS, WIDTH)), 0)
    k = (first + tl.arange(0, RECEIVERS)).to(tl.int64)[:, None]
    field = tl.num_programs(1).to(tl.int64) * groups * n * WIDTH
    out += ((tl.program_id(1) * groups + group) * n + k) * WIDTH + c
    tl.store(out, mean, k < n)
    tl.store(out + field, var, k < n)
    tl.store(out + 2 * field, low, k < n)
    tl.store(out + 3 * field, high, k < n)


@triton.jit(do_not_specialize=["count", "targets", "sources"])
def _next_edges(
    edges, target, source, weight, bias, out_weight, out_bias, out, target_group,
    target_row, source_group, source_row, count, targets, sources, tiles,
    WIDTH: tl.constexpr, EDGES: tl.constexpr, REPEATS: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    dtype: tl.constexpr = edges.dtype.element_ty
    c = tl.arange(0, WIDTH)[None, :]
    inner = _matrix(weight, 0, WIDTH, dtype)
    outer = _matrix(out_weight, 0, WIDTH, dtype)
    inner_bias = _vector(bias, 0, WIDTH)
    outer_bias = _vector(out_bias, 0, WIDTH)
    for k in range(REPEATS):
        first = (tl.program_id(0) * REPEATS + k) * EDGES
        i = first + tl.arange(0, EDGES)
        is_there = (i < count)[:, None]
        s = i // tiles
        t = s // sources
        g = (t // targets).to(tl.int64)
        to_target = (g * target_group + t % targets * target_row)[:, None] + c
        to_source = (g * source_group + s % sources * source_row)[:, None] + c
        place = i.to(tl.int64)[:, None] * WIDTH + c
        e = tl.load(edges + place, is_there, 0.0)
        x = tl.dot(e, inner, input_precision=PRECISION) + inner_bias
        x += tl.load(target + to_target, is_there, 0.0).to(tl.float32)
        x += tl.load(source + to_source, is_there, 0.0).to(tl.float32)
        x = x / (1 + tl.exp(-x))
        x = tl.dot(x.to(dtype), outer, input_precision=PRECISION) + outer_bias
        x += e.to(tl.float32)
        tl.store(out + place, x.to(dtype), is_there)


def messages(
    layer: Any, edges: Tensor, terms: EndTerms, chunk: EdgeChunk
) -> tuple[MessageStatistics, MessageStatistics]:
    """`PNALayer.messages` of a layer."""
    width = edges.shape[-1]
    targets, sources = (x.split(width, -1) for x in terms.at_ends(chunk))
    weights = layer.film.weight.split(2 * width)
    biases = layer.film.bias.split(2 * width)
    directions = []
    for k, axes in enumerate((TO_TARGETS, TO_SOURCES)):
        film = weights[k], biases[k]
        statistics = film_statistics(edges, film, targets[k], sources[k], axes)
        directions.append(MessageStatistics.of(edges, axes, statistics))
    return directions[0], directions[1]


def film_statistics(
    edges: Tensor, film: tuple[Tensor, Tensor], target: Tensor, source: Tensor,
    axes: Axes,
) -> Tensor:  # fmt: skip
    """`pna.statistics` in one tensor, (4, *edges.shape), 1 along `axes`.

    film: weight and bias of scale and shift, (2 width, width) and (2 width,). target,
    source: (groups, n_target, 1, 1, width) and (groups, 1, n_source, 1, width). axes:
    of the edges that are reduced.
    """
    edges = edges.contiguous()
    groups, _, _, tiles, width = edges.shape
    receiver_axis, sender_axis = 1, 2
    receiver, sender = target, source
    if axes != TO_TARGETS:
        receiver_axis, sender_axis = sender_axis, receiver_axis
        receiver, sender = sender, receiver
    n = edges.shape[receiver_axis]
    count = edges.shape[sender_axis] * tiles  # messages to each receiver
    blocks = groups * triton.cdiv(n, RECEIVERS)
    programs_of_block = triton.cdiv(PROGRAMS, blocks)
    length = max(MIN_MESSAGES, triton.cdiv(count, programs_of_block))
    splits = triton.cdiv(count, length)
    out = edges.new_empty(4, splits, groups * n, width, dtype=torch.float32)
    weight, bias = (x.contiguous() for x in film)
    edge_strides = [edges.stride(axis) for axis in (0, receiver_axis, sender_axis)]
    receiver_strides = receiver.stride(0), receiver.stride(receiver_axis)
    sender_strides = sender.stride(0), sender.stride(sender_axis)
    programs: Any = _statistics[(blocks, splits)]
    with torch.cuda.device_of(edges):
        programs(
            edges, weight, bias, receiver, sender, out, *edge_strides,
            *receiver_strides, *sender_strides, groups, n, count, tiles, length, width,
            RECEIVERS, MESSAGES, _precision(edges), num_warps=8,
        )  # fmt: skip
    shape = [4, *edges.shape]
    for axis in axes:
        shape[1 + axis] = 1
    return _merged(out, count, length).to(edges.dtype).view(shape)


def _merged(parts: Tensor, messages: int, length: int) -> Tensor:
    """Statistics (4, m, width) of those of splits, (4, splits, m, width).

    length: messages of a split; the last one may have fewer.
    """
    splits = parts.shape[1]
    if splits == 1:
        return parts[:, 0]
    first = torch.arange(0, messages, length, device=parts.device)
    lengths = (messages - first).clamp_(max=length)
    share = lengths.view(-1, 1, 1) / messages
    means, variances, lows, highs = parts
    mean = (share * means).sum(0)
    squares = variances + (means - mean).square()
    var = (share * squares).sum(0)
    return torch.stack([mean, var, lows.amin(0), highs.amax(0)])


def next_edges(layer: Any, edges: Tensor, terms: EndTerms, chunk: EdgeChunk) -> Tensor:
    """`PNALayer.next_edges` of a layer: edges + edge_out(silu(edge(edges) + target +
    source)); for shapes see `film_statistics`."""
    target, source = terms.at_ends(chunk)
    inner, outer = layer.edge, layer.edge_out
    edges = edges.contiguous()
    out = torch.empty_like(edges)
    _, targets, sources, tiles, width = edges.shape
    count = edges.numel() // width
    weights = [x.contiguous() for x in (inner.weight, inner.bias)]
    weights += [x.contiguous() for x in (outer.weight, outer.bias)]
    strides = target.stride(0), target.stride(1), source.stride(0), source.stride(2)
    programs: Any = _next_edges[(triton.cdiv(count, EDGES * REPEATS),)]
    with torch.cuda.device_of(edges):
        programs(
            edges, target, source, *weights, out, *strides, count, targets, sources,
            tiles, width, EDGES, REPEATS, _precision(edges), num_stages=2,
        )  # fmt: skip
    return out


def _precision(edges: Tensor) -> str:
    """Of products of float32: as exact as without the kernels."""
    return "ieee" if edges.itemsize > 2 else "tf32"
