"""Speed of training on several architectures: one call, beside one call for each.

    python -m benchmarks.mixture --output results/mixture.json

Prints networks per second of a training step. The networks have architectures of the
zoos of `tasks.zoo` and random parameters, five of each architecture. One thread;
medians of process times over alternating steps.
"""

from random import Random
from typing import Any

import torch
from tqdm import tqdm

from benchmarks.cpu import rates_in_turns
from benchmarks.records import parser_of, write
from harness.random import seeded
from tasks.learning.catalogue import make_model
from tasks.networks.architectures import NetworkStack, architecture_of
from tasks.sources.zoo_recipes import ZOOS

ALIKE = 5  # networks of an architecture
CASES = (
    ("wild-park", "ng-gnn", {"layers": 3}),
    ("wild-park", "ng-gnn", {"layers": 3, "probes": 16}),
    ("wild-park", "ng-t", {"layers": 3}),
    ("diverse", "ng-gnn", {"layers": 3}),
    ("diverse", "gmn", {"layers": 2}),
)


def random_stacks(zoo: str, runs: int) -> list[NetworkStack]:
    """Networks with the architectures of `runs` runs of a zoo."""
    random = Random(0)
    stacks = []
    for _ in range(runs):
        architecture = architecture_of(ZOOS[zoo].sample_recipe(random).architecture)
        specs = architecture.graph.parameters
        params = [0.1 * torch.randn(ALIKE, *spec.shape) for spec in specs]
        stacks.append(NetworkStack(architecture, params))
    return stacks


def measure(
    zoo: str, name: str, sizes: dict[str, Any], runs: int, repeats: int
) -> dict[str, Any]:
    """Networks per second of both variants."""
    with seeded(0):
        stacks = random_stacks(zoo, runs)
        architectures = [stack.architecture for stack in stacks]
        sizes = {**sizes, "scales": True}
        model = make_model(name, architectures, 1, sizes, False)
        model.fit(stacks)

    def together() -> None:
        model.forward_mixed(stacks).square().mean().backward()

    def apart() -> None:
        torch.cat([model(stack) for stack in stacks]).square().mean().backward()

    count = ALIKE * runs
    rates = rates_in_turns({"together": together, "apart": apart}, repeats, count)
    return {"zoo": zoo, "model": name, **sizes, "networks": count, **rates}


def main(arguments: list[str] | None = None) -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--runs", type=int, default=6, help="architectures of a step")
    parser.add_argument("--repeats", type=int, default=5)
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
