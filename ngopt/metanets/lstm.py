"""FF + LSTM: features of whole layers, passed from layer to layer by an LSTM (Kofinas
et al. 2024, section 4.3).

A layer is what feeds one group of neurons: weights and biases. The LSTM runs through
the depth of the network, not through time as that of Metz et al. 2020.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Tensor, nn

from ngopt.graph.core import NeuralGraph
from ngopt.metanets.features import NUM_FEATURES
from ngopt.metanets.graph_data.context_writer import Place
from ngopt.metanets.graph_data.feature_sources import FeatureSource
from ngopt.metanets.graph_data.graph_tensors import GraphTensors
from ngopt.metanets.graph_metanet import GraphMetanet, GraphMetanetConfig


@dataclass(frozen=True)
class LSTMConfig(GraphMetanetConfig):
    """width: features of the LSTM's state. Others as in `GraphMetanetConfig`."""

    width: int = 32


class LayerLSTM(GraphMetanet):
    """The metanet "lstm": the FF sees a parameter's features and what the LSTM says at
    its layer.

    The LSTM reads the mean features of each layer, from inputs to outputs. Values that
    are not finite do not enter the means.

    Shapes: features (*batch, numel, 14), in the order of `NeuralGraph.flatten` ->
    (*batch, numel).
    """

    name = "lstm"
    Config = LSTMConfig

    def __init__(self, config: LSTMConfig | None = None):
        config = config or LSTMConfig()
        super().__init__(config)
        self.cell = LSTMCell(NUM_FEATURES, config.width)
        self.out = nn.Linear(config.width, config.d_out)

    def pieces(
        self, source: FeatureSource, parts: GraphTensors
    ) -> Iterator[tuple[Place, Tensor]]:
        said = self._along_depth(_layer_means(source, parts), parts.graph)
        # of each place what is said of its layer, without memory of its own
        for number, bias in enumerate(parts.graph.biases):
            yield number, _expanded(said[bias.group], bias.view.shape)
        for block in parts.weights:
            for part in block.parts:
                assert part.view is not None
                yield (
                    (block, part),
                    _expanded(said[block.block.target], part.view.shape),
                )

    def _along_depth(
        self, means: dict[int, Tensor], graph: NeuralGraph
    ) -> dict[int, Tensor]:
        """Mean features of layers (*batch, 14),
        by their group -> what the LSTM says (*batch, d_out).

        Layers side by side, which may be exchangeable, hear the same; those behind,
        their mean state.
        """
        found: dict[int, Tensor] = {}
        members = graph.membership
        places = {i: (members[i], graph.groups[i].depth) for i in means}
        states: dict[int, tuple[Tensor, Tensor]] = {}  # of every joined graph
        for (member, _), level in groupby(
            sorted(means, key=places.__getitem__), places.__getitem__
        ):
            before = states.get(member)
            after = {group: self.cell(means[group], before) for group in level}
            for group, (hidden, _) in after.items():
                found[group] = self.out(hidden)
            hidden, cell = zip(*after.values(), strict=True)
            states[member] = (
                torch.stack(hidden).mean(0),
                torch.stack(cell).mean(0),
            )
        return found


class LSTMCell(nn.Module):
    """An LSTM's step (Hochreiter & Schmidhuber 1997), as `nn.LSTMCell`,
    which `torch.vmap` cannot map.

    Shapes: inputs (*, d_in), and hidden and cell state (*, width)
    of before or None for zeros -> both.
    """

    def __init__(self, d_in: int, width: int):
        super().__init__()
        self.width, self.gates = width, nn.Linear(d_in + width, 4 * width)

    def forward(
        self,
        inputs: Tensor,
        state: tuple[Tensor, Tensor] | None,
    ) -> tuple[Tensor, Tensor]:
        zeros = inputs.new_zeros(*inputs.shape[:-1], self.width)
        hidden, cell = (zeros, zeros) if state is None else state
        gates = self.gates(torch.cat([inputs, hidden], -1))
        enter, forget, new, leave = gates.chunk(4, -1)
        cell = forget.sigmoid() * cell + enter.sigmoid() * new.tanh()
        return leave.sigmoid() * cell.tanh(), cell


def _layer_means(source: FeatureSource, parts: GraphTensors) -> dict[int, Tensor]:
    """The mean features of what feeds each group of neurons, (*batch, 14)."""
    sums: dict[int, Tensor] = {}
    counts: dict[int, int] = {}

    def add(group: int, values: Tensor, axes: int) -> None:
        rows = values.flatten(-1 - axes, -2)
        total = rows.sum(-2)
        sums[group] = sums[group] + total if group in sums else total
        counts[group] = counts.get(group, 0) + rows.shape[-2]

    for block in parts.weights:
        for part in block.parts:
            add(block.block.target, source.edges(block, part), 4)
    for number, bias in enumerate(parts.graph.biases):
        add(bias.group, source.bias(number), 2)
    return {group: total / max(1, counts[group]) for group, total in sums.items()}


def _expanded(said: Tensor, shape: Sequence[int]) -> Tensor:
    """(*batch, d) -> (*batch, *shape, d)."""
    *batch, d = said.shape
    return said.view(*batch, *[1] * len(shape), d).expand(*batch, *shape, d)
