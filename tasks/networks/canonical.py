"""Stacks of networks in canonical form: one of each family that computes the same
function."""

from __future__ import annotations

from ngopt.graph import canonical
from tasks.networks.architectures import NetworkStack


def in_canonical_form(stack: NetworkStack) -> NetworkStack:
    """The same functions; signs, phases and scales of neurons as
    `ngopt.graph.canonical` chooses them."""
    architecture, params = stack
    frequency = architecture.module.frequency
    found = canonical(architecture.graph, params, frequency, batch_dims=1)
    return NetworkStack(architecture, found.params)
