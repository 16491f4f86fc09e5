"""Neural graphs as graphs of networkx and PyTorch Geometric. Both libraries are
optional, so the functions import them."""

from collections.abc import Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ngopt.graph.neural_graph import NeuralGraph
from ngopt.graph.views.edge_list import EdgeList, node_starts, to_edge_list
from ngopt.graph.views.parameter_graph import edge_types, node_types

if TYPE_CHECKING:
    from networkx import MultiDiGraph
    from torch_geometric.data import Data

GROUP_ATTRIBUTES = ("name", "kind", "role", "depth", "activation", "is_pinned")


def require(library: str, user: str) -> None:
    """Imports an optional library; an ImportError names the command to install it."""
    try:
        import_module(library)
    except ImportError as error:
        raise ImportError(
            f"{user} needs {library}; install it with: pip install 'ngopt[graph]'"
        ) from error


def to_networkx(
    graph: NeuralGraph, values: Sequence[Tensor] | None = None
) -> "MultiDiGraph":
    """A networkx graph with a node for every neuron and an edge for every edge,
    numbered as in `to_edge_list`.

    Attributes of nodes:

    - group, index: the position in `NeuralGraph.groups` and the neuron in the group.
    - name, kind, role, depth, activation, is_pinned: those of the group.

    Attributes of edges:

    - block, kind: the position in `NeuralGraph.blocks` and the kind of the block.

    Attributes of both:

    - slots: a list of (parameter name, flat element); for nodes of biases, for edges of
      weights, empty for edges of value 1.
    - values: a number for every slot, or nested lists with features; only with values.

    Args:
        values: One tensor per parameter, `(*shape, *features)`.

    Raises:
        ImportError: If networkx is missing.
        ValueError: If the values do not fit.
    """
    require("networkx", "to_networkx")
    from networkx import MultiDiGraph

    edges = to_edge_list(graph)
    node_parameter, node_element = _node_slots(graph, edges)
    on_nodes = on_edges = None
    if values is not None:
        on_nodes, on_edges = _values(graph, edges, values, node_element)
    node_attributes = _attributes(graph, node_parameter, node_element, on_nodes)
    edge_attributes = _attributes(graph, edges.parameter, edges.element, on_edges)
    result = MultiDiGraph()
    for number, group in enumerate(graph.groups):
        of_group = {key: getattr(group, key) for key in GROUP_ATTRIBUTES}
        for index in range(group.size):
            node = len(result)
            of_node = of_group | node_attributes[node]
            result.add_node(node, group=number, index=index, **of_node)
    sources, targets = edges.sources.tolist(), edges.targets.tolist()
    for edge, block in enumerate(edges.block.tolist()):
        source, target, kind = sources[edge], targets[edge], graph.blocks[block].kind
        result.add_edge(source, target, block=block, kind=kind, **edge_attributes[edge])
    return result


def _attributes(
    graph: NeuralGraph, parameter: Tensor, element: Tensor, values: Tensor | None
) -> list[dict[str, Any]]:
    """Attributes of each node or edge.

    parameter, element: of each of its slots, (n, slots); or -1.
    """
    numbers = None if values is None else values.tolist()
    rows = torch.stack([parameter, element], dim=2).tolist()
    rows_of_attributes = []
    for row, slots in enumerate(rows):
        elements = [(graph.parameters[k].name, flat) for k, flat in slots if flat >= 0]
        attributes: dict[str, Any] = {"slots": elements}
        if numbers is not None:
            attributes["values"] = numbers[row][: len(elements)]
        rows_of_attributes.append(attributes)
    return rows_of_attributes


