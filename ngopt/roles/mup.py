"""Groups of parameters with learning rates of muP (Yang et al. 2022), for AdamW."""

from typing import Any

from torch import nn

from ngopt.graph.build import build_graph
from ngopt.graph.groups_and_blocks import EdgeBlock
from ngopt.graph.neural_graph import NeuralGraph
from ngopt.roles.from_graph import roles_of
from ngopt.roles.neuron_usage import is_dense

REFERENCE_WIDTH = 256


def mup_groups(
    model: nn.Module,
    example_input: Any,
    lr: float,
    weight_decay: float = 0.01,
    reference_width: int = REFERENCE_WIDTH,
) -> list[dict[str, Any]]:
    """Groups of parameters whose learning rates fit every width (muP, Yang et al. 2022,
    Table 8).

    A matrix that reads hidden neurons has the learning rate
    `lr * reference_width / width`, where width is the number of neurons that it reads.
    All other parameters have `lr`: those that read inputs of the network, tables,
    norms and biases. The product of learning rate and weight decay is the same for
    all. Which neurons are hidden follows from the graph of the network, so neither
    names nor a base model are needed.

    A table that is the output matrix, too, counts as one that reads hidden neurons.

    Weights and functions of the network stay as they are. muP also asks for initial
    output weights in proportion to 1 / width, or zeros. If the width of attention heads
    changes, it divides attention logits by that width instead of its root.

    Args:
        model, example_input: As for `build_graph`.
        lr: Best learning rate of a network of `reference_width`.
        weight_decay: As of `torch.optim.AdamW`, with `lr`.

    Returns:
        Groups for `torch.optim.AdamW`, those with the largest learning rate first.
        "names" has the names of their parameters.

    Raises:
        ValueError: As `build_graph`, or if it is unknown what parameters connect.

    Examples:
        >>> groups = ngopt.mup_groups(model, example_input, lr=1e-3)
        >>> opt = torch.optim.AdamW(groups)
    """
    graph = build_graph(model, example_input)
    unknown = [
        spec.name
        for spec, is_inferred in zip(graph.parameters, graph.inferred, strict=False)
        if is_inferred
    ]
    if unknown:
        raise ValueError(
            "mup_groups: expected a network that can be traced; got "
            f"{len(unknown)} parameters of unknown connections, such as "
            f"'{unknown[0]}'. Pass an example input, or give these layers a rule with "
            "register_layer_rule."
        )
    parameters = dict(model.named_parameters())
    groups: dict[float, dict[str, Any]] = {}
    for name, width in _widths_read(graph).items():
        factor = reference_width / width if width else 1.0
        group = groups.setdefault(
            factor,
            {
                "params": [],
                "names": [],
                "lr": lr * factor,
                "weight_decay": weight_decay / factor,
            },
        )
        group["params"].append(parameters[name])
        group["names"].append(name)
    return [groups[factor] for factor in sorted(groups, reverse=True)]


def _widths_read(graph: NeuralGraph) -> dict[str, int | None]:
    """By name: the number of hidden neurons that a matrix reads; None if it reads
    others, or is none."""
    matrices = {b.elements.parameter for b in graph.weights if _is_matrix(graph, b)}
    widths: dict[str, int | None] = {}
    for number, role in enumerate(roles_of(graph)):
        is_table = role.role == "embedding"
        sizes = []
        for block in role.blocks:
            for rows, columns in zip(block.rows, block.columns, strict=True):
                # a table that is the output matrix, too, reads its rows
                ends, axis = (rows, 1) if is_table else (columns, 2)
                is_hidden = not any(graph.groups[x.group].is_fixed for x in ends)
                if is_hidden and (not is_table or number in matrices):
                    sizes.append(block.view.shape[axis])
        widths[role.name] = max(sizes, default=None)
    return widths


def _is_matrix(graph: NeuralGraph, block: EdgeBlock) -> bool:
    """Whether a block is of a matrix, not of a table of tokens."""
    return is_dense(block) and graph.groups[block.source].kind != "token"
