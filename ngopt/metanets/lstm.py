"""FF + LSTM: an LSTM reads mean features of one layer after the other (Kofinas et al.
2024, section 4.3).

A layer is the weights and biases that feed one group of neurons. The LSTM runs through
the depth of the network, not through time as that of Metz et al. 2020.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ngopt.graph.neural_graph import NeuralGraph
from ngopt.metanets.features import NUM_FEATURES
from ngopt.metanets.graph_data.feature_sources import FeatureSource
from ngopt.metanets.graph_data.graph_tensors import Contexts, GraphTensors
from ngopt.metanets.graph_metanet import GraphMetanet, GraphMetanetConfig

State = tuple[Tensor, Tensor]
"""Hidden and cell state of an LSTM, (*, width) each."""


@dataclass(frozen=True)
class LSTMConfig(GraphMetanetConfig):
    """width: features of the LSTM's state. Others as in `GraphMetanetConfig`."""

    width: int = 32


class LayerLSTM(GraphMetanet):
    """The metanet "lstm": the FF's context is the output of an LSTM at the parameter's
    layer.

    The LSTM reads the mean features of each layer, from inputs to outputs. Values that
    are not finite are zero in the means.
    """

    name = "lstm"
    config: LSTMConfig
    Config = LSTMConfig

    def __init__(self, config: LSTMConfig | None = None):
        super().__init__(config)
        self.cell = LSTMCell(NUM_FEATURES, self.config.width)
        self.out = nn.Linear(self.config.width, self.config.d_out)

    def context_pieces(self, source: FeatureSource, tensors: GraphTensors) -> Contexts:
        outputs = self._along_depth(_layer_means(source, tensors), tensors.graph)
        # expanded: no memory for the elements of a layer
        for number, bias in enumerate(tensors.graph.biases):
            yield number, _expanded(outputs[bias.group], bias.view.shape)
        for block in tensors.weights:
            output = outputs[block.block.target]
            for chunk in block.chunks:
                assert chunk.view is not None
                yield chunk, _expanded(output, chunk.view.shape)

    def _along_depth(
        self, means: dict[int, Tensor], graph: NeuralGraph
    ) -> dict[int, Tensor]:
        """Mean features (*batch, 14) of layers, by their group -> outputs (*batch,
        d_out).

        Layers of one depth, which may be exchangeable, read the same state; their mean
        state goes to the next depth.
        """
        levels: dict[tuple[int, float], list[int]] = {}
        for group in means:
            network = graph.membership[group]
            levels.setdefault((network, graph.groups[group].depth), []).append(group)
        outputs: dict[int, Tensor] = {}
        states: dict[int, State] = {}  # of every network
        for (network, _), groups in sorted(levels.items()):
            before = states.get(network)
            hiddens, cells = [], []
            for group in groups:
                hidden, cell = self.cell(means[group], before)
                outputs[group] = self.out(hidden)
                hiddens.append(hidden)
                cells.append(cell)
            states[network] = torch.stack(hiddens).mean(0), torch.stack(cells).mean(0)
        return outputs


class LSTMCell(nn.Module):
    """An LSTM's step (Hochreiter & Schmidhuber 1997), as `nn.LSTMCell`, which
    `torch.vmap` cannot map.

    Shapes: inputs (*, d_in), and the state before, None for zeros -> the state after.
    """

    def __init__(self, d_in: int, width: int):
        super().__init__()
        self.width = width
        self.gates = nn.Linear(d_in + width, 4 * width)

    def forward(self, inputs: Tensor, state: State | None) -> State:
        zeros = inputs.new_zeros(*inputs.shape[:-1], self.width)
        hidden, cell = (zeros, zeros) if state is None else state
        gates = self.gates(torch.cat([inputs, hidden], -1))
        enter, forget, new, leave = gates.chunk(4, -1)
        cell = forget.sigmoid() * cell + enter.sigmoid() * new.tanh()
        return leave.sigmoid() * cell.tanh(), cell


def _layer_means(source: FeatureSource, tensors: GraphTensors) -> dict[int, Tensor]:
    """The mean features of the parameters that feed each group, (*batch, 14)."""
    sums: dict[int, Tensor] = {}
    counts: Counter[int] = Counter()

    def add(group: int, features: Tensor) -> None:
        total = features.sum(-2)
        sums[group] = sums[group] + total if group in sums else total
        counts[group] += features.shape[-2]

    for block in tensors.weights:
        for chunk in block.chunks:
            add(block.block.target, source.edges(chunk).flatten(-5, -2))
    for number, bias in enumerate(tensors.graph.biases):
        add(bias.group, source.bias(number).flatten(-3, -2))
    return {group: total / max(1, counts[group]) for group, total in sums.items()}


def _expanded(output: Tensor, shape: Sequence[int]) -> Tensor:
    """(*batch, d) -> (*batch, *shape, d)."""
    *batch, d = output.shape
    return output.view(*batch, *[1] * len(shape), d).expand(*batch, *shape, d)
