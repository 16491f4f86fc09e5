"""What a step of the default costs, beside fused AdamW in the same run.

    python -m benchmarks.step --threads 2 --output results/step.json

Problems: whole training steps (batch, forward, backward, optimizer). All optimizers train their own
copy and take turns at every step, so that noise meets them alike; steps before `--skip` do not
count, and those that do contain every renewal of an eigenbasis.

Networks: steps on random gradients, each network in a process of its own. "first" makes the
eigenbases, "all" renews every one (as steps 2 to 8 do), "later" are as many steps as there are
between renewals, late in a training. Extra memory is how far resident memory rises within a step
(VmHWM of /proc/self/status, set back through /proc/self/clear_refs) above what it was before, when
parameters, gradients and state were there and free memory was given back; of the first step,
without the state that it leaves. Holes between tensors in the allocator's heap are part of it.
"""

from __future__ import annotations

import argparse
import json
import platform
import warnings
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path
from statistics import mean, median
from time import perf_counter
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer
from tqdm import tqdm

from benchmarks.memory import Peak
from meta_train.problems import Problem, load_problem
from ngopt import NGOptimizer, build_graph, load_pretrained
from ngopt.graph import NeuralGraph

PROBLEMS = ("fm-16", "c10-32")
HORIZON = 1000
LATE = 500  # steps behind a parameter when bases are renewed as seldom as they ever are

Record = dict[str, Any]


def _resnet50() -> tuple[nn.Module, Any]:
    from torchvision.models import resnet50

    return resnet50(weights=None), torch.randn(2, 3, 224, 224)


def _vit_b_16() -> tuple[nn.Module, Any]:
    from torchvision.models import vit_b_16

    return vit_b_16(weights=None), torch.randn(2, 3, 224, 224)


def _gpt2() -> tuple[nn.Module, Any]:
    from transformers import GPT2Config, GPT2LMHeadModel

    tokens = torch.arange(32).reshape(2, 16)
    return GPT2LMHeadModel(GPT2Config()), {"input_ids": tokens}


NETWORKS: dict[str, Callable[[], tuple[nn.Module, Any]]] = {
    "resnet50": _resnet50,
    "vit_b_16": _vit_b_16,
    "gpt2": _gpt2,
}

OPTIMIZERS: dict[str, Callable[[nn.Module], Optimizer]] = {
    "adamw": lambda model: AdamW(model.parameters(), fused=True),
    "default": lambda model: NGOptimizer(model.parameters(), model=model),
    "default, horizon": lambda model: NGOptimizer(model.parameters(), model=model, total_steps=HORIZON),
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
    """Records of all optimizers on a problem; `ratio` is that of medians to fused AdamW's."""
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


def _record(problem: str, model: nn.Module, key: str, times: list[tuple[float, float]]) -> Record:
    whole, optimizer = zip(*times, strict=True)
    return {
        "problem": problem,
        "optimizer": key,
        "parameters": numel(model),
        "state": 2.0 if key == "adamw" else state_size(build_graph(model), key != "default"),
        "step_ms": median(whole),
        "fastest_ms": min(whole),
        "optimizer_ms": median(optimizer),
        "optimizer_fastest_ms": min(optimizer),
        "optimizer_mean_ms": mean(optimizer),
        "optimizer_worst_ms": max(optimizer),
    }


def large_steps(name: str, threads: int) -> Record:
    """The record of one network, measured in this process."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    model, example = NETWORKS[name]()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        graph = build_graph(model, example)
    optimizer = NGOptimizer(model.parameters(), graph=graph, total_steps=HORIZON)
    params = list(model.parameters())
    first, first_bytes = _step(optimizer, params)
    every, every_bytes = _step(optimizer, params)
    for p in params:
        optimizer.state[p]["step"].fill_(LATE)
    count = optimizer.learned.base.config.renew_every  # type: ignore[union-attr]
    later, later_bytes = zip(*(_step(optimizer, params) for _ in range(count)), strict=True)
    n = numel(model)
    first_bytes -= int(4 * n * state_size(graph, True))
    return {
        "network": name,
        "parameters": n,
        "first_ns": 1e9 * first / n,
        "all_ns": 1e9 * every / n,
        "later_ns": 1e9 * median(later) / n,
        "later_worst_ns": 1e9 * max(later) / n,
        "state": state_size(graph, False),
        "state_horizon": state_size(graph, True),
        "extra_mib": max(first_bytes, every_bytes, *later_bytes) / 2**20,
    }


def _step(optimizer: Optimizer, params: list[nn.Parameter]) -> tuple[float, int]:
    """Seconds and extra bytes of a step on random gradients."""
    for p in params:
        p.grad = torch.empty_like(p) if p.grad is None else p.grad
        p.grad.normal_()
    peak = Peak()
    start = perf_counter()
    optimizer.step()
    return perf_counter() - start, peak.bytes()


def numel(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def state_size(graph: NeuralGraph, has_horizon: bool) -> float:
    """What the default keeps, in float32 numbers per parameter."""
    rule = load_pretrained("default").bind(graph, HORIZON if has_horizon else None)
    params = [torch.empty(spec.shape, device="meta") for spec in graph.parameters]
    kept: list[Tensor] = [x for record in rule.init(params) for x in record.values()]
    return sum(x.numel() * x.itemsize for x in kept) / torch.float32.itemsize / graph.numel


def table(records: list[Record]) -> str:
    """One line for each record; the first's keys are the header."""
    rows = [list(records[0]), *([_cell(x) for x in record.values()] for record in records)]
    widths = [max(map(len, column)) + 2 for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = zip(row, widths, strict=True)
        lines.append("".join(f"{cell:>{width}}" for cell, width in cells))
    return "\n".join(lines)


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.2f}" if value < 100 else f"{value:.0f}"
    return f"{value:,}" if isinstance(value, int) else value


def main(arguments: list[str] | None = None) -> None:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("--problems", nargs="*", default=PROBLEMS)
    parser.add_argument("--networks", nargs="*", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--steps", type=int, default=200, help="that count")
    parser.add_argument("--skip", type=int, default=100, help="steps before those that count")
    parser.add_argument("--output", type=Path, help="a JSON file for the records")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    steps = [r for name in options.problems for r in whole_steps(name, options.steps, options.skip)]
    with get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        tasks = [pool.apply_async(large_steps, (n, options.threads)) for n in options.networks]
        large = [task.get() for task in tqdm(tasks, unit="network", disable=not tasks)]
    print("\n\n".join(table(records) for records in (steps, large) if records))
    if options.output:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        machine = platform.processor() or platform.machine()
        about = {"processor": machine, "threads": options.threads, "torch": torch.__version__}
        content = {"machine": about, "problems": steps, "networks": large}
        options.output.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
