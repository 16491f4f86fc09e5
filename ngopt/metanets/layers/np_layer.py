"""The layer NP of neural functional networks (Zhou et al. 2023, section 2)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from ngopt.metanets.graph_data.graph_tensors import BlockTensors, EdgeChunk
from ngopt.metanets.layers.edge_states import EdgeStates


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
        order: Sequence[BlockTensors],
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

        def after(state: Tensor | None, block: BlockTensors, part: EdgeChunk) -> Tensor:
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


def pooled(
    weights: EdgeStates, block: BlockTensors, pool: Pool
) -> tuple[Tensor, Tensor]:
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
