"""What compiling an optimizer's step gains:
`python -m benchmarks.compiled_step --networks resnet18 --weights ff`.

For metanets: the default's step is not compiled as a whole. Two optimizers step the
same network on random gradients, one eagerly, one through `torch.compile`, in turns of
one cycle (from one look at the graph to the next), late in a training. Milliseconds are
medians over cycles of the mean step; compiling is what the first steps took beyond
those of the eager one. Needs a C++ compiler.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from itertools import product
from pathlib import Path
from statistics import median

import torch
from torch import nn
from tqdm import tqdm

from benchmarks import floor
from benchmarks.records import Record, table, write
from benchmarks.step import (
    HORIZON,
    LATE,
    cycle,
    draw_gradients,
    numel,
    traced,
)
from ngopt import NGOptimizer
from ngopt.graph import NeuralGraph

FIRST = 8  # steps in which all is compiled that a training's beginning needs
SECONDS = 4.0  # of all cycles, at least


class Stepped:
    """An optimizer in training; compiled: whether its step is."""

    def __init__(
        self, model: nn.Module, graph: NeuralGraph, weights: str, compiled: bool
    ):
        self.params = list(model.parameters())
        self.optimizer = NGOptimizer(
            self.params, graph=graph, weights=weights, total_steps=HORIZON
        )
        step = self.optimizer.step
        self.step: Callable[[], object] = torch.compile(step) if compiled else step
        self.count = cycle(self.optimizer)

    def seconds(self, steps: int) -> float:
        total = 0.0
        for _ in range(steps):
            draw_gradients(self.params)
            total += floor.seconds_of(self.step)
        return total

    def warmed(self) -> float:
        """Seconds of the steps until it is late in a training and nothing is new."""
        first = self.seconds(FIRST)
        for p in self.params:
            self.optimizer.state[p]["step"].fill_(LATE - LATE % self.count)
        return first + self.seconds(self.count)


def record_of(network: str, weights: str) -> Record:
    """The record of a network with some weights."""
    torch.compiler.reset()
    torch.manual_seed(0)
    model, graph = traced(network)
    eager, compiled = (Stepped(model, graph, weights, kind) for kind in (False, True))
    compiling = -eager.warmed() + compiled.warmed()
    times: list[tuple[float, float]] = []
    while sum(map(sum, times)) < SECONDS:
        times.append((eager.seconds(eager.count), compiled.seconds(eager.count)))
    eager_ms, compiled_ms = (
        1e3 * median(one) / eager.count for one in zip(*times, strict=True)
    )
    return {
        "network": network,
        "weights": weights,
        "parameters": numel(model),
        "eager_ms": eager_ms,
        "compiled_ms": compiled_ms,
        "ratio": compiled_ms / eager_ms,
        "compiling_s": compiling,
    }


def main(arguments: Sequence[str] | None = None) -> None:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    networks = ["fm-16", "c10-32", "resnet18"]
    parser.add_argument(
        "--networks", nargs="*", default=networks, help="or widths of an MLP"
    )
    parser.add_argument("--weights", nargs="*", default=["ff", "ng-gnn"])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--output", type=Path, help="a JSON file for the records")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    records: list[Record] = []
    for pair in tqdm([*product(options.networks, options.weights)], unit="network"):
        records.append(record_of(*pair))
    write(options.output, records=records)
    print(table(records))


if __name__ == "__main__":
    main()
