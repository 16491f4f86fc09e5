"""GMN: message passing on the parameter graph, with a global feature (Lim et al.
2024)."""

from functools import lru_cache

import torch
from torch import Tensor

from ngopt.graph import NeuralGraph, parameter_graph
from ngopt.graph.groups_and_blocks import NeuronSet
from ngopt.graph.views.parameter_graph import neuron_places
from tasks.models.ng_gnn import NGGNN
from tasks.models.probes import ProbeFeatures
from tasks.networks.architectures import Architecture, NetworkStack


class GMN(NGGNN):
    """The model "gmn", with the layers of NG-GNN."""

    name = "gmn"
    has_global_feature = True

    def graph(self, architecture: Architecture) -> NeuralGraph:
        return parameter_graph_of(architecture)[0]

    def probe_features(self, stack: NetworkStack) -> ProbeFeatures:
        """Codes of the groups of the parameter graph.

        The two sides of a norm may be one group there; their codes are added.
        """
        features = super().probe_features(stack)
        if not features.codes:
            return features
        graph, places = parameter_graph_of(stack.architecture)
        codes: list[Tensor | None] = [None] * len(graph.groups)
        for code, (group, index) in zip(features.codes, places, strict=True):
            if code is None:
                continue
            if index is not None:
                # zeros elsewhere
                size = graph.groups[group].size
                empty = code.new_zeros(len(code), size, code.shape[-1])
                code = empty.index_copy(
                    1, torch.tensor(index, device=code.device), code
                )
            before = codes[group]
            codes[group] = code if before is None else before + code
        return features._replace(codes=codes)


@lru_cache(maxsize=4096)
def parameter_graph_of(
    architecture: Architecture,
) -> tuple[NeuralGraph, list[NeuronSet]]:
    """The parameter graph, and the places of neurons in it, see `neuron_places`."""
    return parameter_graph(architecture.graph), neuron_places(architecture.graph)
