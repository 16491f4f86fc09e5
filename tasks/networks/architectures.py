"""Architectures of input networks, and stacks of networks of one architecture."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.func import functional_call, vmap

from harness.errors import prefixed_errors
from harness.settings import check_setting
from ngopt.graph import NeuralGraph, build_graph, canonical
from tasks.networks.cnn import CNN
from tasks.networks.deep_sets import DeepSets
from tasks.networks.input_network import InputNetwork
from tasks.networks.siren import Siren
from tasks.networks.vit import ViT
from tasks.shards import Networks, check_parameters

KINDS: dict[str, Callable[..., InputNetwork]] = {
    "siren": Siren,
    "cnn": CNN,
    "deep-sets": DeepSets,
    "vit": ViT,
}
"""The module of a description, by its kind."""


@dataclass(frozen=True, eq=False)
class Architecture:
    """What networks share that differ only in their parameters.

    description: JSON: its kind, one of `KINDS`, and that kind's arguments.
    module: one such network; the values of its own parameters are not used.
    graph: its parameters are in the module's order.
    """

    description: Mapping[str, Any]
    module: InputNetwork
    graph: NeuralGraph

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the parameters."""
        return tuple(spec.name for spec in self.graph.parameters)

    def group_activations(
        self, params: Sequence[Tensor], inputs: Tensor
    ) -> list[Tensor | None]:
        """Activations of stacked networks on the same inputs, by neuron group.

        Shapes: params (b, *shape) each, inputs (m, *) -> (b, m, size, *space), or None
        (see `InputNetwork.group_activations`).
        """

        def run(params: list[Tensor]) -> dict[int, Tensor]:
            named = dict(zip(self.names, params, strict=True))
            activations = functional_call(self.module, named, (inputs, True))
            # vmap returns tensors alone
            return {
                n: value for n, value in enumerate(activations) if value is not None
            }

        values = vmap(run)(list(params))
        return [values.get(number) for number in range(len(self.graph.groups))]

    def outputs(self, params: Sequence[Tensor], inputs: Tensor) -> Tensor:
        """Outputs of stacked networks on the same inputs, (b, m, outputs)."""
        outputs = self.group_activations(params, inputs)[self.module.output_group]
        assert outputs is not None
        return outputs


class NetworkStack(NamedTuple):
    """b networks of one architecture.

    params: one tensor (b, *shape) for each of the graph's parameters.
    """

    architecture: Architecture
    params: list[Tensor]

    @classmethod
    def from_networks(cls, networks: Networks) -> "NetworkStack":
        """Raises ValueError, which names the parameter, for missing, unexpected or
        non-finite parameters."""
        architecture = architecture_of(networks.architecture)
        expected = {spec.name: spec.shape for spec in architecture.graph.parameters}
        with prefixed_errors("networks"):
            check_parameters(expected, networks.params)
        return cls(architecture, [networks.params[name] for name in expected])

    @property
    def count(self) -> int:
        return len(self.params[0])

    def canonical(self) -> "NetworkStack":
        """Networks of the same functions, with signs, phases and scales of neurons as
        `ngopt.graph.canonical` chooses them."""
        architecture, params = self
        frequency = architecture.module.frequency
        form = canonical(architecture.graph, params, frequency, batch_dims=1)
        return NetworkStack(architecture, form.params)

    def select(self, index: slice | Tensor | Sequence[int]) -> "NetworkStack":
        """Some of the networks: a slice, or indices (k,)."""
        return NetworkStack(self.architecture, [p[index] for p in self.params])

    def split(self, size: int) -> "list[NetworkStack]":
        """The networks in order, `size` at a time."""
        return list(map(self.select, torch.arange(self.count).split(size)))


def architecture_of(description: Mapping[str, Any]) -> Architecture:
    """The architecture of a description; equal descriptions give the same object.
    Raises ValueError for an unknown kind."""
    return _cached_architecture(json.dumps(dict(description), sort_keys=True))


def make_module(description: Mapping[str, Any], **options: Any) -> InputNetwork:
    """A network, initialised from torch's random numbers.

    options: arguments that are not part of the architecture, such as dropout. Raises
    ValueError for an unknown kind, and for arguments that its kind does not take.
    """
    arguments = {**description, **options}
    kind = arguments.pop("kind", None)
    expected = f"one of {', '.join(KINDS)}"
    check_setting(kind in KINDS, "architecture: kind", expected, repr(kind))
    try:
        return KINDS[kind](**arguments)
    except TypeError as error:
        raise ValueError(f"architecture: {kind}: {error}") from None


@lru_cache(maxsize=4096)
def _cached_architecture(description_json: str) -> Architecture:
    description = json.loads(description_json)
    with torch.random.fork_rng(devices=[]):
        module = make_module(description)
    graph = build_graph(module, module.example_input())
    return Architecture(description, module, graph)
