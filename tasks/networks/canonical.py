"""Canonical form of stacks of networks."""

from ngopt.graph import canonical
from tasks.networks.architectures import NetworkStack


def in_canonical_form(stack: NetworkStack) -> NetworkStack:
    """Networks of the same functions, with signs, phases and scales of neurons as
    `ngopt.graph.canonical` chooses them."""
    architecture, params = stack
    frequency = architecture.module.frequency
    form = canonical(architecture.graph, params, frequency, batch_dims=1)
    return NetworkStack(architecture, form.params)
