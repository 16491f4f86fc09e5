"""PNA with FiLM messages, the layer of NG-GNN (Kofinas et al. 2024, Eq. 3 and 4)."""

from collections.abc import Sequence
from math import log
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, silu

from ngopt import chunking, devices
from ngopt.metanets.graph_data.graph_tensors import EdgeChunk, GraphIds
from ngopt.metanets.layers import aggregation
from ngopt.metanets.layers.aggregation import (
    TO_SOURCES,
    TO_TARGETS,
    Axes,
    Incoming,
    MessageStatistics,
)
from ngopt.metanets.layers.graph_layer import EndTerms, GraphLayer, flat_linear

# Added to the variance, so that the derivative of the standard deviation is bounded
# where all messages are equal.
STD_EPSILON = 1e-5
AGGREGATORS = ("mean", "min", "max", "std")
SCALERS = ("identity", "amplification")
# Of edges, for which there are kernels.
WIDTHS = 16, 32


class PNALayer(GraphLayer):
    """One round of messages between neighbouring groups.

        message (Eq. 4)  m = scale(e) * phi([v_target, v_source]) + shift(e), both ways
        nodes            v + silu(norm(linear([v, aggregates of both directions])))
        edges (Eq. 3)    e + linear(silu(linear([v_target, e, v_source])))

    Aggregates are mean, min, max and std of the messages, each with the scalers
    identity and amplification, log(degree + 1) / log_degree (Corso et al. 2020).

    Args:
        edges: Whether the layer updates the states of edges. The last one need not if
            only nodes are read.
    """

    def __init__(self, width: int, log_degree: float, edges: bool = True):
        super().__init__()
        self.width = width
        self.log_degree = log_degree
        self.film = nn.Linear(width, 4 * width)  # scale and shift, forward and backward
        # to both messages and the edge update
        self.target = nn.Linear(width, 3 * width)
        self.source = nn.Linear(width, 3 * width, bias=False)
        aggregates = len(AGGREGATORS) * len(SCALERS)
        self.update = nn.Linear((1 + 2 * aggregates) * width, width)
        self.norm = nn.LayerNorm(width)
        if edges:
            self.edge = nn.Linear(width, width)
            self.edge_out = nn.Linear(width, width)

    def messages(
        self, edges: Tensor, terms: EndTerms, chunk: EdgeChunk
    ) -> tuple[MessageStatistics, MessageStatistics]:
        if can_use_kernels(edges):
            from ngopt.metanets.layers import edge_kernels  # needs Triton

            return edge_kernels.messages(self, edges, terms, chunk)
        scale, shift, scale_back, shift_back = self._film_terms(edges)
        targets, sources = terms.at_ends(chunk)
        target, target_back = targets.split(self.width, -1)
        source, source_back = sources.split(self.width, -1)
        forward = FiLMStatistics.apply(scale, shift, target, source, TO_TARGETS)
        backward = FiLMStatistics.apply(
            scale_back, shift_back, target_back, source_back, TO_SOURCES
        )
        return (
            MessageStatistics.of(edges, TO_TARGETS, forward),
            MessageStatistics.of(edges, TO_SOURCES, backward),
        )

    def _film_terms(self, edges: Tensor) -> Sequence[Tensor]:
        """Scale and shift to targets, scale and shift to sources, (*, width) each."""
        if edges.dim() == 5:
            terms = flat_linear(edges, self.film.weight, self.film.bias)
            return terms.split(self.width, -1)
        # with a batch, rows are long only if each term is a tensor of its own
        weights = self.film.weight.split(self.width)
        biases = self.film.bias.split(self.width)
        return [linear(edges, *pair) for pair in zip(weights, biases, strict=True)]

    def next_edges(self, edges: Tensor, terms: EndTerms, chunk: EdgeChunk) -> Tensor:
        if can_use_kernels(edges):
            from ngopt.metanets.layers import edge_kernels  # needs Triton

            return edge_kernels.next_edges(self, edges, terms, chunk)
        hidden = flat_linear(edges, self.edge.weight, self.edge.bias)
        target, source = terms.at_ends(chunk)
        hidden = silu(hidden.add_(target + source))
        return flat_linear(hidden, self.edge_out.weight, self.edge_out.bias).add_(edges)

    def next_nodes(
        self,
        nodes: Sequence[Tensor],
        incoming: Sequence[Sequence[Incoming]],
        outgoing: Sequence[Sequence[Incoming]],
        graph_ids: GraphIds,
    ) -> list[Tensor]:
        new = []
        for node, *sides in zip(nodes, incoming, outgoing, strict=True):
            totals = []
            for parts in sides:
                total = aggregation.aggregated(parts, node) if parts else None
                totals.append(total)
            pieces = []
            limit = chunking.chunk_size(chunking.NEURONS, node.device)
            for neurons in chunking.even_slices(node.shape[-2], limit):
                piece = node[..., neurons, :]
                columns = [piece]
                for total in totals:
                    columns.append(self._aggregates(piece, total, neurons))
                update = self.update(torch.cat(columns, dim=-1))
                pieces.append(piece + silu(self.norm(update)))
            new.append(chunking.concatenated(pieces, -2) if pieces else node)
        return new

    def _aggregates(
        self, nodes: Tensor, total: MessageStatistics | None, neurons: slice
    ) -> Tensor:
        """Of some neurons, (*batch, n, 8 width); zeros without messages."""
        if total is None:
            columns = len(AGGREGATORS) * len(SCALERS) * self.width
            return nodes.new_zeros(*nodes.shape[:-1], columns)
        total = total.of_neurons(neurons)
        std = (total.var + STD_EPSILON).sqrt()
        aggregates = torch.cat([total.mean, total.low, total.high, std], dim=-1)
        if isinstance(total.degree, Tensor):
            aggregates = aggregates * (total.degree > 0)
            logarithm = (total.degree + 1).log()
        else:
            logarithm = log(total.degree + 1)
        amplified = logarithm / self.log_degree * aggregates
        return torch.cat([aggregates, amplified], dim=-1)


