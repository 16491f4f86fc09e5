"""What a step costs: of the default beside fused AdamW,
of the metanets beside what the machine allows.

    python -m benchmarks.step --threads 2 --output results/step.json python -m
    benchmarks.step --problems --networks --widths 64 256 1024 2048 --weights ff ng-gnn

Problems: whole training steps (batch, forward, backward, optimizer). All optimizers
train their own copy and take turns at every step, so that noise meets them alike; steps
before `--skip` do not count, and those that do contain every renewal of an eigenbasis
and every look at the graph.

Networks: steps on random gradients, each network in a process of its own. "first" is
the first step, "second" the next (the default renews every eigenbasis in it), "later"
the mean over as many steps as repeat, late in a training (from one renewal of a basis,
or look at the graph, to the next), and "worst" the longest of them; medians over so
many rounds that they last a second and have three steps. "floor" is the least time for
the matrix products of these steps, at the rate measured in the same process, and for
reading and writing parameters, gradients and state once; metanets only. Extra memory is
how far resident memory rises within a step (VmHWM of /proc/self/status, set back
through /proc/self/clear_refs) above what it was before, when parameters, gradients and
state were there and free memory was given back; of the first step, without the state
that it leaves. Holes between tensors in the allocator's heap are part of it. Widths are
those of an MLP of three square layers, and are drawn as a PNG beside the output.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from statistics import mean, median
from time import perf_counter
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer
from tqdm import tqdm

from benchmarks import floor
from benchmarks.graph_building import FAMILIES
from benchmarks.memory import Peak
from benchmarks.records import Record, table, write
from meta_train.problems import Problem, load_problem
from ngopt import NGOptimizer, build_graph, load_pretrained
from ngopt.graph import NeuralGraph

PROBLEMS = ("fm-16", "c10-32")
HORIZON = 1000
SECONDS, STEPS = 1.0, 3  # of all cycles, at least
LATE = 500  # steps behind a parameter when bases are renewed as seldom as they ever are


def _torchvision(name: str) -> tuple[nn.Module, Any]:
    import torchvision

    model = torchvision.models.get_model(name, weights=None)
    return model, torch.randn(2, 3, 224, 224)


def _problem(name: str) -> tuple[nn.Module, Any]:
    return load_problem(name).init(0), None


def mlp(width: int) -> tuple[nn.Module, Any]:
    layers = [layer for _ in range(3) for layer in (nn.Linear(width, width), nn.ReLU())]
    return nn.Sequential(*layers), torch.randn(2, width)


def _gpt2() -> tuple[nn.Module, Any]:
    from transformers import GPT2Config, GPT2LMHeadModel

    tokens = torch.arange(32).reshape(2, 16)
    return GPT2LMHeadModel(GPT2Config()), {"input_ids": tokens}


NETWORKS: dict[str, Callable[[], tuple[nn.Module, Any]]] = {
    "fm-16": partial(_problem, "fm-16"),
    "c10-32": partial(_problem, "c10-32"),
    **{family: partial(_torchvision, family) for family in FAMILIES},
    "gpt2": _gpt2,
}
LARGE = ("resnet50", "vit_b_16", "gpt2")

OPTIMIZERS: dict[str, Callable[[nn.Module], Optimizer]] = {
    "adamw": lambda model: AdamW(model.parameters(), fused=True),
    "default": lambda model: NGOptimizer(model.parameters(), model=model),
    "default, horizon": lambda model: NGOptimizer(
        model.parameters(), model=model, total_steps=HORIZON
    ),
    "ff": lambda model: NGOptimizer(model.parameters(), model=model, weights="ff"),
    "ng-gnn": lambda model: NGOptimizer(
        model.parameters(), model=model, weights="ng-gnn"
    ),
}


class Training:
    """One model in training, step by step."""

    def __init__(self, problem: Problem, make: Callable[[nn.Module], Optimizer]):
        self.problem = problem
        self.model = problem.init(0)
        self.optimizer = make(self.model)

    def step(self, number: int) -> tuple[float, float]:
        """Milliseconds of the whole step, and of the optimizer within it."""
        start = perf_counter()
        batch = self.problem.batch(0, number)
        self.optimizer.zero_grad()
        self.problem.loss(self.model, batch).backward()
        middle = perf_counter()
        self.optimizer.step()
        end = perf_counter()
        return 1e3 * (end - start), 1e3 * (end - middle)


def whole_steps(name: str, steps: int, skip: int) -> list[Record]:
    """Records of all optimizers on a problem; `ratio` is that of medians to fused
    AdamW's."""
    problem = load_problem(name)
    trainings = {key: Training(problem, make) for key, make in OPTIMIZERS.items()}
    times: dict[str, list[tuple[float, float]]] = {key: [] for key in trainings}
    order = list(trainings)
    for number in tqdm(range(skip + steps), desc=name, unit="step"):
        for key in order:
            times[key].append(trainings[key].step(number))
        order = [*order[1:], order[0]]
    model = trainings["adamw"].model
    records = [_record(name, model, key, times[key][skip:]) for key in trainings]
    for record in records:
        record["ratio"] = record["step_ms"] / records[0]["step_ms"]
        record["fastest_ratio"] = record["fastest_ms"] / records[0]["fastest_ms"]
    return records


