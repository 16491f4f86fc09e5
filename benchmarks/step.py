"""Cost of a step: the default and metanets beside fused AdamW.

    python -m benchmarks.step --threads 2 --output results/step.json
    python -m benchmarks.step --problems --weights ff ng-gnn

Problems: whole training steps (batch, forward, backward, optimizer). Each optimizer
trains a copy of the network. They alternate at every step, so noise affects all of them
alike. The first `--skip` steps are not counted.

Networks: optimizer steps on random gradients, each network in a new process. "first"
and "second" are the first two steps; in the second the default renews all eigenbases.
"later" is the mean over a cycle late in a training run: the steps from one renewal of a
basis, or one reading of the graph, to the next. "worst" is the longest step of a cycle.
Later and worst are medians over cycles. Memory of a step is counted by
`benchmarks.launches`.
"""

import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import product
from multiprocessing import get_context
from statistics import mean, median
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer
from tqdm import tqdm

from benchmarks.cpu import seconds_of
from benchmarks.graph_building import FAMILIES
from benchmarks.records import Record, parser_of, table, write
from benchmarks.shapes import torchvision_example, transformers_gpt2
from meta_train.problems import load_problem
from ngopt import NGOptimizer, build_graph, load_pretrained
from ngopt.graph import NeuralGraph
from ngopt.pretrained import LearnedOptimizer
from ngopt.race.training import TrainingLoop

PROBLEMS = ("fm-16", "c10-32")
HORIZON = 1000
SECONDS, STEPS = 1.0, 3  # minimum time and number of steps of all cycles
LATE = 500  # steps after which the default renews bases least often

Example = tuple[nn.Module, Any]


NETWORKS: dict[str, Callable[[], Example]] = {
    "fm-16": lambda: (load_problem("fm-16").init(0), None),
    "c10-32": lambda: (load_problem("c10-32").init(0), None),
    **{family: partial(torchvision_example, family) for family in FAMILIES},
    "gpt2": lambda: (
        transformers_gpt2(),
        {"input_ids": torch.arange(32).reshape(2, 16)},
    ),
}
LARGE = ("resnet50", "vit_b_16", "gpt2")


def _ngopt(
    model: nn.Module, rule: str = "default", total_steps: int | None = None
) -> Optimizer:
    return NGOptimizer(
        model.parameters(), model=model, rule=rule, total_steps=total_steps
    )


OPTIMIZERS: dict[str, Callable[[nn.Module], Optimizer]] = {
    "adamw": lambda model: AdamW(model.parameters(), fused=True),
    "default": _ngopt,
    "default, horizon": partial(_ngopt, total_steps=HORIZON),
    "ff": partial(_ngopt, rule="ff"),
    "ng-gnn": partial(_ngopt, rule="ng-gnn"),
}


def whole_steps(name: str, steps: int, skip: int) -> list[Record]:
    """Records of all optimizers on a problem. Ratios are those to fused AdamW."""
    problem = load_problem(name)
    runs: dict[str, TrainingLoop] = {}
    for key, make in OPTIMIZERS.items():
        model = problem.init(0)
        runs[key] = TrainingLoop(model, make(model), None)

    def loss_of_batch(model: nn.Module, number: int) -> Tensor:
        return problem.loss(model, problem.batch(0, number))

    order = deque(runs.values())
    for number in tqdm(range(skip + steps), desc=name, unit="step"):
        for run in order:
            run.step(loss_of_batch, number)
        order.rotate(-1)
    records = []
    for key, run in runs.items():
        step_ms, optimizer_ms = run.ms[skip:], run.optimizer_ms[skip:]
        state = 2.0  # of AdamW
        if key != "adamw":
            weights, _, horizon = key.partition(", ")
            state = state_size(build_graph(run.model), bool(horizon), weights)
        record = {
            "problem": name,
            "optimizer": key,
            "parameters": numel(run.model),
            "state": state,
            "step_ms": median(step_ms),
            "fastest_ms": min(step_ms),
            "optimizer_ms": median(optimizer_ms),
            "optimizer_fastest_ms": min(optimizer_ms),
            "optimizer_mean_ms": mean(optimizer_ms),
            "optimizer_worst_ms": max(optimizer_ms),
        }
        records.append(record)
        record["ratio"] = record["step_ms"] / records[0]["step_ms"]
        record["fastest_ratio"] = record["fastest_ms"] / records[0]["fastest_ms"]
    return records