def to_pyg(
    graph: NeuralGraph, values: Sequence[Tensor] | None = None, slots: int | None = None
) -> "Data":
    """A PyTorch Geometric graph with a node for every neuron; nodes and edges in the
    order of `to_edge_list`.

    - edge_index: (2, edges), source and target of every edge.
    - edge_kind: (edges,), the position of the block's kind in `EDGE_KINDS`.
    - edge_block: (edges,), the position in `NeuralGraph.blocks`.
    - edge_mask: (edges, slots), which slots have an element: none for edges of value 1.
    - node_group: (nodes,), the position in `NeuralGraph.groups`.
    - node_kind: (nodes,), the position of the group's kind in `NODE_KINDS`.
    - node_depth: (nodes,), see `NeuronGroup`.
    - node_mask: (nodes, node slots), which slots have an element. A node with two
      biases has the slots of both.
    - edge_attr: `(edges, slots, *features)` and x: `(nodes, node slots, *features)`,
      only with values: weights and biases, 0 outside the masks.

    Args:
        values: One tensor per parameter, `(*shape, *features)`; gradients flow to them.
        slots: Number of slots to which nodes and edges are padded; by default as many
            as the graph needs. Graphs of several architectures need the same number to
            go into one `torch_geometric.data.Batch`.

    Raises:
        ImportError: If torch_geometric is missing.
        ValueError: If the values do not fit or slots are too few.
    """
    require("torch_geometric", "to_pyg")
    from torch_geometric.data import Data

    edges = to_edge_list(graph)
    _, node_element = _node_slots(graph, edges)
    sizes = torch.tensor([group.size for group in graph.groups], device="cpu")
    depths = torch.tensor([group.depth for group in graph.groups], device="cpu")
    node_group = torch.arange(len(sizes), device="cpu").repeat_interleave(sizes)
    data = Data(
        edge_index=torch.stack([edges.sources, edges.targets]),
        edge_kind=edge_types(graph)[edges.block],
        edge_block=edges.block,
        edge_mask=_padded(edges.element >= 0, slots),
        node_group=node_group,
        node_kind=node_types(graph)[node_group],
        node_depth=depths[node_group],
        node_mask=_padded(node_element >= 0, slots),
        num_nodes=len(node_group),
    )
    if values is not None:
        on_nodes, on_edges = _values(graph, edges, values, node_element)
        data.x = _padded(on_nodes, slots)
        data.edge_attr = _padded(on_edges, slots)
    return data


def _values(
    graph: NeuralGraph, edges: EdgeList, values: Sequence[Tensor], node_element: Tensor
) -> tuple[Tensor, Tensor]:
    """Values in slots: (nodes, node slots, *features), (edges, slots, *features); 0 in
    slots without an element. node_element: of `_node_slots`."""
    gathered = graph.gather(values)
    biases = [value.flatten(0, 1) for value in gathered.biases]
    weights = [value.flatten(0, 3) for value in gathered.edges]
    empty = (*biases, *weights)[0][:0]
    _, order = _bias_order(edges)
    biases = torch.cat([empty, *biases])[order]
    weights = torch.cat([empty, *weights])
    return _in_slots(biases, node_element), _in_slots(weights, edges.element)


def _in_slots(flat: Tensor, element: Tensor) -> Tensor:
    """flat: the values of all slots with an element, (n, *features). element: of all
    slots, or -1."""
    table = flat.new_zeros((*element.shape, *flat.shape[1:]))
    table[element.to(flat.device) >= 0] = flat
    return table


def _bias_order(edges: EdgeList) -> tuple[Tensor, Tensor]:
    """The node of every element of a bias, in the order of nodes, and the position of
    that element in the order of biases."""
    mask = edges.node_element >= 0
    nodes = edges.node.unsqueeze(1).expand_as(mask)[mask]
    return nodes.sort(stable=True)


def _node_slots(graph: NeuralGraph, edges: EdgeList) -> tuple[Tensor, Tensor]:
    """Parameters and elements of all biases of every node, (nodes, node slots); -1
    without one."""
    mask = edges.node_element >= 0
    node, order = _bias_order(edges)
    counts = node.bincount(minlength=node_starts(graph)[-1])
    first = counts.cumsum(0) - counts
    slot = torch.arange(len(node), device="cpu") - first[node]
    nowhere = torch.full((len(counts), int(counts.max())), -1, device="cpu")
    parameter = nowhere.index_put((node, slot), edges.node_parameter[mask][order])
    element = nowhere.index_put((node, slot), edges.node_element[mask][order])
    return parameter, element


def _padded(value: Tensor, slots: int | None) -> Tensor:
    """(n, width, *features) -> (n, slots, *features), with zeros."""
    width = value.shape[1]
    more = 0 if slots is None else slots - width
    if more < 0:
        raise ValueError(
            f"to_pyg: expected at least {width} slots, as the graph has; got {slots} "
            "(slots)"
        )
    zeros = value.new_zeros((len(value), more, *value.shape[2:]))
    return torch.cat([value, zeros], dim=1)
