"""Training speed of NG-GNN beside PyG's PNAConv on the same graphs.

    python -m benchmarks.graph_training --output results/graph_training.json

Prints networks per second of forward and backward. Both models read SIRENs
[2, 32, 32, 1] with 17 features per value, and have the same width, number of rounds and
edges in both directions. NG-GNN also updates edges between rounds; PNAConv computes
messages by one linear map. One thread; medians of process times over alternating steps.
With `--compiled`, NG-GNN reads a step's networks in pieces, as in training.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch_geometric.nn import PNAConv
from torch_geometric.utils import degree
from tqdm import tqdm

from benchmarks.cpu import rates_in_turns
from benchmarks.records import parser_of, write
from harness.random import seeded
from ngopt.graph import NeuralGraph, to_edge_list
from tasks.models.base import compile_steps
from tasks.models.graph_model import GraphModelConfig
from tasks.models.ng_gnn import NGGNN
from tasks.networks.architectures import Architecture, NetworkStack, architecture_of

SIREN = {"kind": "siren", "widths": [2, 32, 32, 1]}
AGGREGATORS = ["mean", "min", "max", "std"]
SCALERS = ["identity", "amplification"]


class EdgeListPNA(nn.Module):
    """PNAConv rounds on copies of one graph, with edges in both directions.

    Shapes: nodes (b * n, width), edges (b * e, width) -> (b * n, width).
    """

    def __init__(self, graph: NeuralGraph, copies: int, width: int, rounds: int):
        super().__init__()
        edges = to_edge_list(graph)
        count = sum(group.size for group in graph.groups)
        one_way = torch.stack([edges.sources, edges.targets])
        two_way = torch.cat([one_way, one_way.flip(0)], 1)
        shifts = count * torch.arange(copies)
        self.index = (two_way.unsqueeze(1) + shifts[:, None]).flatten(1)
        histogram = torch.bincount(degree(two_way[1], count).long())
        self.rounds = nn.ModuleList(
            PNAConv(width, width, AGGREGATORS, SCALERS, deg=histogram, edge_dim=width)
            for _ in range(rounds)
        )

    def forward(self, nodes: Tensor, edges: Tensor) -> Tensor:
        two_way = torch.cat([edges, edges])
        for layer in self.rounds:
            nodes = nodes + layer(nodes, self.index, two_way).relu()
        return nodes


def steps(
    architecture: Architecture, copies: int, width: int, rounds: int, compiled: bool
) -> dict[str, Callable[[], None]]:
    """Forward and backward of both models. compiled: whether NG-GNN is."""
    graph = architecture.graph
    gnn = NGGNN([architecture], 10, GraphModelConfig(width=width, layers=rounds))
    if compiled:
        compile_steps(gnn)
    params = [torch.randn(copies, *spec.shape) for spec in graph.parameters]
    stack = NetworkStack(architecture, params)
    pna = EdgeListPNA(graph, copies, width, rounds)
    encoder, head = nn.Linear(17, width), nn.Linear(width, 10)
    values = torch.randn(pna.index.shape[1] // 2, 17)  # of each edge
    nodes = torch.randn(copies * sum(group.size for group in graph.groups), width)
    pieces = gnn.chunks(stack) if compiled else [stack]

    def gnn_step() -> None:
        torch.cat([gnn(piece) for piece in pieces]).square().mean().backward()

    def pna_step() -> None:
        head(pna(nodes, encoder(values))).square().mean().backward()

    return {"ng-gnn": gnn_step, "PNAConv": pna_step}


def measure(
    copies: int, width: int, rounds: int, repeats: int, compiled: bool
) -> dict[str, Any]:
    """Networks per second of both models."""
    with seeded(0):
        functions = steps(architecture_of(SIREN), copies, width, rounds, compiled)
        rates = rates_in_turns(functions, repeats, copies)
    sizes = {"copies": copies, "width": width, "rounds": rounds, "compiled": compiled}
    return {**sizes, **rates}


def main(arguments: list[str] | None = None) -> None:
    parser = parser_of(__doc__)
    parser.add_argument(
        "--copies", nargs="+", type=int, default=[16, 32, 64], help="networks of a step"
    )
    parser.add_argument("--width", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument(
        "--compiled",
        action="store_true",
        help="compiles ng-gnn, which takes a minute or two",
    )
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    records = []
    for copies in tqdm(options.copies, unit="size"):
        record = measure(
            copies, options.width, options.rounds, options.repeats, options.compiled
        )
        tqdm.write(
            f"{copies:4} networks: ng-gnn {record['ng-gnn']:.0f} a second, "
            f"PNAConv {record['PNAConv']:.0f}, {record['ratio']:.1f}x"
        )
        records.append(record)
    write(options.output, records=records)


if __name__ == "__main__":
    main()