def traced(name: str) -> tuple[nn.Module, NeuralGraph]:
    """A network of `NETWORKS` with its graph."""
    model, example = NETWORKS[name]()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return model, build_graph(model, example)


def network_steps(name: str, weights: str, threads: int) -> Record:
    """The record of one network with some weights, measured in this process."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    model, graph = traced(name)
    params = list(model.parameters())
    optimizer = NGOptimizer(params, graph=graph, rule=weights, total_steps=HORIZON)
    draw_gradients(params)
    first = seconds_of(optimizer.step)
    draw_gradients(params)
    second = seconds_of(optimizer.step)
    count = move_to_late_step(optimizer)
    draw_gradients(params)
    optimizer.step()
    cycles: list[list[float]] = []  # seconds of each step
    while sum(map(len, cycles)) < STEPS or sum(map(sum, cycles)) < SECONDS:
        cycles.append([])
        for _ in range(count):
            draw_gradients(params)
            cycles[-1].append(seconds_of(optimizer.step))
    later = median(map(mean, cycles))
    n = numel(model)
    return {
        "network": name,
        "weights": weights,
        "parameters": n,
        "first_ns": 1e9 * first / n,
        "second_ns": 1e9 * second / n,
        "later_ms": 1e3 * later,
        "later_ns": 1e9 * later / n,
        "worst_ns": 1e9 * median(map(max, cycles)) / n,
        "state": state_size(graph, False, weights),
        "state_horizon": state_size(graph, True, weights),
    }


def cycle(optimizer: NGOptimizer) -> int:
    """The number of steps after which the cost of a step repeats."""
    if isinstance(optimizer.rule, LearnedOptimizer):
        return optimizer.rule.metanet.graph_every
    return optimizer.param_groups[0]["precondition_frequency"]


def move_to_late_step(optimizer: NGOptimizer) -> int:
    """Sets the count of steps to the start of a cycle; returns the cycle's length."""
    length = cycle(optimizer)
    for record in optimizer.state.values():
        record["step"].fill_(LATE - LATE % length)
    return length


def draw_gradients(params: list[nn.Parameter]) -> None:
    for p in params:
        p.grad = torch.empty_like(p) if p.grad is None else p.grad
        p.grad.normal_()


def numel(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def state_size(
    graph: NeuralGraph, has_horizon: bool, weights: str = "default"
) -> float:
    """The optimizer's state in float32 numbers per parameter."""
    rule = load_pretrained(weights).bind(graph, HORIZON if has_horizon else None)
    params = [torch.empty(spec.shape, device="meta") for spec in graph.parameters]
    size = sum(x.nbytes for record in rule.init(params) for x in record.values())
    return size / torch.float32.itemsize / graph.numel


def main(arguments: list[str] | None = None) -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--problems", nargs="*", default=PROBLEMS)
    parser.add_argument("--networks", nargs="*", choices=NETWORKS, default=LARGE)
    parser.add_argument("--weights", nargs="*", default=["default"], help="of networks")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--steps", type=int, default=200, help="steps that are counted")
    parser.add_argument("--skip", type=int, default=100, help="steps before them")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    tables: dict[str, list[Record]] = {"problems": [], "networks": []}
    for name in options.problems:
        tables["problems"] += whole_steps(name, options.steps, options.skip)
        write(options.output, **tables)
    for record in measured(options.networks, options.weights, options.threads):
        tables["networks"].append(record)
        write(options.output, **tables)
    print("\n\n".join(table(records) for records in tables.values() if records))


def measured(
    networks: Iterable[str], weights: Sequence[str], threads: int
) -> Iterator[Record]:
    """Records of all pairs of a network and weights, each from a new process."""
    with get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        cases = product(networks, weights, [threads])
        tasks = [pool.apply_async(network_steps, case) for case in cases]
        for task in tqdm(tasks, unit="network", disable=not tasks):
            yield task.get()


if __name__ == "__main__":
    main()
