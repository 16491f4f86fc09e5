"""Where an outer step of meta-training spends its time:
`python -m benchmarks.outer_step`.

Milliseconds an inner step, of first-order TBPTT with the bundled weights, on one
thread: the optimizee's own gradient, and all that the metanet does (updates, and
derivatives by its weights). Beside them the least time for their matrix products and
convolutions, at the rate measured in the same run (see `benchmarks.step`). The median
of several outer steps of one inner training.
"""

from __future__ import annotations

import argparse
from itertools import product
from pathlib import Path
from statistics import median

import torch
from tqdm import tqdm

from benchmarks import floor
from benchmarks.records import Record, table, write
from benchmarks.step import HORIZON
from meta_train.problems import load_problem
from meta_train.training.estimators import TBPTT
from meta_train.training.unroll import Optimizee
from ngopt.pretrained import load_pretrained


def record_of(problem: str, weights: str, truncation: int, repeats: int) -> Record:
    """Times and floors of one problem and one metanet."""
    learned = load_pretrained(weights)
    if learned.metanet is None:
        raise ValueError(f"weights '{weights}': expected a metanet; got a base rule")
    learned.metanet.requires_grad_(True)
    optimizee = Optimizee(load_problem(problem), seed=0)
    estimator = TBPTT(total_steps=HORIZON)
    inner = estimator.start(optimizee, learned)

    def outer() -> None:
        nonlocal inner
        inner = estimator.estimate(optimizee, learned, inner, truncation)[1]

    def gradients() -> None:
        # one more than updates: the meta-loss looks behind the last
        for _ in range(truncation + 1):
            optimizee.gradient(inner)

    outer()  # makes what is made once
    scale = 1e3 / truncation
    times = [
        (floor.seconds_of(outer), floor.seconds_of(gradients)) for _ in range(repeats)
    ]
    whole, gradient = (scale * median(own) for own in zip(*times, strict=True))
    machine = floor.measured()
    least, least_gradient = (
        scale * machine.seconds(floor.flops_of(call), 0) for call in (outer, gradients)
    )
    return {
        "problem": problem,
        "weights": weights,
        "truncation": truncation,
        "ms": whole,
        "gradient_ms": gradient,
        "gradient_floor_ms": least_gradient,
        "metanet_ms": whole - gradient,
        "metanet_floor_ms": least - least_gradient,
    }


def main(arguments: list[str] | None = None) -> None:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("--problems", nargs="*", default=["fm-16"])
    parser.add_argument("--weights", nargs="*", default=["ff", "ng-gnn"])
    parser.add_argument("--truncation", type=int, default=48)
    parser.add_argument("--repeats", type=int, default=5, help="outer steps")
    parser.add_argument("--output", type=Path, help="a JSON file for the records")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    pairs = list(product(options.problems, options.weights))
    records = [
        record_of(*pair, options.truncation, options.repeats)
        for pair in tqdm(pairs, unit="metanet")
    ]
    write(options.output, records=records)
    print(table(records))


if __name__ == "__main__":
    main()
