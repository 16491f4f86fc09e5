"""How long `build_graph` takes on torchvision's families,
beside the `torch.export` that it begins with.

    python -m benchmarks.graph_building --output results/graph_building.json

One thread. For every family: seconds of `torch.export` alone and of the whole graph
(best of several, taken in turns), what is placed and connected, and whether gather and
scatter give every parameter back.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
import torchvision
from tqdm import tqdm

from benchmarks.records import Record, table, write
from ngopt import build_graph
from ngopt.graph.connectivity import components, unconnected

FAMILIES = (
    "resnet18", "resnet50", "vgg11_bn", "mobilenet_v3_small", "efficientnet_b0",
    "convnext_tiny", "vit_b_16", "swin_t",
    "densenet121", "shufflenet_v2_x1_0", "googlenet", "regnet_y_400mf",
)  # fmt: skip


def measure(family: str, repeats: int) -> Record:
    """The record of one family. Takes the shortest of `repeats` times, as noise only
    adds."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = torchvision.models.get_model(family, weights=None)
    example = torch.randn(2, 3, 224, 224)
    exports, builds = [], []
    for _ in range(repeats):
        exports.append(_seconds(lambda: torch.export.export(model, (example,))))
        builds.append(_seconds(lambda: build_graph(model, example)))
    graph = build_graph(model, example)
    values = [p.detach() for p in model.parameters()]
    back = graph.scatter(graph.gather(values))
    trips = [
        _seconds(lambda: graph.scatter(graph.gather(values))) for _ in range(repeats)
    ]
    return {
        "family": family,
        "export_s": min(exports),
        "graph_s": min(builds),
        "ratio": min(builds) / min(exports),
        "elements": graph.numel,
        "unplaced": len(graph.unplaced),
        "components": len(set(components(graph))),
        "unconnected": len(unconnected(graph)),
        "identity": all(torch.equal(p, q) for p, q in zip(values, back, strict=True)),
        "roundtrip_ms": 1000 * min(trips),
    }


def _seconds(function: Callable[[], Any]) -> float:
    start = perf_counter()
    function()
    return perf_counter() - start


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--families", nargs="+", choices=FAMILIES, default=FAMILIES)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--output", type=Path, help="a JSON file for the records")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    records = [
        measure(family, options.repeats)
        for family in tqdm(options.families, unit="network")
    ]
    print(table(records))
    write(options.output, records=records)


if __name__ == "__main__":
    main()
