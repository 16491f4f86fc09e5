"""NG-GNN: PNA with FiLM messages and edge updates on the blocks of a neural graph (Kofinas et al. 2024, section 3).

Departures from the paper's description: messages flow both ways along every edge, each way with its
own weights and aggregation, instead of transposed features on the edges; nodes and edges have
residual connections, and nodes a LayerNorm; positions are those of `encoders.node_positions`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import log

import torch
from torch import Tensor, nn
from torch.nn.functional import silu

from ngopt.features import NUM_FEATURES
from ngopt.graph.core import EdgeBlock, GraphValues, NeuralGraph
from ngopt.models.encoders import POSITION_FEATURES, SlotDecoder, SlotEncoder, node_positions
from ngopt.models.feedforward import FeedForward, UpdateMLP
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
        incoming: list[list[Tensor]] = [[] for _ in nodes]
        outgoing: list[list[Tensor]] = [[] for _ in nodes]
        films, old = split_edges(self.film(edges), shapes), split_edges(self.edge(edges), shapes)
        targets, sources = [self.target(v) for v in nodes], [self.source(v) for v in nodes]
        hidden = []
        for block, film, edge in zip(blocks, films, old, strict=True):
            # (*batch, n_target, 1, 1, 3 width) + (*batch, 1, n_source, 1, 3 width)
            pair = targets[block.target][..., :, None, None, :] + sources[block.source][..., None, :, None, :]
            forward, backward, pair = pair.chunk(3, dim=-1)
            scale_f, shift_f, scale_b, shift_b = film.chunk(4, dim=-1)
            incoming[block.target].append((scale_f * forward + shift_f).flatten(-3, -2))
            outgoing[block.source].append((scale_b * backward + shift_b).transpose(-4, -3).flatten(-3, -2))
            hidden.append((edge + pair).flatten(-4, -2))
        edges = edges + self.edge_out(silu(torch.cat(hidden, dim=-2)))
        return [self._update(*state) for state in zip(nodes, incoming, outgoing, strict=True)], edges

    def _update(self, node: Tensor, incoming: list[Tensor], outgoing: list[Tensor]) -> Tensor:
        state = torch.cat([node, self._aggregate(node, incoming), self._aggregate(node, outgoing)], dim=-1)
        return node + silu(self.norm(self.update(state)))

    def _aggregate(self, node: Tensor, messages: list[Tensor]) -> Tensor:
        """messages: (*batch, n, degree, width), to be reduced over all that reach a neuron."""
        if not messages:
            return node.new_zeros(*node.shape[:-1], len(AGGREGATORS) * len(SCALERS) * node.shape[-1])
        message = messages[0] if len(messages) == 1 else torch.cat(messages, dim=-2)
        mean = message.mean(-2)
        var = (message - mean.unsqueeze(-2)).square().mean(-2)  # five times as fast as torch.var_mean here
        low, high = message.amin(-2), message.amax(-2)
        aggregates = torch.cat([mean, low, high, (var + STD_EPSILON).sqrt()], dim=-1)
        amplification = log(message.shape[-2] + 1) / self.log_degree
        return torch.cat([aggregates, amplification * aggregates], dim=-1)


def split_edges(edges: Tensor, shapes: Sequence[Sequence[int]]) -> list[Tensor]:
    """(*batch, all edges, width) to one (*batch, n_target, n_source, tiles, width) a block."""
    sizes = [n * m * t for n, m, t in shapes]
    return [e.unflatten(-2, tuple(s)) for e, s in zip(edges.split(sizes, dim=-2), shapes, strict=True)]


class GraphNetwork(nn.Module):
    """Features on a neural graph to features on the same graph, through rounds of `PNALayer`.

    Shapes: `GraphValues` with d_in features -> `GraphValues` with d_out features.
    """

    def __init__(self, d_in: int, d_out: int, width: int, layers: int, kernel: tuple[int, int], log_degree: float):
        super().__init__()
        self.width = width
        self.edge_encoder = SlotEncoder(d_in, width, kernel)
        self.node_encoder = nn.Linear(d_in, width)
        self.position = nn.Linear(POSITION_FEATURES, width)
        self.layers = nn.ModuleList(PNALayer(width, log_degree) for _ in range(layers))
        self.edge_decoder = SlotDecoder(width, d_out, kernel)
        self.node_decoder = nn.Linear(width, d_out)

    def forward(self, values: GraphValues, graph: NeuralGraph) -> GraphValues:
        nodes = self._encode_nodes(values, graph)
        if not graph.blocks:
            return GraphValues(tuple(self.node_decoder(nodes[b.group]) for b in graph.biases), ())
        encoded = [self.edge_encoder(e, b.slot_shape) for e, b in zip(values.edges, graph.blocks, strict=True)]
        shapes = [e.shape[-4:-1] for e in encoded]
        edges = torch.cat([e.flatten(-4, -2) for e in encoded], dim=-2)
        for layer in self.layers:
            nodes, edges = layer(nodes, edges, graph.blocks, shapes)
        blocks = zip(split_edges(edges, shapes), graph.blocks, strict=True)
        return GraphValues(
            tuple(self.node_decoder(nodes[bias.group]) for bias in graph.biases),
            tuple(self.edge_decoder(e, block.slot_shape) for e, block in blocks),
        )

    def _encode_nodes(self, values: GraphValues, graph: NeuralGraph) -> list[Tensor]:
        like = (values.edges or values.biases)[0]
        batch = like.shape[:-4] if values.edges else like.shape[:-2]
        positions = self.position(node_positions(graph, like))
        nodes = [p.expand(*batch, group.size, self.width) for p, group in zip(positions, graph.groups, strict=True)]
        for bias, value in zip(graph.biases, values.biases, strict=True):
            nodes[bias.group] = nodes[bias.group] + self.node_encoder(value)
        return nodes


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
        metanet.recipe = feedforward.recipe
        return metanet

    def forward(self, features: Tensor, graph: NeuralGraph) -> Tensor:
        batch_dims = features.dim() - 2
        messages = graph.unflatten(features.nan_to_num(0.0, 0.0, 0.0), batch_dims)
        context = self.gnn(graph.gather(messages, batch_dims), graph)
        context = graph.flatten(graph.scatter(context, batch_dims), batch_dims)
        return self.head(torch.cat([features, context], dim=-1))
