"""NG-GNN: PNA with FiLM messages and edge updates on the blocks of a neural graph (Kofinas et al. 2024, section 3).

Departures from the paper's description: messages flow both ways along every edge, each way with its
own weights and aggregation, instead of transposed features on the edges; nodes and edges have
residual connections, and nodes a LayerNorm; positions are those of `encoders.node_positions`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import log, prod

import torch
from torch import Tensor, nn
from torch.nn.functional import silu

from ngopt.features import NUM_FEATURES
from ngopt.graph.core import BIAS_KINDS, EDGE_KINDS, NODE_KINDS, Bias, EdgeBlock, GraphValues, NeuralGraph, kind_code
from ngopt.models.encoders import (
    ACTIVATIONS,
    POSITION_FEATURES,
    SlotDecoder,
    SlotEncoder,
    activation_codes,
    kernel_tiles,
    node_positions,
)
from ngopt.models.feedforward import FeedForward, UpdateMLP
from ngopt.models.messages import Messages, index_tensor, join, select_neurons
from ngopt.models.metanet import Metanet

# Inside the root of the standard deviation, so that its derivative is bounded where messages tie.
STD_EPSILON = 1e-5
AGGREGATORS = ("mean", "min", "max", "std")
SCALERS = ("identity", "amplification")


@dataclass(frozen=True)
class GNNConfig:
    """width: features of nodes, edges and messages. layers: of message passing.

    d_out: features that the GNN gives the FF for each parameter. kernel: largest (height, width) of
    a kernel on one edge. log_degree: mean of log(degree + 1) over the graphs of meta-training, the
    constant of the amplification scaler (Corso et al. 2020, Eq. 5). hidden, output_scale,
    magnitude_scale, nominal_step: as in `FeedForwardConfig`.
    """

    width: int = 32
    layers: int = 2
    d_out: int = 8
    kernel: tuple[int, int] = (3, 3)
    log_degree: float = 4.0
    hidden: tuple[int, ...] = (32, 32)
    output_scale: float = 0.01
    magnitude_scale: float = 0.001
    nominal_step: float = 1e-3


class PNALayer(nn.Module):
    """One round of messages between neighbouring groups.

    message (Eq. 4):   m = scale(e) * phi([v_target, v_source]) + shift(e), for each direction
    nodes:             v + silu(norm(linear([v, aggregates of both directions])))
    edges (Eq. 3):     e + linear(silu(linear([v_target, e, v_source])))

    Aggregates are mean, min, max and std of the messages, each with the scalers identity and
    amplification, log(degree + 1) / log_degree (Corso et al. 2020).

    Shapes: nodes one (*batch, n, width) a group; edges (*batch, all edges, width), block after block.
    """

    def __init__(self, width: int, log_degree: float):
        super().__init__()
        self.log_degree = log_degree
        self.film = nn.Linear(width, 4 * width)  # scale and shift, forward and backward
        self.target = nn.Linear(width, 3 * width)  # to forward and backward messages and the edge update
        self.source = nn.Linear(width, 3 * width, bias=False)
        self.update = nn.Linear((1 + 2 * len(AGGREGATORS) * len(SCALERS)) * width, width)
        self.norm = nn.LayerNorm(width)
        self.edge = nn.Linear(width, width)
        self.edge_out = nn.Linear(width, width)

    def forward(
        self, nodes: Sequence[Tensor], edges: Tensor, blocks: Sequence[EdgeBlock], shapes: Sequence[Sequence[int]]
    ) -> tuple[list[Tensor], Tensor]:
        incoming: list[list[Messages]] = [[] for _ in nodes]
        outgoing: list[list[Messages]] = [[] for _ in nodes]
        films, old = split_edges(self.film(edges), shapes), split_edges(self.edge(edges), shapes)
        targets, sources = [self.target(v) for v in nodes], [self.source(v) for v in nodes]
        hidden = []
        for block, film, edge in zip(blocks, films, old, strict=True):
            g, t, s = block.shape
            target = select_neurons(targets[block.target], block.target_index).unflatten(-2, (g, t))
            source = select_neurons(sources[block.source], block.source_index).unflatten(-2, (g, s))
            # (*batch, g, t, 1, 1, 3 width) + (*batch, g, 1, s, 1, 3 width)
            pair = target[..., :, None, None, :] + source[..., None, :, None, :]
            forward, backward, pair = pair.chunk(3, dim=-1)
            scale_f, shift_f, scale_b, shift_b = film.chunk(4, dim=-1)
            there = (scale_f * forward + shift_f).flatten(-3, -2)  # (*batch, g, t, degree, width)
            back = (scale_b * backward + shift_b).transpose(-4, -3).flatten(-3, -2)  # (*batch, g, s, degree, width)
            incoming[block.target].append(Messages.of(there.flatten(-4, -3), block.target_index))
            outgoing[block.source].append(Messages.of(back.flatten(-4, -3), block.source_index))
            hidden.append((edge + pair).flatten(-5, -2))
        edges = edges + self.edge_out(silu(torch.cat(hidden, dim=-2)))
        return [self._update(*state) for state in zip(nodes, incoming, outgoing, strict=True)], edges

    def _update(self, node: Tensor, incoming: list[Messages], outgoing: list[Messages]) -> Tensor:
        state = torch.cat([node, self._aggregate(node, incoming), self._aggregate(node, outgoing)], dim=-1)
        return node + silu(self.norm(self.update(state)))

    def _aggregate(self, node: Tensor, messages: list[Messages]) -> Tensor:
        """All messages that reach the neurons of a group -> (*batch, n, 8 width); zeros where there are none."""
        if not messages:
            return node.new_zeros(*node.shape[:-1], len(AGGREGATORS) * len(SCALERS) * node.shape[-1])
        total = messages[0] if len(messages) == 1 and messages[0].index is None else join(messages, node)
        std = (total.var + STD_EPSILON).sqrt()
        aggregates = torch.cat([total.mean, total.low, total.high, std], dim=-1)
        if isinstance(total.degree, Tensor):
            aggregates = aggregates * (total.degree > 0)
            amplification = (total.degree + 1).log() / self.log_degree
        else:
            amplification = log(total.degree + 1) / self.log_degree
        return torch.cat([aggregates, amplification * aggregates], dim=-1)


def split_edges(edges: Tensor, shapes: Sequence[Sequence[int]]) -> list[Tensor]:
    """(*batch, all edges, width) to one (*batch, groups, n_target, n_source, tiles, width) a block."""
    pieces = edges.split([prod(shape) for shape in shapes], dim=-2)
    return [e.unflatten(-2, tuple(shape)) for e, shape in zip(pieces, shapes, strict=True)]


class GlobalFeature(nn.Module):
    """One vector for each whole graph, which all its nodes and edges see and feed (Lim et al. 2024, Eq. 3 to 5).

    u <- u + linear(silu(linear([u, mean of nodes, mean of edges]))); nodes and edges then get a linear
    map of it each.

    Shapes: u (*batch, graphs, width); nodes one (*batch, n, width) a group; edges one
    (*batch, groups, n_target, n_source, tiles, width) a block. `graph.members` says what belongs where.
    """

    def __init__(self, width: int):
        super().__init__()
        self.inner = nn.Linear(3 * width, width)
        self.outer = nn.Linear(width, width)
        self.to_nodes = nn.Linear(width, width, bias=False)
        self.to_edges = nn.Linear(width, width, bias=False)

    def forward(
        self, u: Tensor, nodes: Sequence[Tensor], edges: Sequence[Tensor], graph: NeuralGraph
    ) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        members = graph.members or (0,) * len(graph.groups)
        owners = [members[block.target] for block in (*graph.weights, *graph.constants)]
        flat = [e.flatten(-5, -2) for e in edges]
        means = [self._means(u, parts, of) for parts, of in ((nodes, members), (flat, owners))]
        u = u + self.outer(silu(self.inner(torch.cat([u, *means], dim=-1))))
        to_nodes, to_edges = self.to_nodes(u), self.to_edges(u)
        return (
            u,
            [v + to_nodes[..., m, :].unsqueeze(-2) for v, m in zip(nodes, members, strict=True)],
            [e + to_edges[..., m, None, None, None, None, :] for e, m in zip(edges, owners, strict=True)],
        )

    def _means(self, u: Tensor, parts: Sequence[Tensor], owners: Sequence[int]) -> Tensor:
        """The mean over all rows of a graph, (*batch, graphs, width); zeros for a graph without any."""
        means = []
        for k in range(u.shape[-2]):
            own = [part for part, owner in zip(parts, owners, strict=True) if owner == k]
            means.append(torch.cat(own, dim=-2).mean(-2) if own else torch.zeros_like(u[..., k, :]))
        return torch.stack(means, dim=-2)


class GraphNetwork(nn.Module):
    """Features on a neural graph to features on the same graph, through rounds of `PNALayer`.

    What nodes and edges are, their kinds, is part of their features; edges without a parameter start
    from a learned vector for their kind alone. With `activations` nodes also get one for the function
    that the network applies to them, with `global_feature` every layer a vector for the whole graph.

    Shapes: `GraphValues` with d_in features -> `GraphValues` with d_out features.
    """

    def __init__(
        self,
        d_in: int,
        d_out: int,
        width: int,
        layers: int,
        kernel: tuple[int, int],
        log_degree: float,
        activations: bool = False,
        global_feature: bool = False,
    ):
        super().__init__()
        self.width = width
        self.activations = nn.Embedding(len(ACTIVATIONS), width) if activations else None
        self.globals = nn.ModuleList(GlobalFeature(width) for _ in range(layers)) if global_feature else None
        self.edge_encoder = SlotEncoder(d_in, width, kernel, EDGE_KINDS)
        self.node_encoder = SlotEncoder(d_in, width, kernel, BIAS_KINDS)
        self.node_kinds = nn.Embedding(len(NODE_KINDS), width)
        self.position = nn.Linear(POSITION_FEATURES, width)
        self.layers = nn.ModuleList(PNALayer(width, log_degree) for _ in range(layers))
        self.edge_decoder = SlotDecoder(width, d_out, kernel, EDGE_KINDS)
        self.node_decoder = SlotDecoder(width, d_out, kernel, BIAS_KINDS)

    def forward(self, values: GraphValues, graph: NeuralGraph) -> GraphValues:
        nodes = self._encode_nodes(values, graph)
        blocks = (*graph.weights, *graph.constants)
        if blocks:
            encoded = self._encode_edges(values, graph)
            shapes = [e.shape[-5:-1] for e in encoded]
            edges = torch.cat([e.flatten(-5, -2) for e in encoded], dim=-2)
            count = 1 + max(graph.members, default=0)
            u = edges.new_zeros(*edges.shape[:-2], count, self.width)
            for k, layer in enumerate(self.layers):
                if self.globals is not None:
                    u, nodes, pieces = self.globals[k](u, nodes, split_edges(edges, shapes), graph)
                    edges = torch.cat([e.flatten(-5, -2) for e in pieces], dim=-2)
                nodes, edges = layer(nodes, edges, blocks, shapes)
            states = split_edges(edges, shapes)[: len(graph.weights)]
        else:
            states = []
        return GraphValues(
            tuple(self._decode_node(nodes[bias.group], bias) for bias in graph.biases),
            tuple(self.edge_decoder(e, b.slot_shape, b.kind) for e, b in zip(states, graph.weights, strict=True)),
        )

    def _encode_nodes(self, values: GraphValues, graph: NeuralGraph) -> list[Tensor]:
        like = (values.edges or values.biases)[0]
        batch = like.shape[:-5] if values.edges else like.shape[:-3]
        positions = node_positions(graph, like)
        kinds = [self.node_kinds.weight[kind_code(group.kind, NODE_KINDS)] for group in graph.groups]
        nodes = [
            (self.position(p) + kind).expand(*batch, group.size, self.width)
            for p, kind, group in zip(positions, kinds, graph.groups, strict=True)
        ]
        if self.activations is not None:
            codes = self.activations(activation_codes(graph, like.device))
            nodes = [v + code for v, code in zip(nodes, codes, strict=True)]
        for bias, value in zip(graph.biases, values.biases, strict=True):
            code = self.node_encoder(value, bias.slot_shape, bias.kind).sum(-2)
            node = nodes[bias.group]
            if bias.index is None:
                nodes[bias.group] = node + code
            else:
                nodes[bias.group] = node.index_add(-2, index_tensor(bias.index, node), code)
        return nodes

    def _encode_edges(self, values: GraphValues, graph: NeuralGraph) -> list[Tensor]:
        """One (*batch, groups, n_target, n_source, tiles, width) for every weight, then every constant block."""
        encoded = [self.edge_encoder(e, b.slot_shape, b.kind) for e, b in zip(values.edges, graph.weights, strict=True)]
        batch = (
            (values.edges[0].shape[:-5] if values.edges else values.biases[0].shape[:-3]) if graph.parameters else ()
        )
        for block in graph.constants:
            _, kind = self.edge_encoder.film(block.kind)
            encoded.append(kind.expand(*batch, *block.shape, 1, self.width))
        return encoded

    def _decode_node(self, node: Tensor, bias: Bias) -> Tensor:
        state = select_neurons(node, bias.index).unsqueeze(-2)
        tiles = len(kernel_tiles(bias.slot_shape, self.node_decoder.kernel))
        return self.node_decoder(state.expand(*state.shape[:-2], tiles, self.width), bias.slot_shape, bias.kind)


class NeuralGraphGNN(Metanet):
    """The metanet "ng-gnn": features go through the GNN; the FF sees them and the GNN's output.

    Values that are not finite do not enter the messages: they stay with the parameter they belong to.

    Shapes: features (*batch, numel, 14), in the order of `NeuralGraph.flatten` -> (*batch, numel).
    """

    name = "ng-gnn"
    Config = GNNConfig

    def __init__(self, config: GNNConfig | None = None):
        config = config or GNNConfig()
        super().__init__(config)
        self.gnn = GraphNetwork(
            NUM_FEATURES, config.d_out, config.width, config.layers, config.kernel, config.log_degree
        )
        self.head = UpdateMLP(NUM_FEATURES + config.d_out, config.hidden, config.output_scale, config.magnitude_scale)

    @classmethod
    def from_feedforward(cls, feedforward: FeedForward) -> NeuralGraphGNN:
        """An NG-GNN that predicts what the FF predicts: its head ignores the GNN's output at first."""
        old = feedforward.config
        metanet = cls(
            GNNConfig(
                hidden=old.hidden,
                output_scale=old.output_scale,
                magnitude_scale=old.magnitude_scale,
                nominal_step=old.nominal_step,
            )
        )
        state = feedforward.head.state_dict()
        first = state["layers.0.weight"]  # (hidden, 14)
        state["layers.0.weight"] = torch.cat([first, first.new_zeros(len(first), metanet.config.d_out)], dim=1)
        metanet.head.load_state_dict(state)
        return metanet

    def forward(self, features: Tensor, graph: NeuralGraph) -> Tensor:
        batch_dims = features.dim() - 2
        messages = graph.unflatten(features.nan_to_num(0.0, 0.0, 0.0), batch_dims)
        context = self.gnn(graph.gather(messages, batch_dims), graph)
        context = graph.flatten(graph.scatter(context, batch_dims), batch_dims)
        return self.head(torch.cat([features, context], dim=-1))
