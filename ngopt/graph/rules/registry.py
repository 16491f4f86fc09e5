"""The registry of rules.

A rule adds the nodes and edges of a function or a module to the neural graph. A rule
for a function of `torch.ops` is called as `rule(tracer, call, *args, **kwargs)`: `call`
is the function's node in the graph of torch.fx, the arguments are the function's own,
in which tensors are `Neurons`, `Elements` of a parameter, `Unknown` or constants. A
rule for a module class is called as `rule(tracer, call, module, *inputs)`, instead of
rules for the functions inside. It returns the same kinds of values for the result; one
value for several results is that of all that have its shape and are no indices. If the
values of an input decide what a network does, only rules for functions apply (see
`ngopt.graph.tracing.capture`).
"""

from collections.abc import Callable
from typing import Any

import torch

aten = torch.ops.aten

Rule = Callable[..., Any]

RULES: dict[Any, Rule] = {}
"""By overload, packet or module class; the rule of an overload comes first."""


def register_layer_rule(*targets: Any) -> Callable[[Rule], Rule]:
    """Registers a rule for functions of `torch.ops` (all overloads, or one) or for
    module classes.

    "library.name" is a function of a library that may not be imported yet.
    A later rule for the same target replaces the earlier one.
    """

    def register(rule: Rule) -> Rule:
        RULES.update(dict.fromkeys(targets, rule))
        return rule

    return register


def functions(names: str) -> list[Any]:
    """The functions of torch that have these names; those that it lacks are skipped."""
    return [getattr(aten, name) for name in names.split() if hasattr(aten, name)]
