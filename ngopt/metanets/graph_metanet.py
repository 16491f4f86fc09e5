"""Base classes of the metanets that read the graph: an FF with context features."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import ClassVar

from torch import Tensor

from ngopt.graph.neural_graph import NeuralGraph
from ngopt.metanets.features import NUM_FEATURES
from ngopt.metanets.feedforward import FeedForward, FeedForwardConfig
from ngopt.metanets.graph_data import graph_tensors
from ngopt.metanets.graph_data.feature_sources import FeatureSource
from ngopt.metanets.graph_data.graph_tensors import Contexts, GraphTensors
from ngopt.metanets.layers.graph_layer import GraphLayer
from ngopt.metanets.layers.graph_network import GraphNetwork


@dataclass(frozen=True)
class GraphMetanetConfig(FeedForwardConfig):
    """d_out: context features of each parameter. kernel: largest (height, width) of a
    kernel on one edge. graph_every: steps of an optimizer between two computations of
    the context. Others as in `FeedForwardConfig`.
    """

    d_out: int = 8
    kernel: tuple[int, int] = (3, 3)
    graph_every: int = 1


class GraphMetanet(FeedForward):
    """Base class. The FF's input is a parameter's features and its context (Kofinas et
    al. 2024, section 4.3).

    A subclass has `context_pieces`: the context of every bias and chunk of a weight.

    Shapes: features `(*batch, numel, 14)`, in the order of `NeuralGraph.flatten` ->
    `(*batch, numel)`.
    """

    config: GraphMetanetConfig
    Config = GraphMetanetConfig

    @property
    def graph_every(self) -> int:
        return self.config.graph_every

    @property
    def d_context(self) -> int:
        return self.config.d_out

    def graph_tensors(
        self, graph: NeuralGraph, like: Tensor, limit: int | None = None
    ) -> GraphTensors:
        return graph_tensors.graph_tensors(graph, self.config.kernel, like, limit)

    def context_pieces(self, source: FeatureSource, tensors: GraphTensors) -> Contexts:
        """The context of every place, `(*batch, *shape of the view, d_out)`, whose
        slots are one axis."""
        raise NotImplementedError

    def context(
        self,
        source: FeatureSource,
        tensors: GraphTensors,
        out: Sequence[Tensor] | None = None,
    ) -> list[Tensor]:
        """See `Metanet.context`. An element in several places gets their mean."""
        graph = tensors.graph
        context: list[Tensor | None] = [None] * len(graph.parameters)
        for i, values in enumerate(out or ()):
            context[i] = values.unsqueeze(0)
            if not isinstance(tensors.uses[i], int):
                values.zero_()
        count = prod(source.batch)
        for place, values in self.context_pieces(source, tensors):
            view = graph.biases[place].view if isinstance(place, int) else place.view
            assert view is not None
            i = view.parameter
            spec = graph.parameters[i]
            uses = tensors.uses[i]
            d = values.shape[-1]
            if out is None and isinstance(uses, int) and view.is_whole(spec):
                context[i] = values.reshape(count, spec.numel, d)
                continue
            values = values.reshape(count, *view.shape, d)
            total = context[i]
            if total is None:
                total = context[i] = values.new_zeros(count, spec.numel, d)
            if not isinstance(uses, int):
                shares = values / view.read(uses.unsqueeze(0)).to(values)
                values = view.read(total) + shares
            view.write(total, values)
        whole = [values for values in context if values is not None]
        return [values.reshape(*source.batch, *values.shape[1:]) for values in whole]


@dataclass(frozen=True)
class MessagePassingConfig(GraphMetanetConfig):
    """width: features of nodes and edges. layers: rounds of message passing. Others as
    in `GraphMetanetConfig`."""

    width: int = 32
    layers: int = 2


class MessagePassingMetanet(GraphMetanet):
    """Base class. The context is the output of a `GraphNetwork`.

    A subclass has `layer` and `network_name`, the name of the graph network's weights.
    Values that are not finite are zero in the messages: they stay with the parameter
    they belong to.
    """

    config: MessagePassingConfig
    network_name: ClassVar[str]

    def __init__(self, config: MessagePassingConfig | None = None):
        super().__init__(config)
        c = self.config
        layers = [self.layer() for _ in range(c.layers)]
        network = GraphNetwork(NUM_FEATURES, c.d_out, c.width, layers, c.kernel)
        self.add_module(self.network_name, network)

    def layer(self) -> GraphLayer:
        """One round of message passing."""
        raise NotImplementedError

    def context_pieces(self, source: FeatureSource, tensors: GraphTensors) -> Contexts:
        network = self.get_submodule(self.network_name)
        assert isinstance(network, GraphNetwork)
        return network.pieces(source, tensors)
