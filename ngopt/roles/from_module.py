"""The roles of a module's parameters: `parameter_roles`."""

from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn

from ngopt.graph.build import build_graph
from ngopt.roles.from_graph import ParameterRole, roles_of


def check_module(function: str, model: Any) -> None:
    """Raises TypeError, in the name of a function, if `model` is no module."""
    if not isinstance(model, nn.Module):
        raise TypeError(
            f"{function}: model: expected a torch.nn.Module; got {type(model).__name__}"
        )


def parameter_roles(
    model: nn.Module | Iterable[Tensor] | Iterable[tuple[str, Tensor]],
    example_input: Any = None,
) -> dict[str, ParameterRole]:
    """Name -> role of every parameter, in the order of the parameters.

    Raises ValueError as `build_graph` does.

    Args:
        model, example_input: As for `build_graph`. Without a module, roles follow from
            names and shapes.

    Examples:
        >>> roles = parameter_roles(model, example_input)
        >>> decayed = [p for name, p in model.named_parameters() if roles[name].blocks]
    """
    roles = roles_of(build_graph(model, example_input))
    return {role.name: role for role in roles}
