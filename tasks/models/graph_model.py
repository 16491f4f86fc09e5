"""Base class of the graph models: NG-GNN, NG-T (Kofinas et al. 2024) and GMN (Lim et
al. 2024).

Their layers are those of the learned optimizers; inputs and outputs differ.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from harness.settings import check_setting
from ngopt.chunking import even_slices
from ngopt.graph import NeuralGraph
from ngopt.metanets.graph_data.feature_sources import WholeValues
from ngopt.metanets.graph_data.graph_tensors import GraphTensors, graph_tensors
from ngopt.metanets.layers.graph_layer import GraphLayer
from ngopt.metanets.layers.graph_network import GraphNetwork, GraphNetworkOptions
from tasks.models.base import ParameterModel
from tasks.models.learned_inputs import FreeInputs, GeneratedInputs
from tasks.models.mixture import MixedValues, NetworkLayout, layout_of, mixture_of
from tasks.models.mlp import mlp
from tasks.models.pooling import AttentionPooling, common_outputs
from tasks.models.probes import ProbeFeatures, Probes
from tasks.models.value_features import ValueFeatures
from tasks.networks.architectures import Architecture, NetworkStack

# Bounds of the kernels of one edge: larger kernels are cut into tiles, smaller ones are
# centred.
SMALLEST_KERNEL, LARGEST_KERNEL = 3, 7
# Edges of networks of several architectures in one call, so that they stay in the
# caches.
EDGES_PER_CALL = 1 << 16
# Edges in one call of a compiled step: 16 SIRENs [2, 32, 32, 1]. With more, cold caches
# cost more than the overhead of another call.
COMPILED_EDGES_PER_CALL = 18 << 10
# Width of the head on probe features of the outputs, as in ProbeGen.
OUTPUT_HEAD_WIDTH = 256


@dataclass(frozen=True)
class GraphModelConfig:
    """Sizes of a graph model."""

    width: int = 32
    """Width of node and edge states."""
    layers: int = 3
    """Rounds of messages."""
    heads: int = 4
    """Attention heads of ng-t, a divisor of the width."""
    complete_up_to: int = 128
    """In ng-t, all neurons attend to all in networks of up to this many neurons."""
    probes: int = 0
    """Learned inputs, for probe features (Kofinas et al. 2024, section 2.4)."""
    frequencies: int = 8
    """Number of random Fourier features of values."""
    bandwidth: float = 0.5
    """Standard deviation of these frequencies, in periods per standard deviation of the
    values."""
    scales: bool = False
    """Divide values by the RMS of their tensor, whose logarithm is another feature. For
    zoos, where networks differ by orders of magnitude, as ReLU networks in canonical
    form do. INRs are learned faster without."""
    activations: bool = True
    """Node features for the activation function of each neuron."""
    positions: bool = True
    """Node features for the layer of each neuron, and the index of inputs and
    outputs."""
    log_degree: float = 3.0
    """Constant of the amplification scaler (Corso et al. 2020, Eq. 5)."""
    queries: int = 4
    """Learned queries of the attention pooling."""
    hidden: int = 128
    """Width of the head on the pooled states."""
    dropout: float = 0.2
    """Dropout of the head on the pooled states."""
    output_head_layers: int = 0
    """Hidden layers of the output head, a second head on the probe features of the
    outputs, as in ProbeGen (Kahana et al. 2024). Its result is added. 0 for none."""
    output_head_first: float = 0.0
    """Share of the training run in which the output head is trained alone, in much
    faster steps. Afterwards the result of the first head is added, which is 0
    initially."""


class GraphModel(ParameterModel):
    """Messages between neurons, from standardised parameters and probe features.

    A subclass has a `name` and makes one `layer`.

    Shapes: a reader returns (b, d_out) for b networks, an editor (b, d_out, *shape) for
    every parameter.
    """

    Config = GraphModelConfig
    can_edit = True
    has_global_feature = False

    def build(self, d_out: int, config: GraphModelConfig) -> None:
        super().build(d_out, config)
        self.output_head_first = config.output_head_first
        self._in_first_stage = False
        self.fourier = ValueFeatures(
            config.frequencies, config.bandwidth, config.scales
        )
        # a reader uses no edge states after the last layer
        last = config.layers - 1
        layers = [
            self.layer(config, updates_edges=self.edits or k < last)
            for k in range(config.layers)
        ]
        self.network = GraphNetwork(
            self.fourier.size,
            d_out if self.edits else None,
            config.width,
            layers,
            largest_kernel(self.graph(one) for one in self.architectures),
            GraphNetworkOptions(
                activations=config.activations,
                global_feature=self.has_global_feature,
                positions=config.positions,
                slot_positions=self.has_global_feature,
            ),
        )
        self.probes = None
        if config.probes:
            shape = self.first.module.example_input().shape[1:]
            # free pixels overfit to the training networks
            kind = GeneratedInputs if len(shape) == 3 else FreeInputs
            inputs = kind(config.probes, shape)
            self.probes = Probes(inputs, config.probes, config.width)
        self._parts: dict[int, GraphTensors] = {}
        self._layouts: dict[int, NetworkLayout] = {}
        if not self.edits:
            self._make_heads(config, d_out)

    def layer(self, config: GraphModelConfig, updates_edges: bool) -> GraphLayer:
        """A round of messages, which updates node and optionally edge states."""
        raise NotImplementedError

    def graph(self, architecture: Architecture) -> NeuralGraph:
        """The graph on which messages are passed."""
        return architecture.graph

    def probe_features(self, stack: NetworkStack) -> ProbeFeatures:
        """Without probes, there are no codes, and no features of the outputs."""
        if self.probes is None:
            return ProbeFeatures((), stack.params[0].new_empty(stack.count, 0))
        return self.probes(stack)

    def fit(self, stacks: Iterable[NetworkStack]) -> None:
        super().fit(stacks)
        for architecture in self.architectures:
            # if they were made later, steps would be compiled again
            self.parts(architecture)

    def set_progress(self, share: float) -> int:
        self._in_first_stage = share < self.output_head_first
        return int(self._in_first_stage)

    @property
    def _skips_graph(self) -> bool:
        """Whether the output head is trained alone."""
        return self.training and self._in_first_stage

    def chunks(self, stack: NetworkStack) -> list[NetworkStack]:
        if self._skips_graph:
            return [stack]
        return list(self._split(stack, COMPILED_EDGES_PER_CALL))

    def forward(self, stack: NetworkStack) -> Tensor:
        if self._skips_graph:
            return self._output_head_alone([stack])
        probed = self.probe_features(stack)
        parts = self.parts(stack.architecture)
        states, _ = self.network.states(self._source(stack), parts, probed.codes)
        return self._apply_heads(self.pooling(states, parts.graph), probed.outputs)

    def forward_mixed(self, stacks: Sequence[NetworkStack]) -> Tensor:
        if len(stacks) == 1:
            return self.forward(stacks[0])
        if self._skips_graph:
            return self._output_head_alone(stacks)
        return torch.cat(list(map(self._forward_mixture, self._mixed_chunks(stacks))))

    def updates(self, stack: NetworkStack) -> list[Tensor]:
        parts = self.parts(stack.architecture)
        codes = self.probe_features(stack).codes
        decoded = self.network.decoded(self._source(stack), parts, codes)
        values = parts.graph.scatter(decoded, batch_dims=1)  # (b, *shape, d_out)
        return [value.movedim(-1, 1) for value in values]

    def parts(self, architecture: Architecture) -> GraphTensors:
        # an id is unique, since architectures are cached
        key = id(architecture)
        if key not in self._parts:
            like = self.network.position.weight
            graph = self.graph(architecture)
            self._parts[key] = graph_tensors(graph, self.network.kernel, like)
        return self._parts[key]

    def layout(self, architecture: Architecture) -> NetworkLayout:
        key = id(architecture)
        if key not in self._layouts:
            like = self.network.position.weight
            self._layouts[key] = layout_of(self.graph(architecture), like)
        return self._layouts[key]

    def _split(self, stack: NetworkStack, max_edges: int) -> Iterator[NetworkStack]:
        """A stack in chunks of up to `max_edges` edges, or of one network."""
        edges = max(1, self.parts(stack.architecture).edges)
        for index in even_slices(stack.count, max(1, max_edges // edges)):
            yield stack.select(index)

    def _mixed_chunks(
        self, stacks: Sequence[NetworkStack]
    ) -> Iterator[list[NetworkStack]]:
        """Networks of several architectures in chunks of up to `EDGES_PER_CALL` edges,
        or of one network."""
        chunk: list[NetworkStack] = []
        edges = 0
        for stack in stacks:
            for piece in self._split(stack, EDGES_PER_CALL):
                added = piece.count * self.parts(stack.architecture).edges
                if chunk and edges + added > EDGES_PER_CALL:
                    yield chunk
                    chunk, edges = [], 0
                chunk.append(piece)
                edges += added
        yield chunk

    def _forward_mixture(self, stacks: Sequence[NetworkStack]) -> Tensor:
        """`forward` for networks of several architectures, as one graph."""
        layouts = [(self.layout(stack.architecture), stack.count) for stack in stacks]
        sizes = [count * layout.nodes for layout, count in layouts]
        mixture = mixture_of(layouts, self.network.kernel)
        flat, probed, codes = [], [], []
        for stack in stacks:
            values = [value.flatten(1, -2) for value in self._prepared(stack)]
            flat.append(torch.cat(values, 1).flatten(0, 1))  # (b * numel, 1 or 2)
            features = self.probe_features(stack)
            probed.append(features.outputs)
            if self.probes is not None:
                codes.append(self._flat_codes(stack, features.codes))
        source = MixedValues(torch.cat(flat), mixture, self.fourier)
        extra = [torch.cat(codes)] if codes else []
        (states,), _ = self.network.states(source, mixture.tensors, extra)
        pooled = []
        for stack, of_stack in zip(stacks, states.split(sizes), strict=True):
            graph = self.graph(stack.architecture)
            nodes = of_stack.unflatten(0, (stack.count, -1))
            groups = nodes.split([group.size for group in graph.groups], 1)
            pooled.append(self.pooling(groups, graph))
        return self._apply_heads(torch.cat(pooled), torch.cat(probed))

    def _flat_codes(
        self, stack: NetworkStack, codes: Sequence[Tensor | None]
    ) -> Tensor:
        """Codes of all nodes of a stack, (b * n, width); zeros where there are none."""
        like, width = self.network.position.weight, self.network.width
        groups = self.graph(stack.architecture).groups
        filled = [
            like.new_zeros(stack.count, group.size, width) if code is None else code
            for group, code in zip(groups, codes, strict=True)
        ]
        return torch.cat(filled, 1).flatten(0, 1)

    def _apply_heads(self, pooled: Tensor, probed_outputs: Tensor) -> Tensor:
        predictions = self.head(pooled)
        if self.output_head is None:
            return predictions
        return predictions + self.output_head(probed_outputs.flatten(1))

    def _output_head_alone(self, stacks: Sequence[NetworkStack]) -> Tensor:
        """The result of the output head, without that of the first head."""
        assert self.probes is not None and self.output_head is not None
        features = torch.cat(list(map(self.probes.output_features, stacks)))
        return self.output_head(features.flatten(1))

    def _source(self, stack: NetworkStack) -> WholeValues:
        graph = self.graph(stack.architecture)
        features = list(map(self.fourier, self._prepared(stack)))
        values = graph.gather(features, batch_dims=1)
        return WholeValues(values, torch.Size([stack.count]))

    def _prepared(self, stack: NetworkStack) -> list[Tensor]:
        """Inputs of `ValueFeatures` for every parameter, (b, *shape, 1 or 2)."""
        return list(map(self.fourier.prepare, self.standardised(stack)))

    def _make_heads(self, config: GraphModelConfig, d_out: int) -> None:
        outputs = common_outputs(one.graph for one in self.architectures)
        self.pooling = AttentionPooling(config.width, config.queries, outputs)
        size = self.pooling.size
        layers = mlp(size, [config.hidden] * 2, d_out, config.dropout, nn.SiLU)
        self.head = nn.Sequential(nn.LayerNorm(size), layers)
        self.output_head = make_output_head(config, outputs, d_out)
        if config.output_head_first:
            for parameter in layers[-1].parameters():
                nn.init.zeros_(parameter)


def make_output_head(
    config: GraphModelConfig, outputs: int | None, d_out: int
) -> nn.Module | None:
    """The head on probe features of the outputs, (b, 2 m outputs) -> (b, d_out), or
    None if it has no layers.

    outputs: number of outputs of every network; None if it differs.

    Raises ValueError for such a head without probes or with different numbers of
    outputs, for `output_head_first` without such a head, and for a share not in [0, 1).
    """
    share = config.output_head_first
    check_setting(
        0 <= share < 1, "output_head_first", "a share of 0 or more, below 1", share
    )
    if not config.output_head_layers:
        if share:
            raise ValueError("output_head_first: expected output_head_layers; got none")
        return None
    if not config.probes:
        raise ValueError("output_head_layers: expected probes; got none")
    if outputs is None:
        raise ValueError(
            "output_head_layers: expected networks with the same number of outputs; "
            "got several numbers"
        )
    hidden = (OUTPUT_HEAD_WIDTH,) * config.output_head_layers
    return mlp(2 * config.probes * outputs, hidden, d_out)


def largest_kernel(graphs: Iterable[NeuralGraph]) -> tuple[int, int]:
    """The smallest square (height, width) that holds the kernels of all graphs, within
    the bounds."""
    side = SMALLEST_KERNEL
    for graph in graphs:
        for block in graph.weights:
            if len(block.slot_shape) > 1:
                side = max(side, *block.slot_shape[-2:])
    side = min(side, LARGEST_KERNEL)
    return side, side
