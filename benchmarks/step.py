"""Cost of a step: the default and metanets beside fused AdamW.

    python -m benchmarks.step --output results/step.json
    python -m benchmarks.step --problems --weights ff ng-gnn

Problems: whole training steps (batch, forward, backward, optimizer). Each optimizer
trains a copy of the network. They alternate every ten steps, so noise affects all of
them alike. The first `--skip` steps are not counted. Times are medians of five repeats
of the mean step.

Networks: optimizer steps on random gradients, each network in a new process. Times are
means over a cycle late in a training run, medians over cycles. A cycle is the steps
from one renewal of a basis, or one reading of the graph, to the next. Memory of a step
is counted by `benchmarks.launches`.
"""

import warnings
from collections.abc import Callable, Sequence
from functools import partial
from itertools import product
from multiprocessing import get_context
from statistics import mean, median
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import AdamW
from tqdm import tqdm

from benchmarks.cpu import seconds_of
from benchmarks.records import Record, parser_of, table, write
from benchmarks.shapes import torchvision_example, transformers_gpt2
from benchmarks.small_networks import PROBLEMS
from meta_train.comparison.optimizers import load_optimizer
from meta_train.problems import load_problem
from ngopt import NGOptimizer, build_graph, load_pretrained
from ngopt.graph import NeuralGraph
from ngopt.pretrained import LearnedOptimizer
from ngopt.race.equal_time import block_median, step_in_turns, turns_of
from ngopt.race.training import TrainingLoop

HORIZON = 1000
SECONDS, STEPS = 1.0, 3  # minimum time and number of steps of all cycles
LATE = 500  # steps after which the default renews bases least often

NETWORKS: dict[str, Callable[[], tuple[nn.Module, Any]]] = {
    "resnet50": partial(torchvision_example, "resnet50"),
    "vit_b_16": partial(torchvision_example, "vit_b_16"),
    "gpt2": lambda: (
        transformers_gpt2(),
        {"input_ids": torch.arange(32).reshape(2, 16)},
    ),
}


def whole_steps(
    name: str, weights: Sequence[str], threads: int, steps: int, skip: int
) -> list[Record]:
    """Records of fused AdamW and of weights on a problem. Ratios are those to AdamW."""
    torch.set_num_threads(threads)
    problem = load_problem(name)

    def loss_of_batch(model: nn.Module, number: int) -> Tensor:
        return problem.loss(model, problem.batch(0, number))

    def loop_of(key: str) -> TrainingLoop:
        model = problem.init(0)
        if key == "adamw":
            optimizer = AdamW(model.parameters(), fused=True)
        else:
            optimizer, _ = load_optimizer(key).build(model, None, HORIZON)
        return TrainingLoop(model, optimizer, None, loss_of_batch)

    loops = {key: loop_of(key) for key in ("adamw", *weights)}
    turns = tqdm(turns_of(skip + steps), desc=f"{name}, {threads} threads")
    step_in_turns(loops.values(), turns)
    records = []
    for key, loop in loops.items():
        optimizer_ms, state = loop.optimizer_ms[skip:], 2.0  # of AdamW
        if isinstance(loop.optimizer, NGOptimizer):
            state = state_size(loop.optimizer.graph, key)
        record = {
            "problem": name,
            "optimizer": key,
            "threads": threads,
            "parameters": numel(loop.model),
            "state": state,
            "step_ms": block_median(loop.ms[skip:]),
            "optimizer_ms": block_median(optimizer_ms),
            "optimizer_worst_ms": max(optimizer_ms),
        }
        records.append(record)
        record["ratio"] = record["step_ms"] / records[0]["step_ms"]
    return records


def network_steps(name: str, weights: str, threads: int) -> Record:
    """The record of one network with some weights, measured in this process."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    model, example = NETWORKS[name]()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        graph = build_graph(model, example)
    params = list(model.parameters())
    optimizer = NGOptimizer(params, graph=graph, rule=weights, total_steps=HORIZON)
    for _ in range(2):  # in the second the default renews all eigenbases
        draw_gradients(params)
        optimizer.step()
    count = move_to_late_step(optimizer)
    draw_gradients(params)
    optimizer.step()
    cycles: list[list[float]] = []  # seconds of each step
    while sum(map(len, cycles)) < STEPS or sum(map(sum, cycles)) < SECONDS:
        cycles.append([])
        for _ in range(count):
            draw_gradients(params)
            cycles[-1].append(seconds_of(optimizer.step))
    return {
        "network": name,
        "weights": weights,
        "threads": threads,
        "parameters": numel(model),
        "later_ms": 1e3 * median(map(mean, cycles)),
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


def state_size(graph: NeuralGraph, weights: str) -> float:
    """The optimizer's state in float32 numbers per parameter, with a horizon."""
    rule = load_pretrained(weights).bind(graph, HORIZON, device=torch.device("cpu"))
    params = [torch.empty(spec.shape, device="meta") for spec in graph.parameters]
    size = sum(x.nbytes for record in rule.init(params) for x in record.values())
    return size / torch.float32.itemsize / graph.numel


def main(arguments: list[str] | None = None) -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--problems", nargs="*", default=PROBLEMS)
    parser.add_argument("--networks", nargs="*", choices=NETWORKS, default=[*NETWORKS])
    parser.add_argument(
        "--weights", nargs="*", default=["default"], help="beside AdamW"
    )
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--steps", type=int, default=200, help="steps that are counted")
    parser.add_argument("--skip", type=int, default=100, help="steps before them")
    options = parser.parse_args(arguments)
    tables: dict[str, list[Record]] = {"problems": [], "networks": []}
    for name, threads in product(options.problems, options.threads):
        tables["problems"] += whole_steps(
            name, options.weights, threads, options.steps, options.skip
        )
        write(options.output, **tables)
    cases = product(options.networks, options.weights, options.threads)
    with get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        tasks = [pool.apply_async(network_steps, case) for case in cases]
        for task in tqdm(tasks, unit="network", disable=not tasks):
            tables["networks"].append(task.get())
            write(options.output, **tables)
    print("\n\n".join(table(records) for records in tables.values() if records))


if __name__ == "__main__":
    main()
