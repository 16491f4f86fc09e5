"""The layer NP of neural functional networks (Zhou et al. 2023, section 2)."""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from ngopt.metanets.graph_data.graph_tensors import BlockTensors, EdgeChunk
from ngopt.metanets.layers.edge_states import EdgeStates


class Channels(NamedTuple):
    """Features of every weight, of the nodes of every group, and of the network."""

    weights: Sequence[int]
    nodes: Sequence[int]
    whole: int = 0

    @classmethod
    def of(cls, slots: Sequence[int], d: int) -> "Channels":
        """Those of parameters with d features each."""
        return cls([d * count for count in slots], [0, *[d] * len(slots)])

    @property
    def total(self) -> int:
        return sum(self.weights) + sum(self.nodes) + self.whole


Pool = Literal["mean", "max"]


class NPLayer(nn.Module):
    """The linear map that commutes with permutations in every group (NP of Zhou et al.
    2023).

    Weights W_l (n_{l+1}, n_l) between the groups of a chain, nodes v_l (n_l), and u,
    which no permutation moves; each term has its own mixing of channels for each pair
    of them:

    ```text
    W_l[j, k]   W_l[j, k];
                mean of W_l[j] and of W_{l+1}[:, j], v_{l+1}[j];
                mean of W_l[:, k] and of W_{l-1}[k], v_l[k];
                means of all W_s and v_s, u
    v_l[j]      v_l[j], mean of W_{l-1}[j] and of W_l[:, j]; means of all W_s and v_s, u
    u           means of all W_s and v_s, u
    ```

    The nodes of NP are biases, those of inputs have no features, and there is no u. In
    HNP inputs and outputs are no groups, and the weights of each of them are features
    of hidden neurons.

    Args:
        d_in, d_out: channels.
        pool: Replaces means; with "max" the map is not linear.
    """

    def __init__(self, d_in: Channels, d_out: Channels, pool: Pool = "mean"):
        super().__init__()
        count = len(d_in.weights)
        self.pool: Pool = pool
        above = [*d_in.weights[1:], 0][:count]
        below = [0, *d_in.weights][:count]
        rows = _sums(d_in.weights, d_in.nodes[1:], above)
        columns = _sums(d_in.weights, below, d_in.nodes[:-1])
        whole = [d_in.total] * count
        self.elements = _linears(d_in.weights, d_out.weights, bias=True)
        self.rows = _linears(rows, d_out.weights)
        self.columns = _linears(columns, d_out.weights)
        self.whole = _linears(whole, d_out.weights)
        self.bias_rows = _linears(rows, d_out.nodes[1:], bias=True)
        self.bias_whole = _linears(whole, d_out.nodes[1:])
        first = d_in.nodes[0] + sum(d_in.weights[:1])
        self.first_rows = _linear(first, d_out.nodes[0], bias=True)
        self.first_whole = _linear(d_in.total, d_out.nodes[0])
        self.to_whole = _linear(d_in.total, d_out.whole, bias=True)

    def forward(
        self,
        weights: EdgeStates,
        order: Sequence[BlockTensors],
        nodes: Sequence[Tensor],
        whole: Tensor,
        is_last: bool,
    ) -> tuple[list[Tensor], Tensor]:
        """Nodes and u after the layer, which becomes a step of the weights.

        Args:
            order: The weights from inputs to outputs.
            nodes: `(*batch, n_l, channels)`.
            whole: u, `(*batch, channels)`.
            is_last: Without ReLU.
        """
        pools = [pooled(weights, block, self.pool) for block in order]
        everything = summary(pools, nodes, whole, self.pool)
        first = [nodes[0], *(weight.over_targets for weight in pools[:1])]
        of_whole = self.first_whole(everything).unsqueeze(-2)
        new = [self.first_rows(torch.cat(first, -1)) + of_whole]
        terms: dict[int, tuple[nn.Module, Tensor, Tensor]] = {}
        for i, block in enumerate(order):
            rows = [pools[i].over_sources, nodes[i + 1]]
            if i + 1 < len(pools):
                rows.append(pools[i + 1].over_targets)
            columns = [pools[i].over_targets]
            if i:
                columns.append(pools[i - 1].over_sources)
            columns.append(nodes[i])
            pooled_rows = torch.cat(rows, -1)
            of_whole = self.whole[i](everything).unsqueeze(-2)
            to_rows = self.rows[i](pooled_rows) + of_whole
            to_columns = self.columns[i](torch.cat(columns, -1))
            terms[block.number] = self.elements[i], to_rows, to_columns
            of_whole = self.bias_whole[i](everything).unsqueeze(-2)
            new.append(self.bias_rows[i](pooled_rows) + of_whole)

        def update(state: Tensor | None, chunk: EdgeChunk) -> Tensor:
            elements, to_rows, to_columns = terms[chunk.block]
            rows = to_rows[..., None, chunk.targets, None, :]
            columns = to_columns[..., None, None, chunk.sources, :]
            new = elements(state) + rows + columns
            return new if is_last else new.relu()

        weights.then(update)
        whole = self.to_whole(everything)
        if is_last:
            return new, whole
        return [x.relu() for x in new], whole.relu()