def can_use_kernels(edges: Tensor) -> bool:
    """Whether Triton kernels can compute edges: without a batch or derivatives, on a
    GPU that has products of bfloat16."""
    if torch.is_grad_enabled() or torch.compiler.is_dynamo_compiling():
        return False
    has_kernel = edges.shape[-1] in WIDTHS and edges.dtype != torch.float64
    if edges.dim() != 5 or not has_kernel or not devices.has_triton(edges.device):
        return False
    is_new = torch.cuda.get_device_capability(edges.device) >= (8, 0)
    return is_new and not devices.is_transformed()


def statistics(messages: Tensor, axes: Axes) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Mean, variance, minimum and maximum of messages `(groups, n_target, n_source,
    tiles, *batch, width)` over two axes, which stay with length 1."""
    if messages.is_cpu:
        mean = messages.mean(axes, keepdim=True)
        # several times as fast as torch.var_mean over inner axes
        var = (messages - mean).square().mean(axes, keepdim=True)
    else:
        var, mean = torch.var_mean(messages, axes, correction=0, keepdim=True)
    if messages.is_cpu or messages.shape[axes[1]] > 1:
        low = messages.amin(axes, keepdim=True)
        high = messages.amax(axes, keepdim=True)
    else:  # reads them once
        low, high = torch.aminmax(messages, dim=axes[0], keepdim=True)
    return mean, var, low, high


def gradient_of_messages(
    messages: Tensor, axes: Axes, outputs: Sequence[Tensor], gradients: Sequence[Tensor]
) -> Tensor:
    """The gradient of the messages from those of their `statistics`, the outputs.

    All messages that attain an extremum share its gradient.
    """
    mean, _, least, greatest = outputs
    to_mean, to_var, to_low, to_high = gradients
    count = messages.shape[axes[0]] * messages.shape[axes[1]]
    above = (messages - least).sign()
    below = (greatest - messages).sign()
    low = to_low / (count - above.sum(axes, keepdim=True))
    high = to_high / (count - below.sum(axes, keepdim=True))
    slope = to_var * (2 / count)
    constant = to_mean / count - slope * mean + low + high
    total = torch.addcmul(constant, slope, messages)
    total = torch.addcmul(total, low, above, value=-1)
    return torch.addcmul(total, high, below, value=-1)


class FiLMStatistics(torch.autograd.Function):
    """Statistics of messages m = scale * (target + source) + shift (Kofinas et al.
    2024, Eq. 4).

    One function with a backward pass of its own: where autograd goes step by step, the
    bool masks of minima and maxima alone take as long as all matrix products of a
    layer.

    Shapes: scale, shift `(groups, n_target, n_source, tiles, *batch, width)`, target
    `(groups, n_target, 1, 1, *batch, width)`, source `(groups, 1, n_source, 1, *batch,
    width)` -> their `statistics`. With the batch inside, broadcasts and reductions run
    over long rows.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(
        scale: Tensor, shift: Tensor, target: Tensor, source: Tensor, axes: Axes
    ) -> tuple[Tensor, ...]:
        return statistics(torch.addcmul(shift, scale, target + source), axes)

    @staticmethod
    def setup_context(
        ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]
    ) -> None:
        *tensors, ctx.axes = inputs
        ctx.save_for_backward(*tensors, *output)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        scale, shift, target, source, *outputs = ctx.saved_tensors
        sums = target + source
        messages = torch.addcmul(shift, scale, sums)
        gradient = gradient_of_messages(messages, ctx.axes, outputs, gradients)
        to_sums = gradient * scale
        to_target = to_sums.sum(TO_TARGETS, keepdim=True)
        to_source = to_sums.sum(TO_SOURCES, keepdim=True)
        return gradient * sums, gradient, to_target, to_source, None
