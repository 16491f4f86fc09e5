"""What networks that are data have in common: a module, its neural graph,
and what their neurons say of inputs."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from ngopt.graph import NeuralGraph, build_graph
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
"""What makes the module of an architecture, given the rest of its description."""


@dataclass(frozen=True, eq=False)
class Architecture:
    """Networks that differ in their parameters alone.

    description: its kind, one of `KINDS`, and arguments. module: one such network; its
    own parameters mean nothing. graph: with parameters in the module's order.
    """

    description: Mapping[str, Any]
    module: InputNetwork
    graph: NeuralGraph

    @property
    def names(self) -> tuple[str, ...]:
        """Of the parameters."""
        return tuple(spec.name for spec in self.graph.parameters)

    @cached_property
    def speaks(self) -> tuple[bool, ...]:
        """Of every group of the graph, whether `group_activations` knows what it says."""
        with torch.no_grad():
            return tuple(
                said is not None
                for said in self.module.group_activations(self.module.example_input())
            )

    def group_activations(
        self, params: Sequence[Tensor], inputs: Tensor
    ) -> list[Tensor | None]:
        """What the neurons of stacked networks say of the same inputs.

        Shapes: params (b, *shape) each, inputs (m, *) -> for every group of the graph
        (b, m, size, *space), or None (see `InputNetwork.group_activations`).
        """

        def one(params: Sequence[Tensor]) -> list[Tensor]:
            own = dict(zip(self.names, params, strict=True))
            return functional_call(_Neurons(self.module), _within(own), (inputs,))

        found = iter(vmap(one)(list(params)))
        return [next(found) if speaks else None for speaks in self.speaks]

    def outputs(self, params: Sequence[Tensor], inputs: Tensor) -> Tensor:
        """What stacked networks say of the same inputs, (b, m, outputs)."""
        found = self.group_activations(params, inputs)[self.module.output_group]
        assert found is not None
        return found


class NetworkStack(NamedTuple):
    """Networks of one architecture: params are (b, *shape),
    one for each of the graph's parameters."""

    architecture: Architecture
    params: list[Tensor]

    @classmethod
    def from_networks(cls, networks: Networks) -> NetworkStack:
        """Raises ValueError, which names the parameter, for those that are not the
        architecture's or not finite."""
        architecture = architecture_of(networks.architecture)
        specs = architecture.graph.parameters
        expected = {spec.name: spec.shape for spec in specs}
        check_parameters("networks", expected, networks.params)
        return cls(architecture, [networks.params[name] for name in architecture.names])

    @property
    def count(self) -> int:
        return len(self.params[0])

    def select(self, which: slice | Tensor | Sequence[int]) -> NetworkStack:
        """Some of them: a slice, or (k,) numbers."""
        return NetworkStack(self.architecture, [p[which] for p in self.params])


def architecture_of(description: Mapping[str, Any]) -> Architecture:
    """The architecture that a description, as in shards, names.
    Raises ValueError for an unknown kind."""
    return _architecture(json.dumps(dict(description), sort_keys=True))


def make_module(description: Mapping[str, Any], **more: Any) -> InputNetwork:
    """A network of an architecture, initialised from torch's random numbers.

    more: arguments that are no part of the architecture.

    Raises ValueError for a description that is of no kind, or not as its kind has it.
    """
    rest = {**description, **more}
    kind = rest.pop("kind", None)
    if kind not in KINDS:
        raise ValueError(
            f"architecture: kind: expected one of {', '.join(KINDS)}; got {kind!r}"
        )
    try:
        return KINDS[kind](**rest)
    except TypeError as error:
        raise ValueError(f"architecture: {kind}: {error}") from None


@lru_cache(maxsize=4096)
def _architecture(text: str) -> Architecture:
    description = json.loads(text)
    with torch.random.fork_rng(devices=[]):
        module = make_module(description)
    return Architecture(
        description, module, build_graph(module, module.example_input())
    )


class _Neurons(nn.Module):
    """A subject whose forward pass is what is known of its `group_activations`."""

    def __init__(self, subject: InputNetwork):
        super().__init__()
        self.subject = subject

    def forward(self, inputs: Tensor) -> list[Tensor]:
        return [
            said for said in self.subject.group_activations(inputs) if said is not None
        ]


def _within(params: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {f"subject.{name}": value for name, value in params.items()}
