"""What networks that are data have in common: a module, its neural graph, and what their neurons say of inputs."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from ngopt.graph import NeuralGraph, build_graph
from tasks.shards import Networks
from tasks.siren import Siren
from tasks.subject import Subject

KINDS: dict[str, Callable[..., Subject]] = {"siren": Siren}
"""What makes the module of an architecture, given the rest of its description."""


@dataclass(frozen=True, eq=False)
class Architecture:
    """Networks that differ in their parameters alone.

    description: its kind, one of `KINDS`, and arguments. module: one such network; its own parameters
    mean nothing. graph: with parameters in the module's order.
    """

    description: Mapping[str, Any]
    module: Subject
    graph: NeuralGraph

    @property
    def names(self) -> tuple[str, ...]:
        """Of the parameters."""
        return tuple(spec.name for spec in self.graph.parameters)

    def neurons(self, params: Sequence[Tensor], inputs: Tensor) -> list[Tensor]:
        """What the neurons of stacked networks say of the same inputs.

        Shapes: params (b, *shape) each, inputs (m, *) -> for every group of the graph (b, m, size, *space).
        """

        def one(params: Sequence[Tensor]) -> list[Tensor]:
            own = dict(zip(self.names, params, strict=True))
            return functional_call(_Neurons(self.module), _within(own), (inputs,))

        return vmap(one)(list(params))

    def outputs(self, params: Sequence[Tensor], inputs: Tensor) -> Tensor:
        """What stacked networks say of the same inputs, (b, m, outputs)."""
        return self.neurons(params, inputs)[-1]


class Stack(NamedTuple):
    """Networks of one architecture: params are (b, *shape), one for each of the graph's parameters."""

    architecture: Architecture
    params: list[Tensor]

    @classmethod
    def of(cls, networks: Networks) -> Stack:
        architecture = architecture_of(networks.architecture)
        return cls(architecture, [networks.params[name] for name in architecture.names])

    @property
    def count(self) -> int:
        return len(self.params[0])

    def select(self, which: slice | Tensor | Sequence[int]) -> Stack:
        """Some of them: a slice, or (k,) numbers."""
        return Stack(self.architecture, [p[which] for p in self.params])


def architecture_of(description: Mapping[str, Any]) -> Architecture:
    """The architecture that a description, as in shards, names. Raises ValueError for an unknown kind."""
    return _architecture(json.dumps(dict(description), sort_keys=True))


@lru_cache(maxsize=4096)
def _architecture(text: str) -> Architecture:
    description = json.loads(text)
    rest = dict(description)
    kind = rest.pop("kind", None)
    if kind not in KINDS:
        raise ValueError(f"architecture: kind: expected one of {', '.join(KINDS)}; got {kind!r}")
    with torch.random.fork_rng(devices=[]):
        module = KINDS[kind](**rest)
    return Architecture(description, module, build_graph(module, module.example()))


class _Neurons(nn.Module):
    """A subject whose forward pass is `neurons`."""

    def __init__(self, subject: Subject):
        super().__init__()
        self.subject = subject

    def forward(self, inputs: Tensor) -> list[Tensor]:
        return self.subject.neurons(inputs)


def _within(params: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {f"subject.{name}": value for name, value in params.items()}
