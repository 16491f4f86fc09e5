"""Networks a second in a training step on networks of different architectures: all in
one call, beside one architecture after the other.

    python -m benchmarks.mixture --output results/mixture.json

Networks of the zoos of `tasks.zoo`, with random parameters, five of an architecture as
a run has. One thread; seconds of the process, medians over steps taken in turns.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from random import Random
from typing import Any

import torch
from tqdm import tqdm

from benchmarks.paired_timing import seconds_in_turns
from benchmarks.records import write
from harness.random import seeded
from tasks.learning.catalogue import make_model
from tasks.networks.architectures import NetworkStack, architecture_of
from tasks.sources.zoo_recipes import ZOOS

# Networks that are kept of a run.
ALIKE = 5
CASES = (
    ("wild-park", "ng-gnn", {"layers": 3}),
    ("wild-park", "ng-gnn", {"layers": 3, "probes": 16}),
    ("wild-park", "ng-t", {"layers": 3}),
    ("diverse", "ng-gnn", {"layers": 3}),
    ("diverse", "gmn", {"layers": 2}),
)


def random_stacks(zoo: str, runs: int) -> list[NetworkStack]:
    """Networks of so many runs of a zoo."""
    random, found = Random(0), []
    for _ in range(runs):
        architecture = architecture_of(ZOOS[zoo].sample_recipe(random).architecture)
        shapes = [spec.shape for spec in architecture.graph.parameters]
        params = [0.1 * torch.randn(ALIKE, *shape) for shape in shapes]
        found.append(NetworkStack(architecture, params))
    return found


def measure(
    zoo: str, name: str, sizes: dict[str, Any], runs: int, repeats: int
) -> dict[str, Any]:
    """Networks a second of both ways."""
    with seeded(0):
        stacks = random_stacks(zoo, runs)
        architectures = [stack.architecture for stack in stacks]
        sizes = {**sizes, "scales": True}
        model = make_model(name, architectures, 1, sizes, False)
        model.fit(stacks)

    def together() -> None:
        model.forward_mixed(stacks).square().mean().backward()

    def apart() -> None:
        said = torch.cat([model(stack) for stack in stacks])
        said.square().mean().backward()

    ways = {"together": together, "apart": apart}
    count = ALIKE * runs
    seconds = seconds_in_turns(ways, repeats)
    speeds = {way: count / some for way, some in seconds.items()}
    case = {"zoo": zoo, "model": name, **sizes, "networks": count}
    return {**case, **speeds, "ratio": speeds["together"] / speeds["apart"]}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--runs", type=int, default=6, help="architectures of a step")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--output", type=Path, help="a JSON file for the records")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    records = []
    for zoo, name, sizes in tqdm(CASES, unit="case"):
        record = measure(zoo, name, sizes, options.runs, options.repeats)
        together, apart = record["together"], record["apart"]
        probes = f", {sizes['probes']} probes" if "probes" in sizes else ""
        tqdm.write(
            f"{zoo}, {name}{probes}: {together:.0f} a second together, "
            f"{apart:.0f} apart, {record['ratio']:.1f}x"
        )
        records.append(record)
    write(options.output, records=records)


if __name__ == "__main__":
    main()
