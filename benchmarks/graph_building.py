"""Time of `build_graph` on torchvision's networks, beside that of `torch.export`.

    python -m benchmarks.graph_building --output results/graph_building.json

For each network: seconds of `torch.export` alone and of the whole graph, the fastest of
alternating repeats, one thread.
"""

import torch
from tqdm import tqdm

from benchmarks.cpu import seconds_of
from benchmarks.records import Record, parser_of, table, write
from benchmarks.shapes import torchvision_example
from ngopt import build_graph
from ngopt.graph.connectivity import components

FAMILIES = (
    "resnet18", "resnet50", "vgg11_bn", "mobilenet_v3_small", "efficientnet_b0",
    "convnext_tiny", "vit_b_16", "swin_t",
    "densenet121", "shufflenet_v2_x1_0", "googlenet", "regnet_y_400mf",
)  # fmt: skip


def measure(family: str, repeats: int) -> Record:
    """The record of one network. Times are the shortest of `repeats`."""
    model, example = torchvision_example(family)
    graph = build_graph(model, example)
    exports, builds = [], []
    for _ in range(repeats):
        exports.append(seconds_of(lambda: torch.export.export(model, (example,))))
        builds.append(seconds_of(lambda: build_graph(model, example)))
    export, build = min(exports), min(builds)
    return {
        "family": family,
        "export_s": export,
        "graph_s": build,
        "ratio": build / export,
        "elements": graph.numel,
        "unplaced": len(graph.unplaced),
        "components": len(set(components(graph))),
    }


def main(arguments: list[str] | None = None) -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--families", nargs="+", choices=FAMILIES, default=FAMILIES)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    records = []
    for family in tqdm(options.families, unit="network"):
        records.append(measure(family, options.repeats))
    print(table(records))
    write(options.output, records=records)


if __name__ == "__main__":
    main()
