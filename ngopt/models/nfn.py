"""FF + NFN: neural functional layers of Zhou et al. 2023 (NP, their section 2 and appendix) on a chain of layers.

They are equivariant to permutations of the neurons of every layer, inputs and outputs among them,
and have their own weights for every pair of layers, so that depth and kernel sizes are fixed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from math import prod
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ngopt.features import NUM_FEATURES
from ngopt.graph.core import Bias, EdgeBlock, NeuralGraph
from ngopt.models.edge_states import EdgeStates, are_kept
from ngopt.models.graph_metanet import GraphMetanet, GraphMetanetConfig
from ngopt.models.graph_network import Place
from ngopt.models.parts import BlockParts, GraphParts, Part
from ngopt.models.sources import Source


@dataclass(frozen=True)
class NFNConfig(GraphMetanetConfig):
    """kernels: spatial shape of each layer's kernel, () of a linear layer's. width: channels between
    NP layers. layers: of them, at least one. Others as in `GraphMetanetConfig`; `kernel` is not used.
    """

    kernels: tuple[tuple[int, ...], ...] = ((3, 3), (3, 3), (3, 3), ())
    width: int = 32
    layers: int = 3


class NeuralFunctional(GraphMetanet):
    """The metanet "nfn": features go through NP layers with ReLU; the FF sees them and their output.

    Kernel positions are channels. Values that are not finite do not enter the means: they stay with
    the parameter they belong to.

    Shapes: features (*batch, numel, 14), in the order of `NeuralGraph.flatten` -> (*batch, numel).

    A layer may lack its bias. `check` raises ValueError for graphs that are not a chain of such layers.
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
        between = Channels([config.width] * len(slots), [config.width] * len(slots))
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
            raise ValueError(f"nfn: expected kernels {_said(self.kernels)}; got {_said(kernels)}")

    def pieces(self, source: Source, parts: GraphParts) -> Iterator[tuple[Place, Tensor]]:
        graph = parts.graph
        order = sorted(parts.weights, key=lambda own: graph.groups[own.block.target].depth)
        numbers = {bias.group: number for number, bias in enumerate(graph.biases)}
        own_biases = [numbers.get(own.block.target) for own in order]
        biases = [
            self._absent(source, graph.groups[own.block.target].size)
            if number is None
            else source.bias(number).flatten(-2)
            for number, own in zip(own_biases, order, strict=True)
        ]
        weights = EdgeStates(order, partial(_first_state, source), self._keeps(parts))
        for k, layer in enumerate(self.layers):
            assert isinstance(layer, NPLayer)
            biases = layer(weights, order, biases, is_last=k == len(self.layers) - 1)
        for number, value in zip(own_biases, biases, strict=True):
            if number is not None:
                yield number, value.unsqueeze(-2)
        for block in order:
            for i, part in enumerate(block.parts):
                state = weights.of(block, i)
                yield (block, part), state.unflatten(-1, (-1, self.config.d_out))

    def _absent(self, source: Source, n: int) -> Tensor:
        like = next(self.parameters())
        return like.new_zeros(*source.batch, n, NUM_FEATURES)

    def _keeps(self, parts: GraphParts) -> bool:
        channels = max(self.config.width, NUM_FEATURES * max(map(prod, self.kernels)))
        return are_kept(parts, channels, next(self.parameters()))


class Channels(NamedTuple):
    """Features of the weights and of the biases of every layer."""

    weights: Sequence[int]
    biases: Sequence[int]

    @classmethod
    def of(cls, slots: Sequence[int], d: int) -> Channels:
        """Those of parameters with d features each."""
        return cls([d * count for count in slots], [d] * len(slots))


