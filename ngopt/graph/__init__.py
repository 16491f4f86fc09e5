"""Neural graphs: networks as groups of neurons and blocks of edges."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from ngopt.graph.core import Bias, EdgeBlock, GraphValues, NeuralGraph, NeuronGroup, ParameterSpec
from ngopt.graph.infer import infer_graph
from ngopt.graph.read import run_graph
from ngopt.graph.sequential import sequential_graph
from ngopt.graph.views import EdgeList, to_edge_list

__all__ = [
    "Bias",
    "EdgeBlock",
    "EdgeList",
    "GraphValues",
    "NeuralGraph",
    "NeuronGroup",
    "ParameterSpec",
    "build_graph",
    "run_graph",
    "to_edge_list",
]


def build_graph(source: nn.Module | Iterable[Tensor] | Iterable[tuple[str, Tensor]]) -> NeuralGraph:
    """The neural graph of a module, or of its parameters alone.

    source: a module, or an iterable of parameters or of (name, parameter) pairs. A sequential
        module is traced; of anything else shapes and order of the parameters decide.

    Raises ValueError if there is no parameter or an element is no tensor.
    """
    if isinstance(source, nn.Module):
        graph = sequential_graph(source)
        return graph if graph is not None else build_graph(source.named_parameters())
    specs = []
    for i, item in enumerate(source):
        name, tensor = item if isinstance(item, tuple) else (f"parameter {i}", item)
        if not isinstance(tensor, torch.Tensor):
            raise ValueError(f"build_graph: expected tensors or (name, tensor) pairs; got {type(tensor).__name__}")
        specs.append(ParameterSpec(name, tuple(tensor.shape)))
    if not specs:
        raise ValueError("build_graph: expected at least one parameter; got none")
    return infer_graph(specs)
