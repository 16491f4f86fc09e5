"""Groups of parameters by role, for any optimizer: `ngopt.optimizer_groups`."""

from typing import Any

from torch import Tensor, nn

from ngopt.graph.build import build_graph
from ngopt.roles.from_graph import ParameterRole, check_module, roles_of

KINDS = (
    "matrix",
    "stack",
    "convolution",
    "embedding",
    "output",
    "norm",
    "bias",
    "other",
)
"""Roles of groups; see `optimizer_groups`."""
UNDECAYED = "norm", "bias", "other"


def optimizer_groups(
    model: nn.Module, example_input: Any = None, convolutions: bool = False
) -> list[dict[str, Any]]:
    """The parameters of a model in groups by role, for any optimizers.

    A group has "params", "param_names", as of `named_parameters`, and "role":

    - "matrix": hidden matrices of two dimensions, for Muon, SOAP, Shampoo, Dion;
    - "stack": hidden matrices of more dimensions, as of experts;
    - "convolution": kernels;
    - "embedding": tables, even if they are also the output matrix;
    - "output": last matrices before an output of the network;
    - "norm", "bias", "other": with "weight_decay" of 0. Other ones are tokens,
      positions, factors of layers, vectors that are not used.

    Groups without parameters are left out, and so are parameters that need no gradient.
    Tied parameters are in one group. `matrices` returns the matrices inside parameters.

    Args:
        model, example_input: As for `build_graph`. The model may be on the meta device.
        convolutions: Whether kernels, too, have the role "matrix"; `torch.optim.Muon`
            does not take them.

    Raises:
        TypeError: If `model` is no module.
        ValueError: As `build_graph`.

    Examples:
        >>> groups = ngopt.optimizer_groups(model, example_input)
        >>> hidden = [group for group in groups if group["role"] == "matrix"]
        >>> others = [group for group in groups if group["role"] != "matrix"]
        >>> muon = torch.optim.Muon(hidden, lr=0.02)
        >>> adamw = torch.optim.AdamW(others, lr=3e-4)
    """
    check_module("optimizer_groups", model)
    roles = roles_of(build_graph(model, example_input))
    parameters = dict(model.named_parameters())
    groups: dict[str, dict[str, Any]] = {}
    for role in roles:
        p = parameters[role.name]
        if not p.requires_grad:
            continue
        kind = kind_of(role, p)
        if kind == "convolution" and convolutions:
            kind = "matrix"
        group = groups.setdefault(kind, {"params": [], "param_names": [], "role": kind})
        group["params"].append(p)
        group["param_names"].append(role.name)
        if kind in UNDECAYED:
            group["weight_decay"] = 0.0
    return [groups[kind] for kind in KINDS if kind in groups]


def kind_of(role: ParameterRole, parameter: Tensor) -> str:
    """One of `KINDS`."""
    if role.role != "matrix" or parameter.dim() == 2:
        return role.role
    has_kernel = any(len(block.view.shape) > 3 for block in role.blocks)
    return "convolution" if has_kernel else "stack"
