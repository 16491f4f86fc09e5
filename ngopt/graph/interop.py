"""Neural graphs for other libraries: networkx and PyTorch Geometric. Both are imported when they are used."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from ngopt.graph.core import EDGE_KINDS, NeuralGraph
from ngopt.graph.views import EdgeList, node_starts, to_edge_list

if TYPE_CHECKING:
    from networkx import MultiDiGraph
    from torch_geometric.data import Data


NODE_KINDS = ("neuron", "token", "product", "head", "group", "position", "parameter", "constant")
"""Numbers of the kinds of groups in `to_pyg`; a kind of a rule of one's own has the number behind the last."""


def require(library: str, user: str) -> None:
    """Imports an optional library; where it is missing, the ImportError says how to install it."""
    try:
        import_module(library)
    except ImportError as error:
        raise ImportError(f"{user} needs {library}; install it with: pip install 'ngopt[graph]'") from error


def to_networkx(graph: NeuralGraph, values: Sequence[Tensor] | None = None) -> MultiDiGraph:
    """A networkx graph with a node for every neuron and an edge for every edge, numbered as in `to_edge_list`.

    values: one tensor a parameter, (*shape, *features).

    Nodes have the attributes `group`, the position in `NeuralGraph.groups`, and `index`, the neuron
    within it; `name`, `kind`, `role`, `depth`, `activation` are the group's. Edges have `block`, the
    position in `NeuralGraph.blocks`, and its `kind`. Both have `slots`, a list of (parameter name, flat
    element): for nodes the biases, for edges the weights, none for edges of value 1. With
    values, both have `values`, for every slot a number, or nested lists where there are features.

    Raises ImportError if networkx is missing, ValueError if the values do not fit.
    """
    require("networkx", "to_networkx")
    from networkx import MultiDiGraph

    edges = to_edge_list(graph)
    flat = None if values is None else _flat(graph, values).tolist()
    starts = _starts(graph).tolist()
    names = [spec.name for spec in graph.parameters]

    def slots(parameters: Tensor, elements: Tensor) -> list[dict[str, Any]]:
        """The attributes of every row that its slots give."""
        found = []
        for row in zip(parameters.tolist(), elements.tolist(), strict=True):
            pairs = [(p, e) for p, e in zip(*row, strict=True) if e >= 0]
            attributes: dict[str, Any] = {"slots": [(names[p], e) for p, e in pairs]}
            if flat is not None:
                attributes["values"] = [flat[starts[p] + e] for p, e in pairs]
            found.append(attributes)
        return found

    result = MultiDiGraph()
    places = [(g, i) for g, group in enumerate(graph.groups) for i in range(group.size)]
    for node, ((g, i), attributes) in enumerate(zip(places, slots(*_node_slots(graph, edges)), strict=True)):
        group = graph.groups[g]
        common = {key: getattr(group, key) for key in ("name", "kind", "role", "depth", "activation")}
        result.add_node(node, group=g, index=i, **common, **attributes)
    ends = zip(edges.sources.tolist(), edges.targets.tolist(), edges.block.tolist(), strict=True)
    for (source, target, block), attributes in zip(ends, slots(edges.parameter, edges.element), strict=True):
        result.add_edge(source, target, block=block, kind=graph.blocks[block].kind, **attributes)
    return result


