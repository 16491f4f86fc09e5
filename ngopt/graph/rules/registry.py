"""The registry of rules.

A rule says what a function or a module adds to the neural graph. For a function of
`torch.ops` it is called as `rule(tracer, call, *args, **kwargs)`. `call` is the
function's node in the graph of torch.fx, the arguments are the function's own, in which
tensors are `Neurons`, `Elements` of a parameter, `Unknown` or constants. For a module
class it is called as `rule(tracer, call, module, *inputs)`, instead of following the
functions inside. It returns the same kinds of values for the result. Where the values
of an input decide what a network does, only rules for functions apply (see
`ngopt.graph.tracing.capture`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

aten = torch.ops.aten

Rule = Callable[..., Any]

RULES: dict[Any, Rule] = {}


def register_rule(*targets: Any) -> Callable[[Rule], Rule]:
    """Registers a rule for functions of `torch.ops` (all overloads, or one) or for
    module classes.

    "library.name" is a function of a library that may not be imported yet.
    A later rule for the same target takes the place of the earlier one.
    """

    def register(rule: Rule) -> Rule:
        for target in targets:
            # overloads and their packets are keys; `RuleInterpreter._value` looks for the overload
            # first
            RULES[target] = rule
        return rule

    return register


def functions(names: str) -> list[Any]:
    """The functions of torch that have these names, as far as this version has them."""
    return [getattr(aten, name) for name in names.split() if hasattr(aten, name)]