class NPLayer(nn.Module):
    """The linear map that commutes with permutations of the neurons of every layer (Zhou et al. 2023, NP).

    Weights W_l (n_l, n_{l-1}) and biases b_l (n_l) of a chain; each term has its own mixing of
    channels for each pair of layers:

    W_l[j, k]   W_l[j, k]; mean of W_l[j] and of W_{l+1}[:, j], b_l[j]; mean of W_l[:, k] and of
                W_{l-1}[k], b_{l-1}[k]; means of all W_s and b_s
    b_l[j]      b_l[j], mean of W_l[j] and of W_{l+1}[:, j]; means of all W_s and b_s

    d_in, d_out: channels of every layer.
    """

    def __init__(self, d_in: Channels, d_out: Channels):
        super().__init__()
        count = len(d_in.weights)
        above = [*d_in.weights[1:], 0]
        below = [0, *(w + b for w, b in zip(d_in.weights, d_in.biases, strict=True))][:count]
        rows = [sum(some) for some in zip(d_in.weights, d_in.biases, above, strict=True)]
        columns = [own + other for own, other in zip(d_in.weights, below, strict=True)]
        whole = [sum(d_in.weights) + sum(d_in.biases)] * count
        self.elements = _linears(d_in.weights, d_out.weights, bias=True)
        self.rows = _linears(rows, d_out.weights)
        self.columns = _linears(columns, d_out.weights)
        self.whole = _linears(whole, d_out.weights)
        self.bias_rows = _linears(rows, d_out.biases, bias=True)
        self.bias_whole = _linears(whole, d_out.biases)

    def forward(
        self,
        weights: EdgeStates,
        order: Sequence[BlockParts],
        biases: Sequence[Tensor],
        is_last: bool,
    ) -> list[Tensor]:
        """The biases after the layer, which becomes a step of the weights; with ReLU but for the last.

        order: the weights from inputs to outputs. biases: (*batch, n_l, channels).
        """
        means = [_means(weights, block) for block in order]
        whole = torch.cat([x.mean(-2) for x in (*(rows for rows, _ in means), *biases)], -1)
        steps, found = {}, []
        for i, block in enumerate(order):
            rows = [means[i][0], biases[i], *(columns for _, columns in means[i + 1 : i + 2])]
            columns = [means[i][1]]
            if i:
                columns += [means[i - 1][0], biases[i - 1]]
            own_rows = torch.cat(rows, -1)
            to_rows = self.rows[i](own_rows) + self.whole[i](whole).unsqueeze(-2)
            steps[block.number] = i, to_rows, self.columns[i](torch.cat(columns, -1))
            found.append(self.bias_rows[i](own_rows) + self.bias_whole[i](whole).unsqueeze(-2))

        def after(state: Tensor | None, block: BlockParts, part: Part) -> Tensor:
            i, to_rows, to_columns = steps[block.number]
            to_rows = to_rows[..., None, part.targets, None, :]
            to_columns = to_columns[..., None, None, part.sources, :]
            new = self.elements[i](state) + to_rows + to_columns
            return new if is_last else new.relu()

        weights.then(after)
        return found if is_last else [x.relu() for x in found]


def chain_of(graph: NeuralGraph) -> tuple[tuple[int, ...], ...] | None:
    """The kernels of a plain chain of layers, from inputs to outputs; None if the graph is none."""
    order = sorted(graph.weights, key=lambda block: graph.groups[block.target].depth)
    follow = all(a.target == b.source for a, b in pairwise(order))
    alone = len(graph.groups) == len(order) + 1 and len(graph.blocks) == len(order)
    targets = [block.target for block in order]
    is_chain = bool(order) and follow and alone and len(set(targets)) == len(targets)
    own = [bias.group for bias in graph.biases]
    is_chain = is_chain and len(set(own)) == len(own) and set(own) <= set(targets)
    is_plain = all(map(_is_dense, order)) and all(map(_is_plain, graph.biases))
    return tuple(block.slot_shape for block in order) if is_chain and is_plain else None


def _is_dense(block: EdgeBlock) -> bool:
    """Whether all sources are connected to all targets."""
    indices = block.source_index, block.target_index
    return block.shape[0] == 1 and indices == (None, None)


def _is_plain(bias: Bias) -> bool:
    return bias.index is None and bias.slot_shape == ()


def _first_state(source: Source, _: Tensor | None, block: BlockParts, part: Part) -> Tensor:
    """Features of a part, kernel positions as channels: (*batch, 1, n_target, n_source, channels)."""
    return source.edges(block, part).flatten(-2)


def _means(weights: EdgeStates, block: BlockParts) -> tuple[Tensor, Tensor]:
    """Of a weight over its sources, (*batch, n_target, d), and over its targets, (*batch, n_source, d)."""
    rows: dict[int, Tensor] = {}
    columns: dict[int, Tensor] = {}
    for i, part in enumerate(block.parts):
        state = weights.of(block, i).squeeze(-4)
        for kept, start, axis in ((rows, part.targets.start, -2), (columns, part.sources.start, -3)):
            total = state.sum(axis)
            kept[start] = kept[start] + total if start in kept else total
    _, targets, sources = block.block.shape
    joined = [torch.cat(list(kept.values()), -2) for kept in (rows, columns)]
    return joined[0] / sources, joined[1] / targets


def _linears(d_in: Sequence[int], d_out: Sequence[int], bias: bool = False) -> nn.ModuleList:
    pairs = zip(d_in, d_out, strict=True)
    return nn.ModuleList(nn.Linear(*pair, bias=bias) for pair in pairs)


def _said(kernels: Sequence[Sequence[int]]) -> str:
    return ", ".join("x".join(map(str, kernel)) or "1" for kernel in kernels)
