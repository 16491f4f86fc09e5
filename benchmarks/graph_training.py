"""Networks a second in a training step of NG-GNN, beside PyG's PNAConv on the same
graphs.

    python -m benchmarks.graph_training --output results/graph_training.json

One thread; seconds of the process, so that other work beside it counts less. Both read
SIRENs [2, 32, 32, 1], have the same width and rounds, both directions of every edge and
17 features of each value, and make the gradients of all their parameters; NG-GNN also
changes edges between rounds, PNAConv has its messages from one linear map. Taken in
turns. What is compiled takes a step's networks in pieces, as in training.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch_geometric.nn import PNAConv
from torch_geometric.utils import degree
from tqdm import tqdm

from benchmarks.records import write
from benchmarks.turns import seconds_in_turns
from harness.memory import keep_freed_memory
from harness.random import seeded
from ngopt.graph import NeuralGraph, to_edge_list
from tasks.models.base import compile_steps
from tasks.models.graph_models import GNNModel, GraphModelConfig
from tasks.networks.architectures import Architecture, Stack, architecture_of

SIREN = {"kind": "siren", "widths": [2, 32, 32, 1]}
AGGREGATORS = ["mean", "min", "max", "std"]
SCALERS = ["identity", "amplification"]


class EdgeListPNA(nn.Module):
    """PNAConv rounds on the edges of copies of one graph, each both ways.

    Shapes: nodes (b * n, width), edges (b * e, width) -> (b * n, width).
    """

    def __init__(self, graph: NeuralGraph, copies: int, width: int, rounds: int):
        super().__init__()
        edges = to_edge_list(graph)
        count = sum(group.size for group in graph.groups)
        one_way = torch.stack([edges.sources, edges.targets])
        both = torch.cat([one_way, one_way.flip(0)], 1)
        shifts = count * torch.arange(copies)
        self.index = (both.unsqueeze(1) + shifts[:, None]).flatten(1)
        histogram = torch.bincount(degree(both[1], count).long())
        options = {"deg": histogram, "edge_dim": width}
        self.rounds = nn.ModuleList(
            PNAConv(width, width, AGGREGATORS, SCALERS, **options)
            for _ in range(rounds)
        )

    def forward(self, nodes: Tensor, edges: Tensor) -> Tensor:
        both = torch.cat([edges, edges])
        for layer in self.rounds:
            nodes = nodes + layer(nodes, self.index, both).relu()
        return nodes


def steps(
    architecture: Architecture,
    copies: int,
    width: int,
    rounds: int,
    compiled: bool,
) -> dict[str, Callable[[], None]]:
    """A training step of each, without the optimizer's. compiled: ours."""
    graph = architecture.graph
    config = GraphModelConfig(width=width, layers=rounds)
    ours = GNNModel([architecture], 10, config)
    if compiled:
        compile_steps(ours)
    params = [torch.randn(copies, *spec.shape) for spec in graph.parameters]
    stack = Stack(architecture, params)
    theirs = EdgeListPNA(graph, copies, width, rounds)
    encoder = nn.Linear(17, width)
    head = nn.Linear(width, 10)
    edge_count = theirs.index.shape[1] // 2
    values = torch.randn(edge_count, 17)
    nodes = torch.randn(copies * sum(group.size for group in graph.groups), width)

    pieces = ours.pieces(stack) if compiled else [stack]

    def our_step() -> None:
        said = torch.cat([ours(piece) for piece in pieces])
        said.square().mean().backward()

    def their_step() -> None:
        head(theirs(nodes, encoder(values))).square().mean().backward()

    return {"ng-gnn": our_step, "PNAConv": their_step}


def measure(
    copies: int,
    width: int,
    rounds: int,
    repeats: int,
    compiled: bool,
) -> dict[str, Any]:
    """Networks a second of both, medians over steps taken in turns."""
    with seeded(0):
        made = steps(architecture_of(SIREN), copies, width, rounds, compiled)
        seconds = seconds_in_turns(made, repeats)
    speeds = {name: copies / some for name, some in seconds.items()}
    found = {
        "copies": copies,
        "width": width,
        "rounds": rounds,
        "compiled": compiled,
        **speeds,
    }
    return {**found, "ratio": speeds["ng-gnn"] / speeds["PNAConv"]}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--copies",
        nargs="+",
        type=int,
        default=[16, 32, 64],
        help="networks of a step",
    )
    parser.add_argument("--width", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument(
        "--compiled",
        action="store_true",
        help="ng-gnn's step, which takes a minute or two at first",
    )
    parser.add_argument("--output", type=Path, help="a JSON file for the records")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    keep_freed_memory()
    records = []
    for copies in tqdm(options.copies, unit="size"):
        record = measure(
            copies,
            options.width,
            options.rounds,
            options.repeats,
            options.compiled,
        )
        ours = record["ng-gnn"]
        theirs = record["PNAConv"]
        ratio = record["ratio"]
        tqdm.write(
            f"{copies:4} networks: ng-gnn {ours:.0f} a second, PNAConv {theirs:.0f}, {ratio:.1f}x"
        )
        records.append(record)
    write(options.output, records=records)


if __name__ == "__main__":
    main()
