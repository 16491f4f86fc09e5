"""FF + NFN: neural functional layers of Zhou et al. 2023 (NP, their section 2 and
appendix) on a chain of layers.

They are equivariant to permutations of the neurons of every layer, inputs and outputs
among them, and have their own weights for every pair of layers, so that depth and
kernel sizes are fixed. What does not take part in a permutation may be features of
nodes, or of the whole network (`NPLayer`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from math import prod
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from ngopt.graph.groups_and_blocks import Bias, EdgeBlock
from ngopt.graph.neural_graph import NeuralGraph
from ngopt.metanets.edge_states import EdgeStates, are_kept
from ngopt.metanets.features import NUM_FEATURES
from ngopt.metanets.graph_metanet import GraphMetanet, GraphMetanetConfig
from ngopt.metanets.parts import BlockParts, GraphParts, Part
from ngopt.metanets.places import Place
from ngopt.metanets.sources import Source


@dataclass(frozen=True)
class NFNConfig(GraphMetanetConfig):
    """kernels: spatial shape of each layer's kernel, () of a linear layer's. width:
    channels between NP layers. layers: of them, at least one. Others as in
    `GraphMetanetConfig`; `kernel` is not used.
    """

    kernels: tuple[tuple[int, ...], ...] = ((3, 3), (3, 3), (3, 3), ())
    width: int = 32
    layers: int = 3


class NeuralFunctional(GraphMetanet):
    """The metanet "nfn": features go through NP layers with ReLU;
    the FF sees them and their output.

    Kernel positions are channels. Values that are not finite do not enter the means:
    they stay with the parameter they belong to.

    Shapes: features (*batch, numel, 14), in the order of `NeuralGraph.flatten` ->
    (*batch, numel).

    A layer may lack its bias. `check` raises ValueError for graphs that are not a chain
    of such layers.
    """

    name = "nfn"
    config: NFNConfig
    Config = NFNConfig

    def __init__(self, config: NFNConfig | None = None):
        config = config or NFNConfig()
        super().__init__(config)
        self.kernels = tuple(tuple(kernel) for kernel in config.kernels)
        slots = [prod(kernel) for kernel in self.kernels]
        first, last = (Channels.of(slots, d) for d in (NUM_FEATURES, config.d_out))
        between = Channels(
            [config.width] * len(slots), [0, *[config.width] * len(slots)]
        )
        channels = [first, *[between] * (config.layers - 1), last]
        pairs = pairwise(channels)
        self.layers = nn.ModuleList(NPLayer(*pair) for pair in pairs)

    def check(self, graph: NeuralGraph) -> None:
        kernels = chain_of(graph)
        if kernels is None:
            raise ValueError(
                "nfn: expected a plain chain of layers; got a graph with "
                f"{len(graph.weights)} weights, {len(graph.biases)} biases and "
                f"{len(graph.groups)} groups of neurons that is none"
            )
        if kernels != self.kernels:
            raise ValueError(
                f"nfn: expected kernels {_said(self.kernels)}; got {_said(kernels)}"
            )

    def pieces(
        self, source: Source, parts: GraphParts
    ) -> Iterator[tuple[Place, Tensor]]:
        graph = parts.graph
        chain = layers_of(graph)
        order = [parts.weights[layer.weight] for layer in chain]
        inputs = self._absent(source, graph.groups[order[0].block.source].size, 0)
        nodes = [inputs, *(self._bias(source, graph, layer) for layer in chain)]
        weights = EdgeStates(order, partial(_first_state, source), self._keeps(parts))
        whole = self._absent(source, 1, 0).squeeze(-2)
        for k, layer in enumerate(self.layers):
            is_last = k == len(self.layers) - 1
            nodes, whole = layer(weights, order, nodes, whole, is_last)
        for layer, value in zip(chain, nodes[1:], strict=True):
            if layer.bias is not None:
                yield layer.bias, value.unsqueeze(-2)
        for block in order:
            for i, part in enumerate(block.parts):
                state = weights.of(block, i)
                yield (
                    (block, part),
                    state.unflatten(-1, (-1, self.config.d_out)),
                )

    def _bias(self, source: Source, graph: NeuralGraph, layer: Layer) -> Tensor:
        if layer.bias is not None:
            return source.bias(layer.bias).flatten(-2)
        target = graph.weights[layer.weight].target
        return self._absent(source, graph.groups[target].size, NUM_FEATURES)

    def _absent(self, source: Source, n: int, d: int) -> Tensor:
        like = next(self.parameters())
        return like.new_zeros(*source.batch, n, d)

    def _keeps(self, parts: GraphParts) -> bool:
        channels = max(self.config.width, NUM_FEATURES * max(map(prod, self.kernels)))
        return are_kept(parts, channels, next(self.parameters()))


class Channels(NamedTuple):
    """Features of every weight, of the nodes of every group, and of the whole network."""

    weights: Sequence[int]
    nodes: Sequence[int]
    whole: int = 0

    @classmethod
    def of(cls, slots: Sequence[int], d: int) -> Channels:
        """Those of parameters with d features each."""
        return cls([d * count for count in slots], [0, *[d] * len(slots)])


Pool = Literal["mean", "max"]


class NPLayer(nn.Module):
    """The linear map that commutes with permutations in every group (NP of Zhou et al.
    2023).

    Weights W_l (n_{l+1}, n_l) between the groups of a chain, nodes v_l (n_l), and u,
    which no permutation moves; each term has its own mixing of channels for each pair
    of them:

    W_l[j, k]   W_l[j, k]; mean of W_l[j] and of W_{l+1}[:, j], v_{l+1}[j]; mean of W_l[:, k] and of
                W_{l-1}[k], v_l[k]; means of all W_s and v_s, u
    v_l[j]      v_l[j], mean of W_{l-1}[j] and of W_l[:, j]; means of all W_s and v_s, u
    u           means of all W_s and v_s, u

    The nodes of NP are biases, those of inputs have no features, and there is no u. In
    HNP inputs and outputs are no groups, and the weights of each of them are features
    of hidden neurons.

    d_in, d_out: channels. pool: what stands for means; with "max" the map is not
    linear.
    """

    def __init__(self, d_in: Channels, d_out: Channels, pool: Pool = "mean"):
        super().__init__()
        count = len(d_in.weights)
        self.pool: Pool = pool
        above = [*d_in.weights[1:], 0][:count]
        below = [0, *d_in.weights][:count]
        reached = zip(d_in.weights, d_in.nodes[1:], above, strict=True)
        rows = [sum(some) for some in reached]
        leaving = zip(d_in.weights, below, d_in.nodes[:-1], strict=True)
        columns = [sum(some) for some in leaving]
        everything = sum(d_in.weights) + sum(d_in.nodes) + d_in.whole
        whole = [everything] * count
        self.elements = _linears(d_in.weights, d_out.weights, bias=True)
        self.rows = _linears(rows, d_out.weights)
        self.columns = _linears(columns, d_out.weights)
        self.whole = _linears(whole, d_out.weights)
        self.bias_rows = _linears(rows, d_out.nodes[1:], bias=True)
        self.bias_whole = _linears(whole, d_out.nodes[1:])
        own = d_in.nodes[0] + sum(d_in.weights[:1])
        self.first_rows = _linear(own, d_out.nodes[0], bias=True)
        self.first_whole = _linear(everything, d_out.nodes[0])
        self.to_whole = _linear(everything, d_out.whole, bias=True)

    def forward(
        self,
        weights: EdgeStates,
        order: Sequence[BlockParts],
        nodes: Sequence[Tensor],
        whole: Tensor,
        is_last: bool,
    ) -> tuple[list[Tensor], Tensor]:
        """Nodes and u after the layer, which becomes a step of the weights; with ReLU
        but the last.

        order: the weights from inputs to outputs. nodes: (*batch, n_l, channels).
        whole: u, (*batch, channels).
        """
        pools = [pooled(weights, block, self.pool) for block in order]
        everything = summary(pools, nodes, whole, self.pool)
        own = torch.cat([nodes[0], *(columns for _, columns in pools[:1])], -1)
        of_whole = self.first_whole(everything).unsqueeze(-2)
        first = self.first_rows(own) + of_whole
        steps, found = {}, [first]
        for i, block in enumerate(order):
            rows = [
                pools[i][0],
                nodes[i + 1],
                *(columns for _, columns in pools[i + 1 : i + 2]),
            ]
            columns = [pools[i][1]]
            if i:
                columns.append(pools[i - 1][0])
            columns.append(nodes[i])
            own_rows = torch.cat(rows, -1)
            of_whole = self.whole[i](everything).unsqueeze(-2)
            to_rows = self.rows[i](own_rows) + of_whole
            to_columns = self.columns[i](torch.cat(columns, -1))
            steps[block.number] = i, to_rows, to_columns
            of_whole = self.bias_whole[i](everything).unsqueeze(-2)
            found.append(self.bias_rows[i](own_rows) + of_whole)

        def after(state: Tensor | None, block: BlockParts, part: Part) -> Tensor:
            i, to_rows, to_columns = steps[block.number]
            to_rows = to_rows[..., None, part.targets, None, :]
            to_columns = to_columns[..., None, None, part.sources, :]
            new = self.elements[i](state) + to_rows + to_columns
            return new if is_last else new.relu()

        weights.then(after)
        outside = self.to_whole(everything)
        if is_last:
            return found, outside
        return [x.relu() for x in found], outside.relu()


class Nothing(nn.Module):
    """A map to no features, (*, d) -> (*, 0)."""

    def forward(self, x: Tensor) -> Tensor:
        return x[..., :0]


class Layer(NamedTuple):
    """A layer of a chain: the numbers of its weight and of its bias, among those of the
    graph."""

    weight: int
    bias: int | None


def layers_of(graph: NeuralGraph) -> list[Layer]:
    """The layers of a chain, from inputs to outputs."""
    biases = {bias.group: number for number, bias in enumerate(graph.biases)}
    targets = [block.target for block in graph.weights]
    order = sorted(
        range(len(targets)),
        key=lambda number: graph.groups[targets[number]].depth,
    )
    return [Layer(number, biases.get(targets[number])) for number in order]


def chain_of(graph: NeuralGraph) -> tuple[tuple[int, ...], ...] | None:
    """The kernels of a plain chain of layers, from inputs to outputs; None if the graph
    is none."""
    order = sorted(graph.weights, key=lambda block: graph.groups[block.target].depth)
    follow = all(a.target == b.source for a, b in pairwise(order))
    n = len(order)
    alone = len(graph.groups) == n + 1 and len(graph.blocks) == n
    targets = {block.target for block in order}
    own = {bias.group for bias in graph.biases}
    conditions = (
        bool(order),
        follow,
        alone,
        len(targets) == n,
        len(own) == len(graph.biases),
        own <= targets,
        all(map(_is_dense, order)),
        all(map(_is_plain, graph.biases)),
    )
    return tuple(block.slot_shape for block in order) if all(conditions) else None


def _is_dense(block: EdgeBlock) -> bool:
    """Whether all sources are connected to all targets."""
    indices = block.source_index, block.target_index
    return block.shape[0] == 1 and indices == (None, None)


def _is_plain(bias: Bias) -> bool:
    return bias.index is None and bias.slot_shape == ()


def _first_state(
    source: Source, _: Tensor | None, block: BlockParts, part: Part
) -> Tensor:
    """Features of a part, kernel positions as channels: (*batch, 1, n_target,
    n_source, channels)."""
    return source.edges(block, part).flatten(-2)


def pooled(weights: EdgeStates, block: BlockParts, pool: Pool) -> tuple[Tensor, Tensor]:
    """Of a weight over its sources, (*batch, n_target, d), and over its targets,
    (*batch, n_source, d)."""
    rows: dict[int, Tensor] = {}
    columns: dict[int, Tensor] = {}
    for i, part in enumerate(block.parts):
        state = weights.of(block, i).squeeze(-4)
        for kept, start, axis in (
            (rows, part.targets.start, -2),
            (columns, part.sources.start, -3),
        ):
            own = state.sum(axis) if pool == "mean" else state.amax(axis)
            kept[start] = _joined(kept[start], own, pool) if start in kept else own
    _, targets, sources = block.block.shape
    over_sources, over_targets = (
        torch.cat(list(kept.values()), -2) for kept in (rows, columns)
    )
    if pool == "max":
        return over_sources, over_targets
    return over_sources / sources, over_targets / targets


def _joined(a: Tensor, b: Tensor, pool: Pool) -> Tensor:
    return a + b if pool == "mean" else torch.maximum(a, b)


def summary(
    pools: Sequence[tuple[Tensor, Tensor]],
    nodes: Sequence[Tensor],
    whole: Tensor,
    pool: Pool,
) -> Tensor:
    """All weights and nodes pooled, and u, (*batch, channels of all): no permutation
    changes it."""
    over = [*(rows for rows, _ in pools), *nodes]
    means = [x.mean(-2) if pool == "mean" else x.amax(-2) for x in over]
    return torch.cat([*means, whole], -1)


def _linears(
    d_in: Sequence[int], d_out: Sequence[int], bias: bool = False
) -> nn.ModuleList:
    pairs = zip(d_in, d_out, strict=True)
    return nn.ModuleList(_linear(*pair, bias=bias) for pair in pairs)


def _linear(d_in: int, d_out: int, bias: bool = False) -> nn.Module:
    return nn.Linear(d_in, d_out, bias=bias) if d_out else Nothing()


def _said(kernels: Sequence[Sequence[int]]) -> str:
    return ", ".join("x".join(map(str, kernel)) or "1" for kernel in kernels)
