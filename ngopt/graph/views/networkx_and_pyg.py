"""Neural graphs for other libraries: networkx and PyTorch Geometric.
Both are imported when they are used."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
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


def require(library: str, user: str) -> None:
    """Imports an optional library; where it is missing, the ImportError says how to
    install it."""
    try:
        import_module(library)
    except ImportError as error:
        raise ImportError(
            f"{user} needs {library}; install it with: pip install 'ngopt[graph]'"
        ) from error


OF_GROUP = ("name", "kind", "role", "depth", "activation", "is_pinned")


def to_networkx(
    graph: NeuralGraph, values: Sequence[Tensor] | None = None
) -> MultiDiGraph:
    """A networkx graph with a node for every neuron and an edge for every edge,
    numbered as in `to_edge_list`.

    values: one tensor a parameter, (*shape, *features).

    Nodes have the attributes `group`, the position in `NeuralGraph.groups`, and
    `index`, the neuron within it; `name`, `kind`, `role`, `depth`, `activation`,
    `is_pinned` are the group's. Edges have `block`, the position in
    `NeuralGraph.blocks`, and its `kind`. Both have `slots`, a list of (parameter name,
    flat element): for nodes the biases, for edges the weights, none for edges of value
    1. With values, both have `values`, for every slot a number, or nested lists where
    there are features.

    Raises ImportError if networkx is missing, ValueError if the values do not fit.
    """
    require("networkx", "to_networkx")
    from networkx import MultiDiGraph

    edges = to_edge_list(graph)
    node_values, edge_values = (
        (None, None) if values is None else _values(graph, edges, values)
    )
    node_slots = _attributes(graph, *_node_slots(graph, edges), node_values)
    edge_slots = _attributes(graph, edges.parameter, edges.element, edge_values)
    result = MultiDiGraph()
    places = ((g, i) for g, group in enumerate(graph.groups) for i in range(group.size))
    for node, ((g, i), attributes) in enumerate(zip(places, node_slots, strict=True)):
        of_group = {key: getattr(graph.groups[g], key) for key in OF_GROUP}
        result.add_node(node, group=g, index=i, **of_group, **attributes)
    ends = zip(
        edges.sources.tolist(),
        edges.targets.tolist(),
        edges.block.tolist(),
        strict=True,
    )
    for (source, target, block), attributes in zip(ends, edge_slots, strict=True):
        result.add_edge(
            source,
            target,
            block=block,
            kind=graph.blocks[block].kind,
            **attributes,
        )
    return result


def _attributes(
    graph: NeuralGraph,
    parameter: Tensor,
    element: Tensor,
    values: Tensor | None,
) -> Iterator[dict[str, Any]]:
    """What networkx shall know of the slots of every row of (n, slots)."""
    names = [spec.name for spec in graph.parameters]
    numbers = None if values is None else values.tolist()
    for row, places in enumerate(
        zip(parameter.tolist(), element.tolist(), strict=True)
    ):
        found: dict[str, Any] = {
            "slots": [(names[p], e) for p, e in zip(*places, strict=True) if e >= 0]
        }
        if numbers is not None:
            found["values"] = numbers[row][: len(found["slots"])]
        yield found


def to_pyg(
    graph: NeuralGraph,
    values: Sequence[Tensor] | None = None,
    slots: int | None = None,
) -> Data:
    """A PyTorch Geometric graph with a node for every neuron,
    nodes and edges in the order of `to_edge_list`.

    values: one tensor a parameter, (*shape, *features); their gradients flow.
    slots: number of slots to which nodes and edges are padded; as many as the graph
    needs unless
        given. Graphs of several architectures go into one `torch_geometric.data.Batch`
        if it is the same for all.

    - edge_index: (2, edges), source and target of every edge.
    - edge_kind: (edges,), the position of the block's kind in `EDGE_KINDS`.
    - edge_block: (edges,), the position in `NeuralGraph.blocks`.
    - edge_mask: (edges, slots), which slots there are: none for edges of value 1.
    - node_group: (nodes,), the position in `NeuralGraph.groups`.
    - node_kind: (nodes,), the position of the group's kind in `NODE_KINDS`.
    - node_depth: (nodes,), see `NeuronGroup`.
    - node_mask: (nodes, node slots), which slots there are:
    a node with two biases has those of both.
    - edge_attr: (edges, slots, *features) and x: (nodes, node slots, *features), only
    with values:
      weights and biases, 0 outside the masks.

    Raises ImportError if torch_geometric is missing,
    ValueError if the values do not fit or slots are too few.
    """
    require("torch_geometric", "to_pyg")
    from torch_geometric.data import Data

    edges = to_edge_list(graph)
    node_mask = _node_slots(graph, edges)[1] >= 0
    edge_mask = edges.element >= 0
    sizes = torch.tensor([group.size for group in graph.groups], device="cpu")
    node_group = torch.arange(len(sizes), device="cpu").repeat_interleave(sizes)
    of_edges = [kind_code(b.kind, EDGE_KINDS) for b in graph.blocks]
    of_nodes = [kind_code(g.kind, NODE_KINDS) for g in graph.groups]
    edge_kinds = torch.tensor(of_edges, device="cpu")
    node_kinds = torch.tensor(of_nodes, device="cpu")
    depths = torch.tensor([group.depth for group in graph.groups], device="cpu")
    data = Data(
        edge_index=torch.stack([edges.sources, edges.targets]),
        edge_kind=edge_kinds[edges.block],
        edge_block=edges.block,
        edge_mask=_padded(edge_mask, slots),
        node_group=node_group,
        node_kind=node_kinds[node_group],
        node_depth=depths[node_group],
        node_mask=_padded(node_mask, slots),
        num_nodes=len(node_group),
    )
    if values is not None:
        data.x, data.edge_attr = (
            _padded(v, slots) for v in _values(graph, edges, values)
        )
    return data


def _values(
    graph: NeuralGraph, edges: EdgeList, values: Sequence[Tensor]
) -> tuple[Tensor, Tensor]:
    """Values of nodes (nodes, node slots, *features) and edges (edges, slots,
    *features), 0 where there is no slot."""
    gathered = graph.gather(values)
    biases = [v.flatten(0, 1) for v in gathered.biases]
    weights = [v.flatten(0, 3) for v in gathered.edges]
    empty = [*biases, *weights][0][:0]
    _, order = _bias_order(edges)
    masks = _node_slots(graph, edges)[1] >= 0, edges.element >= 0
    found = []
    for mask, flat in zip(
        masks,
        (torch.cat([empty, *biases])[order], torch.cat([empty, *weights])),
        strict=True,
    ):
        value = flat.new_zeros((*mask.shape, *flat.shape[1:]))
        value[mask.to(flat.device)] = flat
        found.append(value)
    return found[0], found[1]


def _bias_order(edges: EdgeList) -> tuple[Tensor, Tensor]:
    """The node of every slot of every bias, node after node,
    and where each is among them bias after bias."""
    mask = edges.node_element >= 0
    return edges.node.unsqueeze(1).expand_as(mask)[mask].sort(stable=True)


def _node_slots(graph: NeuralGraph, edges: EdgeList) -> tuple[Tensor, Tensor]:
    """Parameter and element of all biases of every node, one after the other: (nodes,
    node slots) each, or -1."""
    mask = edges.node_element >= 0
    node, order = _bias_order(edges)
    counts = node.bincount(minlength=node_starts(graph)[-1])
    place = torch.arange(len(node), device="cpu") - (counts.cumsum(0) - counts)[node]
    tables = []
    for column in (edges.node_parameter, edges.node_element):
        table = torch.full((len(counts), int(counts.max())), -1, device="cpu")
        table[node, place] = column[mask][order]
        tables.append(table)
    return tables[0], tables[1]


def _padded(value: Tensor, slots: int | None) -> Tensor:
    """(n, width, ...) -> (n, slots, ...), with zeros."""
    more = 0 if slots is None else slots - value.shape[1]
    if more < 0:
        raise ValueError(
            f"to_pyg: slots={slots} are too few; the graph needs {value.shape[1]}"
        )
    return torch.cat(
        [value, value.new_zeros((len(value), more, *value.shape[2:]))], dim=1
    )
