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
        return cached_parameter_graph(architecture)

    def probe_features(self, stack: NetworkStack) -> ProbeFeatures:
        """Codes of the groups of the parameter graph.

        The two sides of a norm may be one group there; their codes are added.
        """
        features = super().probe_features(stack)
        if not features.codes:
            return features
        groups = self.graph(stack.architecture).groups
        codes: list[Tensor | None] = [None] * len(groups)
        places = cached_neuron_places(stack.architecture)
        for code, (group, index) in zip(features.codes, places, strict=True):
            if code is None:
                continue
            if index is not None:
                # zeros elsewhere
                empty = code.new_zeros(len(code), groups[group].size, code.shape[-1])
                index = torch.tensor(index, device=code.device)
                code = empty.index_copy(1, index, code)
            before = codes[group]
            codes[group] = code if before is None else before + code
        return features._replace(codes=codes)


@lru_cache(maxsize=4096)
def cached_parameter_graph(architecture: Architecture) -> NeuralGraph:
    return parameter_graph(architecture.graph)


@lru_cache(maxsize=4096)
def cached_neuron_places(architecture: Architecture) -> list[NeuronSet]:
    """See `neuron_places`."""
    return neuron_places(architecture.graph)