def _record(
    problem: str, model: nn.Module, key: str, times: list[tuple[float, float]]
) -> Record:
    whole, optimizer = zip(*times, strict=True)
    return {
        "problem": problem,
        "optimizer": key,
        "parameters": numel(model),
        "state": _state_of(key, model),
        "step_ms": median(whole),
        "fastest_ms": min(whole),
        "optimizer_ms": median(optimizer),
        "optimizer_fastest_ms": min(optimizer),
        "optimizer_mean_ms": mean(optimizer),
        "optimizer_worst_ms": max(optimizer),
    }


def _state_of(key: str, model: nn.Module) -> float:
    if key == "adamw":
        return 2.0
    name, _, horizon = key.partition(", ")
    return state_size(build_graph(model), bool(horizon), name)


def traced(name: str) -> tuple[nn.Module, NeuralGraph]:
    """A network, or an MLP of some width, with its graph."""
    model, example = mlp(int(name)) if name.isdecimal() else NETWORKS[name]()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return model, build_graph(model, example)


def network_steps(name: str, weights: str, threads: int) -> Record:
    """The record of one network with some weights, measured in this process."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    model, graph = traced(name)
    optimizer = NGOptimizer(
        model.parameters(), graph=graph, weights=weights, total_steps=HORIZON
    )
    params = list(model.parameters())
    first, first_bytes = _first_step(optimizer, params)
    second, second_bytes = _first_step(optimizer, params)
    count = cycle(optimizer)
    for p in params:
        optimizer.state[p]["step"].fill_(LATE - LATE % count)
    _, later_bytes = _first_step(optimizer, params)
    cycles = _cycles(optimizer, params, count)
    later = median(map(mean, cycles))
    n = numel(model)
    kept = state_size(graph, True, weights)
    first_bytes -= int(4 * n * kept)
    return {
        "network": name,
        "weights": weights,
        "parameters": n,
        "first_ns": 1e9 * first / n,
        "second_ns": 1e9 * second / n,
        "later_ms": 1e3 * later,
        "later_ns": 1e9 * later / n,
        "worst_ns": 1e9 * median(map(max, cycles)) / n,
        "floor_ns": _floor(optimizer, n, kept)
        if optimizer.learned.base is None
        else None,
        "state": state_size(graph, False, weights),
        "state_horizon": kept,
        "extra_mib": max(first_bytes, second_bytes, later_bytes) / 2**20,
    }


def _cycles(
    optimizer: Optimizer, params: list[nn.Parameter], count: int
) -> list[list[float]]:
    """Seconds of steps, so many in each cycle; several cycles if they are short."""
    found: list[list[float]] = []
    while sum(map(len, found)) < STEPS or sum(map(sum, found)) < SECONDS:
        found.append([])
        for _ in range(count):
            draw_gradients(params)
            found[-1].append(floor.seconds_of(optimizer.step))
    return found


def cycle(optimizer: NGOptimizer) -> int:
    """Steps after which the cost of a step repeats; of the default after its first
    step."""
    if optimizer.learned.metanet is not None:
        return optimizer.learned.metanet.graph_every
    return optimizer.param_groups[0]["renew_every"]


def _floor(optimizer: NGOptimizer, n: int, kept: float) -> float:
    """Nanoseconds per parameter, of n, that the steps of a cycle take at least, on
    average."""
    machine = floor.measured()
    count = cycle(optimizer)
    flops = sum(floor.flops_of(optimizer.step) for _ in range(count)) / count
    return 1e9 * machine.seconds(flops, moved_bytes(n, kept)) / n


def moved_bytes(n: int, kept: float) -> float:
    """What a step of n parameters with so much state moves at least: gradients are
    read, all others also written."""
    return 4 * n * (1 + 2 + 2 * kept)


def _first_step(optimizer: Optimizer, params: list[nn.Parameter]) -> tuple[float, int]:
    """Seconds and extra bytes of a step; that all free memory was given back before
    takes time, too."""
    draw_gradients(params)
    peak = Peak()
    seconds = floor.seconds_of(optimizer.step)
    return seconds, peak.bytes()


def draw_gradients(params: list[nn.Parameter]) -> None:
    for p in params:
        p.grad = torch.empty_like(p) if p.grad is None else p.grad
        p.grad.normal_()


def numel(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def state_size(
    graph: NeuralGraph, has_horizon: bool, weights: str = "default"
) -> float:
    """What an optimizer keeps, in float32 numbers per parameter."""
    rule = load_pretrained(weights).bind(graph, HORIZON if has_horizon else None)
    params = [torch.empty(spec.shape, device="meta") for spec in graph.parameters]
    kept: list[Tensor] = [x for record in rule.init(params) for x in record.values()]
    return (
        sum(x.numel() * x.itemsize for x in kept) / torch.float32.itemsize / graph.numel
    )


def main(arguments: list[str] | None = None) -> None:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("--problems", nargs="*", default=PROBLEMS)
    parser.add_argument("--networks", nargs="*", choices=NETWORKS, default=LARGE)
    parser.add_argument("--widths", nargs="*", type=int, default=[], help="of an MLP")
    parser.add_argument(
        "--weights",
        nargs="*",
        default=["default"],
        help="of networks and widths",
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--steps", type=int, default=200, help="that count")
    parser.add_argument(
        "--skip", type=int, default=100, help="steps before those that count"
    )
    parser.add_argument("--output", type=Path, help="a JSON file for the records")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    found: dict[str, list[Record]] = {
        "problems": [],
        "networks": [],
        "widths": [],
    }
    for kind, records in _all_records(options):
        found[kind] += records
        write(options.output, **found)
    print("\n\n".join(table(records) for records in found.values() if records))
    if options.output and found["widths"]:
        draw(found["widths"], options.output.with_suffix(".png"))


def _all_records(
    options: argparse.Namespace,
) -> Iterator[tuple[str, list[Record]]]:
    """Kinds and records, as soon as they are there."""
    for name in options.problems:
        yield "problems", whole_steps(name, options.steps, options.skip)
    for kind, networks in (
        ("networks", options.networks),
        ("widths", map(str, options.widths)),
    ):
        for record in measured(networks, options.weights, options.threads):
            yield kind, [record]


def measured(
    networks: Iterable[str], weights: Sequence[str], threads: int
) -> Iterator[Record]:
    """Records of all pairs, each from a process of its own."""
    pairs = [(network, some, threads) for network in networks for some in weights]
    with get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        tasks = [pool.apply_async(network_steps, pair) for pair in pairs]
        for task in tqdm(tasks, unit="network", disable=not tasks):
            yield task.get()


def draw(records: list[Record], path: Path) -> None:
    """Cost of a step against the size of an MLP."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.add_subplot()
    for name in dict.fromkeys(record["weights"] for record in records):
        own = [record for record in records if record["weights"] == name]
        sizes = [record["parameters"] for record in own]
        (line,) = axes.loglog(
            sizes, [record["later_ns"] for record in own], "o-", label=name
        )
        if own[0]["floor_ns"] is not None:
            floors = [record["floor_ns"] for record in own]
            axes.loglog(
                sizes,
                floors,
                ":",
                color=line.get_color(),
                label=f"{name}, floor",
            )
    axes.set_xlabel("parameters")
    axes.set_ylabel("ns per parameter and step")
    axes.set_ylim(bottom=10)
    figure.legend(loc="outside upper center", ncols=2)
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    main()
