"""What one step of the default walks through: `python -m benchmarks.house --walk`."""

import sys
from pathlib import Path
from types import CodeType

import torch
from torch import nn

import ngopt

FOLDER = Path(ngopt.__file__).parent
STEPS = 20
COMPREHENSIONS = {"<listcomp>", "<setcomp>", "<dictcomp>", "<genexpr>"}


def functions_of_a_step() -> list[tuple[str, str]]:
    """File and name of every function of ngopt that the 20th step calls, in order.

    The network is a small MLP with a LayerNorm on the CPU, with `total_steps`.
    Comprehensions and generator expressions count as part of the function around them,
    lambdas as functions.
    """
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Linear(8, 16), nn.LayerNorm(16), nn.ReLU(), nn.Linear(16, 1)
    )
    optimizer = ngopt.NGOptimizer(network.named_parameters(), total_steps=100)
    inputs, targets = torch.randn(32, 8), torch.randn(32, 1)
    codes: dict[CodeType, None] = {}  # in order of the first call

    def record(frame, event: str, argument) -> None:
        if event == "call":
            codes.setdefault(frame.f_code)

    for step in range(1, STEPS + 1):
        optimizer.zero_grad()
        nn.functional.mse_loss(network(inputs), targets).backward()
        if step == STEPS:
            sys.setprofile(record)
        optimizer.step()
        sys.setprofile(None)
    functions = []
    for code in codes:
        path = Path(code.co_filename)
        if path.is_relative_to(FOLDER) and code.co_name not in COMPREHENSIONS:
            functions.append((str(path.relative_to(FOLDER.parent)), code.co_qualname))
    return functions
