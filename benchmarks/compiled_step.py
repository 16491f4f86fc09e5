"""Speed-up of a metanet's step by `torch.compile`.

    python -m benchmarks.compiled_step --networks resnet18 --weights ff

Two optimizers step the same network on random gradients, one eager and one compiled.
They alternate after each cycle: the steps from one reading of the graph to the next.
Milliseconds are medians over cycles of the mean step, late in a training. "compiling_s"
is the extra time of the compiled optimizer's first steps. Needs a C++ compiler.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import product
from statistics import median

import torch
from torch import nn
from tqdm import tqdm

from benchmarks import floor
from benchmarks.records import Record, parser_of, table, write
from benchmarks.step import HORIZON, LATE, cycle, draw_gradients, numel, traced
from ngopt import NGOptimizer
from ngopt.graph import NeuralGraph

FIRST = 8  # steps after which all functions of early steps are compiled
SECONDS = 4.0  # minimum time of all cycles


class Stepped:
    """An optimizer with random gradients."""

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
        """Seconds of the first steps and of one cycle late in a training."""
        first = self.seconds(FIRST)
        for p in self.params:
            self.optimizer.state[p]["step"].fill_(LATE - LATE % self.count)
        return first + self.seconds(self.count)


def record_of(network: str, weights: str) -> Record:
    """The record of a network with some weights."""
    torch.compiler.reset()
    torch.manual_seed(0)
    model, graph = traced(network)
    eager = Stepped(model, graph, weights, compiled=False)
    compiled = Stepped(model, graph, weights, compiled=True)
    compiling = -eager.warmed() + compiled.warmed()
    eager_seconds: list[float] = []
    compiled_seconds: list[float] = []
    while sum(eager_seconds) + sum(compiled_seconds) < SECONDS:
        eager_seconds.append(eager.seconds(eager.count))
        compiled_seconds.append(compiled.seconds(eager.count))
    eager_ms = 1e3 * median(eager_seconds) / eager.count
    compiled_ms = 1e3 * median(compiled_seconds) / eager.count
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
    parser = parser_of(__doc__)
    networks = ["fm-16", "c10-32", "resnet18"]
    parser.add_argument(
        "--networks", nargs="*", default=networks, help="or widths of an MLP"
    )
    parser.add_argument("--weights", nargs="*", default=["ff", "ng-gnn"])
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    records: list[Record] = []
    for pair in tqdm([*product(options.networks, options.weights)], unit="network"):
        records.append(record_of(*pair))
    write(options.output, records=records)
    print(table(records))


if __name__ == "__main__":
    main()
