"""Neural graphs as graphs of networkx and PyTorch Geometric. Both libraries are
optional, so the functions import them."""

from collections.abc import Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ngopt.graph.kinds import EDGE_KINDS, NODE_KINDS, kind_code
from ngopt.graph.neural_graph import NeuralGraph
from ngopt.graph.views.edge_list import EdgeList, node_starts, to_edge_list

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
    node_attributes = _attributes(graph, values, node_parameter, node_element)
    edge_attributes = _attributes(graph, values, edges.parameter, edges.element)
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
    graph: NeuralGraph,
    values: Sequence[Tensor] | None,
    parameter: Tensor,
    element: Tensor,
) -> list[dict[str, Any]]:
    """Attributes of each node or edge.

    parameter, element: of each of its slots, (n, slots); or -1.
    """
    numbers = None
    if values is not None:
        numbers = _in_slots(graph, values, parameter, element).tolist()
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
    node_parameter, node_element = _node_slots(graph, edges)
    sizes = torch.tensor([group.size for group in graph.groups], device="cpu")
    depths = torch.tensor([group.depth for group in graph.groups], device="cpu")
    node_group = torch.arange(len(sizes), device="cpu").repeat_interleave(sizes)
    group_kinds = [kind_code(group.kind, NODE_KINDS) for group in graph.groups]
    block_kinds = [kind_code(block.kind, EDGE_KINDS) for block in graph.blocks]
    group_kind = torch.tensor(group_kinds, dtype=torch.long, device="cpu")
    block_kind = torch.tensor(block_kinds, dtype=torch.long, device="cpu")
    data = Data(
        edge_index=torch.stack([edges.sources, edges.targets]),
        edge_kind=block_kind[edges.block],
        edge_block=edges.block,
        edge_mask=_padded(edges.element >= 0, slots),
        node_group=node_group,
        node_kind=group_kind[node_group],
        node_depth=depths[node_group],
        node_mask=_padded(node_element >= 0, slots),
        num_nodes=len(node_group),
    )
    if values is not None:
        on_nodes = _in_slots(graph, values, node_parameter, node_element)
        on_edges = _in_slots(graph, values, edges.parameter, edges.element)
        data.x = _padded(on_nodes, slots)
        data.edge_attr = _padded(on_edges, slots)
    return data


def _in_slots(
    graph: NeuralGraph, values: Sequence[Tensor], parameter: Tensor, element: Tensor
) -> Tensor:
    """Values of slots, (n, slots, *features); 0 in slots without an element.

    parameter, element: of each slot, (n, slots); or -1.
    """
    flat = graph.flatten(graph.as_real(values))
    sizes = torch.tensor([0, *(spec.numel for spec in graph.parameters)], device="cpu")
    starts = sizes.cumsum(0)
    index = torch.where(element >= 0, starts[parameter] + element, -1).to(flat.device)
    padded = torch.cat([flat, flat.new_zeros(1, *flat.shape[1:])])  # read by -1
    return padded[index]


def _node_slots(graph: NeuralGraph, edges: EdgeList) -> tuple[Tensor, Tensor]:
    """Parameters and elements of all biases of every node, (nodes, node slots); -1
    without one."""
    mask = edges.node_element >= 0
    node, order = edges.node.unsqueeze(1).expand_as(mask)[mask].sort(stable=True)
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
