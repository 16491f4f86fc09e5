"""Groups of parameters with learning rates of muP (Yang et al. 2022), for AdamW."""

import warnings
from collections import defaultdict
from math import isfinite
from typing import Any

from torch import nn

from ngopt.graph.build import build_graph
from ngopt.graph.connectivity import unconnected
from ngopt.graph.neural_graph import NeuralGraph
from ngopt.roles.from_graph import check_module
from ngopt.roles.neuron_usage import is_dense, is_gated

REFERENCE_WIDTH = 256
MAX_FACTOR = 8.0  # narrower matrices, such as adapters, do not grow with the network


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
    `lr * reference_width / width`, where width is the number of hidden neurons that it
    reads, times the positions of a kernel; at most `8 * lr`. A tied table counts as
    such a matrix. All other parameters have `lr`: matrices that read inputs of the
    network, depthwise kernels, tables, norms and biases. The product of learning rate
    and weight decay is the same for all. Which neurons are hidden follows from the
    graph of the network, so neither names nor a base model are needed.

    Weights and functions of the network do not change. In muP initial output weights
    are also in proportion to 1 / width, or zeros. If the width of attention heads
    changes, attention logits are divided by that width instead of its root.

    Matrices that read results of functions which mix neurons, such as sorting, a
    Fourier transform or a spectral norm, have `lr`, too, and so have recurrent weights
    if the state is an input of the network.

    Args:
        model, example_input: As for `build_graph`.
        lr: Best learning rate of a network of `reference_width`.
        weight_decay: As of `torch.optim.AdamW`, with `lr`.

    Returns:
        Groups for `torch.optim.AdamW`, those with the largest learning rate first.
        "names" has the names of their parameters.

    Raises:
        TypeError: If `model` is no module.
        ValueError: As `build_graph`, if it is unknown what parameters connect, or if a
            number is out of range.

    Examples:
        >>> groups = ngopt.mup_groups(model, example_input, lr=1e-3)
        >>> opt = torch.optim.AdamW(groups)
    """
    check_module("mup_groups", model)
    _check("lr", lr)
    _check("weight_decay", weight_decay)
    _check("reference_width", reference_width, is_positive=True)
    graph = build_graph(model, example_input)
    if any(graph.inferred):
        unknown = graph.parameters[graph.inferred.index(True)].name
        raise ValueError(
            "mup_groups: expected a network that can be traced; got parameters of "
            f"unknown connections, such as '{unknown}'. Pass an example input, or give "
            "these layers a rule with register_layer_rule."
        )
    loose = unconnected(graph)
    if loose:
        warnings.warn(
            f"mup_groups: {len(loose)} parameters are not connected to the others in "
            f"the graph of the network, such as '{loose[0]}'. Matrices that read their "
            "outputs have lr, as if they read inputs.",
            stacklevel=2,
        )
    widths = _widths_read(graph)
    parameters = dict(model.named_parameters())
    groups: dict[float, dict[str, Any]] = {}
    for number, spec in enumerate(graph.parameters):
        factor = 1.0
        if number in widths:
            factor = min(reference_width / widths[number], MAX_FACTOR)
        settings = {"lr": lr * factor, "weight_decay": weight_decay / factor}
        group = groups.setdefault(factor, {"params": [], "names": [], **settings})
        group["params"].append(parameters[spec.name])
        group["names"].append(spec.name)
    return [groups[factor] for factor in sorted(groups, reverse=True)]


def _widths_read(graph: NeuralGraph) -> dict[int, int]:
    """By number of a parameter that is a matrix: how many hidden neurons it reads,
    times positions of a kernel; the most of its uses."""
    reads: dict[tuple[int, int], dict[Any, int]] = defaultdict(dict)
    for block in graph.weights:
        source = graph.groups[block.source]
        # hidden neurons, of which a wider network has more, may be outputs, too, such
        # as the state of a recurrent layer
        is_inner = source.role in ("hidden", "output") and not source.is_pinned
        is_hidden = is_inner and source.kind != "token"
        if is_hidden and is_dense(block) and block.shape[2] > 1:
            is_kernel = not is_gated(graph, block.target, block.slot_shape)
            width = block.shape[2] * (block.slots if is_kernel else 1)
            # heads are blocks of one parameter that read the same neurons
            neurons = block.source, block.source_index
            reads[block.elements.parameter, block.target][neurons] = width
    widths: dict[int, int] = {}
    for (number, _), of_sources in reads.items():
        widths[number] = max(widths.get(number, 0), sum(of_sources.values()))
    return widths


def _check(name: str, value: float, is_positive: bool = False) -> None:
    """Raises ValueError if a number is not finite, negative or, if asked, zero."""
    is_number = isinstance(value, int | float) and isfinite(value)
    if not is_number or value < 0 or (is_positive and value == 0):
        least = "> 0" if is_positive else ">= 0"
        raise ValueError(
            f"mup_groups: {name}: expected a number {least}; got {value!r}"
        )
