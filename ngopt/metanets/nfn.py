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
from typing import NamedTuple

from torch import Tensor, nn

from ngopt.graph.core import Bias, EdgeBlock, NeuralGraph
from ngopt.metanets.features import NUM_FEATURES
from ngopt.metanets.graph_data.context_writer import Place
from ngopt.metanets.graph_data.feature_sources import FeatureSource
from ngopt.metanets.graph_data.graph_tensors import (
    BlockTensors,
    EdgeChunk,
    GraphTensors,
)
from ngopt.metanets.graph_metanet import GraphMetanet, GraphMetanetConfig
from ngopt.metanets.layers.edge_states import EdgeStates, are_kept
from ngopt.metanets.layers.np_layer import Channels, NPLayer


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
        self, source: FeatureSource, parts: GraphTensors
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

    def _bias(
        self, source: FeatureSource, graph: NeuralGraph, layer: ChainLayer
    ) -> Tensor:
        if layer.bias is not None:
            return source.bias(layer.bias).flatten(-2)
        target = graph.weights[layer.weight].target
        return self._absent(source, graph.groups[target].size, NUM_FEATURES)

    def _absent(self, source: FeatureSource, n: int, d: int) -> Tensor:
        like = next(self.parameters())
        return like.new_zeros(*source.batch, n, d)

    def _keeps(self, parts: GraphTensors) -> bool:
        channels = max(self.config.width, NUM_FEATURES * max(map(prod, self.kernels)))
        return are_kept(parts, channels, next(self.parameters()))


class ChainLayer(NamedTuple):
    """A layer of a chain: the numbers of its weight and of its bias, among those of the
    graph."""

    weight: int
    bias: int | None


def layers_of(graph: NeuralGraph) -> list[ChainLayer]:
    """The layers of a chain, from inputs to outputs."""
    biases = {bias.group: number for number, bias in enumerate(graph.biases)}
    targets = [block.target for block in graph.weights]
    order = sorted(
        range(len(targets)),
        key=lambda number: graph.groups[targets[number]].depth,
    )
    return [ChainLayer(number, biases.get(targets[number])) for number in order]


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
    source: FeatureSource, _: Tensor | None, block: BlockTensors, part: EdgeChunk
) -> Tensor:
    """Features of a part, kernel positions as channels: (*batch, 1, n_target,
    n_source, channels)."""
    return source.edges(block, part).flatten(-2)


def _said(kernels: Sequence[Sequence[int]]) -> str:
    return ", ".join("x".join(map(str, kernel)) or "1" for kernel in kernels)