class Nothing(nn.Module):
    """A map to no features, (*, d) -> (*, 0)."""

    def forward(self, x: Tensor) -> Tensor:
        return x[..., :0]


class PooledWeight(NamedTuple):
    """A weight pooled over one of its ends.

    Attributes:
        over_sources: `(*batch, n_target, d)`.
        over_targets: `(*batch, n_source, d)`.
    """

    over_sources: Tensor
    over_targets: Tensor


def pooled(weights: EdgeStates, block: BlockTensors, pool: Pool) -> PooledWeight:
    rows: dict[int, Tensor] = {}
    columns: dict[int, Tensor] = {}
    for chunk in block.chunks:
        state = weights.of(chunk).squeeze(-4)
        _add_pooled(rows, chunk.targets.start, state, -2, pool)
        _add_pooled(columns, chunk.sources.start, state, -3, pool)
    over_sources = torch.cat(list(rows.values()), -2)
    over_targets = torch.cat(list(columns.values()), -2)
    if pool == "mean":
        _, targets, sources = block.block.shape
        over_sources = over_sources / sources
        over_targets = over_targets / targets
    return PooledWeight(over_sources, over_targets)


def _add_pooled(
    totals: dict[int, Tensor], key: int, state: Tensor, axis: int, pool: Pool
) -> None:
    """Adds a chunk to the sums, or maxima, of the same neurons."""
    total = state.sum(axis) if pool == "mean" else state.amax(axis)
    if key in totals:
        before = totals[key]
        total = before + total if pool == "mean" else torch.maximum(before, total)
    totals[key] = total


def summary(
    pools: Sequence[PooledWeight], nodes: Sequence[Tensor], whole: Tensor, pool: Pool
) -> Tensor:
    """All weights and nodes pooled, and u, `(*batch, total channels)`, which no
    permutation changes."""
    columns = []
    for x in (*(weight.over_sources for weight in pools), *nodes):
        columns.append(x.mean(-2) if pool == "mean" else x.amax(-2))
    return torch.cat([*columns, whole], -1)


def _sums(*channels: Sequence[int]) -> list[int]:
    return list(map(sum, zip(*channels, strict=True)))


def _linears(
    d_in: Sequence[int], d_out: Sequence[int], bias: bool = False
) -> nn.ModuleList:
    pairs = zip(d_in, d_out, strict=True)
    return nn.ModuleList(_linear(*pair, bias=bias) for pair in pairs)


def _linear(d_in: int, d_out: int, bias: bool = False) -> nn.Module:
    return nn.Linear(d_in, d_out, bias=bias) if d_out else Nothing()
