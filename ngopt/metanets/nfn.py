"""FF + NFN: neural functional layers on a chain of layers (NP of Zhou et al. 2023,
their section 2 and appendix).

They are equivariant to permutations of the neurons of every layer, inputs and outputs
among them. They have their own weights for every pair of layers, so that depth and
kernel sizes are fixed.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import prod
from typing import NamedTuple

from torch import Tensor, nn

from ngopt.graph.neural_graph import NeuralGraph
from ngopt.metanets.features import NUM_FEATURES
from ngopt.metanets.graph_data.feature_sources import FeatureSource
from ngopt.metanets.graph_data.graph_tensors import Contexts, EdgeChunk, GraphTensors
from ngopt.metanets.graph_metanet import GraphMetanet, GraphMetanetConfig
from ngopt.metanets.layers.edge_states import EdgeStates, fits_in_memory
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
    """The metanet "nfn": the FF's context is the output of NP layers with ReLU.

    Kernel positions are channels. Values that are not finite are zero in the means. A
    layer may lack its bias. `check` raises ValueError for graphs that are not a chain
    of layers with the config's kernels.
    """

    name = "nfn"
    config: NFNConfig
    Config = NFNConfig

    def __init__(self, config: NFNConfig | None = None):
        super().__init__(config)
        config = self.config
        self.kernels = tuple(map(tuple, config.kernels))
        slots = list(map(prod, self.kernels))
        first = Channels.of(slots, NUM_FEATURES)
        between = Channels.of([1] * len(slots), config.width)
        last = Channels.of(slots, config.d_out)
        channels = [first, *[between] * (config.layers - 1), last]
        self.layers = nn.ModuleList(NPLayer(*pair) for pair in pairwise(channels))

    def check(self, graph: NeuralGraph) -> None:
        kernels = chain_of(graph)
        if kernels is None:
            raise ValueError(
                "nfn: expected a plain chain of layers; got a graph with "
                f"{len(graph.weights)} weights, {len(graph.biases)} biases and "
                f"{len(graph.groups)} groups of neurons that is no chain"
            )
        if kernels != self.kernels:
            expected = _described(self.kernels)
            got = _described(kernels)
            raise ValueError(f"nfn: expected kernels {expected}; got {got}")

    def context_pieces(self, source: FeatureSource, tensors: GraphTensors) -> Contexts:
        graph = tensors.graph
        chain = layers_of(graph)
        inputs = graph.weights[chain[0].weight].source
        nodes = [self._zeros(source, graph.groups[inputs].size, 0)]
        order = []
        for layer in chain:
            order.append(tensors.weights[layer.weight])
            nodes.append(self._bias(source, graph, layer))
        whole = self._zeros(source, 1, 0).squeeze(-2)

        def first(_: Tensor | None, chunk: EdgeChunk) -> Tensor:
            """Kernel positions as channels, (*batch, 1, n_target, n_source,
            channels)."""
            return source.edges(chunk).flatten(-2)

        slots = max(map(prod, self.kernels))
        channels = max(self.config.width, NUM_FEATURES * slots)
        keep = fits_in_memory(tensors, channels, next(self.parameters()))
        weights = EdgeStates(order, first, keep)
        for k, layer in enumerate(self.layers):
            is_last = k == len(self.layers) - 1
            nodes, whole = layer(weights, order, nodes, whole, is_last)
        for layer, node in zip(chain, nodes[1:], strict=True):
            if layer.bias is not None:
                yield layer.bias, node.unsqueeze(-2)
        slots = -1, self.config.d_out
        for block in order:
            for chunk in block.chunks:
                yield chunk, weights.of(chunk).unflatten(-1, slots)

    def _bias(
        self, source: FeatureSource, graph: NeuralGraph, layer: "ChainLayer"
    ) -> Tensor:
        if layer.bias is not None:
            return source.bias(layer.bias).flatten(-2)
        target = graph.weights[layer.weight].target
        return self._zeros(source, graph.groups[target].size, NUM_FEATURES)

    def _zeros(self, source: FeatureSource, n: int, d: int) -> Tensor:
        return next(self.parameters()).new_zeros(*source.batch, n, d)


class ChainLayer(NamedTuple):
    """Numbers of a layer's weight and bias among those of the graph."""

    weight: int
    bias: int | None


def layers_of(graph: NeuralGraph) -> list[ChainLayer]:
    """The layers of a chain, from inputs to outputs."""
    biases = {bias.group: number for number, bias in enumerate(graph.biases)}
    layers, depths = [], []
    for number, block in enumerate(graph.weights):
        layers.append(ChainLayer(number, biases.get(block.target)))
        depths.append(graph.groups[block.target].depth)
    return sorted(layers, key=lambda layer: depths[layer.weight])


def chain_of(graph: NeuralGraph) -> tuple[tuple[int, ...], ...] | None:
    """The kernels of a plain chain of layers, from inputs to outputs; None for other
    graphs."""
    order = [graph.weights[layer.weight] for layer in layers_of(graph)]
    n = len(order)
    if not order or len(graph.groups) != n + 1 or len(graph.blocks) != n:
        return None
    targets = {block.target for block in order}
    biased = set()
    for bias in graph.biases:
        if bias.index is not None or bias.slot_shape or bias.group in biased:
            return None
        biased.add(bias.group)
    if len(targets) < n or not biased <= targets:
        return None
    for block in order:
        indices = block.source_index, block.target_index
        if block.shape[0] > 1 or indices != (None, None):
            return None  # sources that are not connected to all targets
    if any(a.target != b.source for a, b in pairwise(order)):
        return None
    return tuple(block.slot_shape for block in order)


def _described(kernels: Sequence[Sequence[int]]) -> str:
    """Kernels as 3x3, 1."""
    return ", ".join("x".join(map(str, kernel)) or "1" for kernel in kernels)