def to_pyg(graph: NeuralGraph, values: Sequence[Tensor] | None = None, slots: int | None = None) -> Data:
    """A PyTorch Geometric graph with a node for every neuron, nodes and edges in the order of `to_edge_list`.

    values: one tensor a parameter, (*shape, *features); their gradients flow.
    slots: number of slots to which nodes and edges are padded; as many as the graph needs unless given.
        Graphs of several architectures go into one `torch_geometric.data.Batch` if it is the same for all.

    - edge_index: (2, edges), source and target of every edge.
    - edge_kind: (edges,), 0 for weights, otherwise 1 + the position in `ngopt.graph.core.EDGE_KINDS`.
    - edge_block: (edges,), the position in `NeuralGraph.blocks`.
    - edge_mask: (edges, slots), which slots there are: none for edges of value 1.
    - node_group: (nodes,), the position in `NeuralGraph.groups`.
    - node_kind: (nodes,), the position of the group's kind in `NODE_KINDS`.
    - node_depth: (nodes,), see `NeuronGroup`.
    - node_mask: (nodes, node slots), which slots there are: a node with two biases has those of both.
    - edge_attr: (edges, slots, *features) and x: (nodes, node slots, *features), only with values:
      weights and biases, 0 outside the masks.

    Raises ImportError if torch_geometric is missing, ValueError if the values do not fit or slots are too few.
    """
    require("torch_geometric", "to_pyg")
    from torch_geometric.data import Data

    edges = to_edge_list(graph)
    node_places = _padded(*_node_slots(graph, edges), slots)
    edge_places = _padded(edges.parameter, edges.element, slots)
    sizes = torch.tensor([group.size for group in graph.groups])
    node_group = torch.arange(len(sizes)).repeat_interleave(sizes)
    data = Data(
        edge_index=torch.stack([edges.sources, edges.targets]),
        edge_kind=_numbers(("weight", *EDGE_KINDS), [block.kind for block in graph.blocks])[edges.block],
        edge_block=edges.block,
        edge_mask=edge_places[1] >= 0,
        node_group=node_group,
        node_kind=_numbers(NODE_KINDS, [group.kind for group in graph.groups])[node_group],
        node_depth=torch.tensor([group.depth for group in graph.groups])[node_group],
        node_mask=node_places[1] >= 0,
        num_nodes=len(node_group),
    )
    if values is not None:
        flat, starts = _flat(graph, values), _starts(graph)
        data.x, data.edge_attr = (_read(flat, starts, *places) for places in (node_places, edge_places))
    return data


def _flat(graph: NeuralGraph, values: Sequence[Tensor]) -> Tensor:
    """The values of all parameters one after the other, (numel, *features), in their common dtype."""
    graph._check(values, batch_dims=0)
    return graph.flatten(values)


def _starts(graph: NeuralGraph) -> Tensor:
    """Where every parameter begins among the elements of all, (parameters,)."""
    sizes = torch.tensor([spec.numel for spec in graph.parameters])
    return sizes.cumsum(0) - sizes


def _read(flat: Tensor, starts: Tensor, parameter: Tensor, element: Tensor) -> Tensor:
    """Values at places (n, slots) -> (n, slots, *features), 0 where there is none."""
    mask = element >= 0
    found = flat.new_zeros((*mask.shape, *flat.shape[1:]))
    places = (starts[parameter[mask]] + element[mask]).to(flat.device)
    return found.index_put(tuple(mask.to(flat.device).nonzero(as_tuple=True)), flat[places])


def _padded(parameter: Tensor, element: Tensor, slots: int | None) -> tuple[Tensor, Tensor]:
    """Places (n, width) -> (n, slots); -1 where there is none."""
    more = 0 if slots is None else slots - parameter.shape[1]
    if more < 0:
        raise ValueError(f"to_pyg: slots={slots} are too few; the graph needs {parameter.shape[1]}")
    return pad(parameter, (0, more), value=-1), pad(element, (0, more), value=-1)


def _node_slots(graph: NeuralGraph, edges: EdgeList) -> tuple[Tensor, Tensor]:
    """Parameter and element of all biases of every node, one after the other: (nodes, node slots) each, or -1."""
    mask = edges.node_element >= 0
    node = edges.node.unsqueeze(1).expand_as(mask)[mask]
    node, order = node.sort(stable=True)
    counts = node.bincount(minlength=node_starts(graph)[-1])
    place = torch.arange(len(node)) - (counts.cumsum(0) - counts)[node]
    tables = []
    for column in (edges.node_parameter, edges.node_element):
        table = torch.full((len(counts), int(counts.max())), -1)
        table[node, place] = column[mask][order]
        tables.append(table)
    return tables[0], tables[1]


def _numbers(vocabulary: tuple[str, ...], kinds: list[str]) -> Tensor:
    """Positions of kinds in a vocabulary; its length for those that are not in it."""
    return torch.tensor([vocabulary.index(k) if k in vocabulary else len(vocabulary) for k in kinds], dtype=torch.long)
