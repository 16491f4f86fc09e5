"""Where a metanet's step spends its time:
`python -m benchmarks.step_profile --networks resnet18`.

Nanoseconds a parameter of each kind of operation, of steps on random gradients,
averaged over a cycle (from one look at the graph to the next), as torch's profiler sees
them; beside them what the machine allows at least (see `benchmarks.step`): for the
matrix products, and for reading and writing parameters, gradients and state once. "the
rest" is Python and the dispatch of calls. The profiler itself makes steps of small
networks longer; the whole step is timed without it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks import floor, pairs
from benchmarks.records import Record
from benchmarks.step import (
    HORIZON,
    cycle,
    moved_bytes,
    numel,
    state_size,
    traced,
)
from ngopt import NGOptimizer

WARM_UP = 2
# What is in the name of an operation of each kind, the first that fits.
KINDS = {
    "matrix products": ("mm",),
    "copies": ("copy", "cat", "stack", "fill", "zero", "index", "clone"),
    "reductions": ("sum", "mean", "amin", "amax", "norm"),
    "elementwise": ("aten::",),
    "the rest": ("",),
}


def records_of(network: str, weights: str) -> Iterator[Record]:
    """One for each kind of operation, and one for the whole step."""
    model, graph = traced(network)
    optimizer = NGOptimizer(
        model.parameters(), graph=graph, weights=weights, total_steps=HORIZON
    )
    for p in model.parameters():
        p.grad = torch.randn_like(p)
    for _ in range(WARM_UP):
        optimizer.step()
    steps = cycle(optimizer)
    n = numel(model)

    def some() -> None:
        for _ in range(steps):
            optimizer.step()

    scale = 1e9 / (steps * n)
    whole = scale * floor.seconds_of(some)
    spent = {kind: scale * seconds for kind, seconds in _by_kind(some).items()}
    machine = floor.measured()
    products = scale * machine.seconds(floor.flops_of(some), 0)
    moved = moved_bytes(n, state_size(graph, True, weights))
    traffic = 1e9 * machine.seconds(0, moved) / n
    about = {"network": network, "weights": weights}
    for kind, ns in spent.items():
        least = products if kind == "matrix products" else None
        yield {**about, "kind": kind, "ns": ns, "floor_ns": least}
    yield {
        **about,
        "kind": "reading and writing once",
        "ns": None,
        "floor_ns": traffic,
    }
    yield {
        **about,
        "kind": "whole step",
        "ns": whole,
        "floor_ns": products + traffic,
    }


def _by_kind(call: Callable[[], object]) -> dict[str, float]:
    """Seconds within operations, without those that they call."""
    with profile(activities=[ProfilerActivity.CPU]) as found:
        call()
    spent = dict.fromkeys(KINDS, 0.0)
    for event in found.key_averages():
        spent[_kind(event.key)] += 1e-6 * event.self_cpu_time_total
    return spent


def _kind(operation: str) -> str:
    fitting = (
        kind
        for kind, names in KINDS.items()
        if any(name in operation for name in names)
    )
    return next(fitting)


def main(arguments: Sequence[str] | None = None) -> None:
    networks, weights = ["c10-32", "resnet18"], ["ff", "ng-gnn"]
    pairs.main(__doc__, records_of, networks, weights, arguments)


if __name__ == "__main__":
    main()
