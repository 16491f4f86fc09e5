"""Size and structure of the sources: `python -m benchmarks.house`.

Prints one row per package: lines, files, functions per 100 lines, parameters per
function, cyclomatic complexity (radon), the longest class, import circles, and imports
that `benchmarks.imports` forbids, which are then listed. With `--walk`: the functions
of ngopt that one step of the default calls.
"""

import argparse
import ast
import sys
from collections import ChainMap
from collections.abc import Mapping
from pathlib import Path
from statistics import median
from types import CodeType

import torch
from radon.complexity import cc_visit
from torch import nn

from benchmarks.imports import (
    Arrow,
    forbidden_arrows,
    import_arrows,
    import_circles,
    modules_in,
)
from benchmarks.records import Record, table
from ngopt import NGOptimizer

ROOT = Path(__file__).parent.parent
PACKAGES = "ngopt harness tasks meta_train benchmarks examples tests".split()
MAXIMUM_LINES = 400
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
STEPS = 20
COMPREHENSIONS = {"<listcomp>", "<setcomp>", "<dictcomp>", "<genexpr>"}


def _parameters(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """The number of parameters, without `self` and `cls`."""
    arguments = function.args
    named = arguments.posonlyargs + arguments.args + arguments.kwonlyargs
    count = sum(argument.arg not in ("self", "cls") for argument in named)
    return count + bool(arguments.vararg) + bool(arguments.kwarg)


def _is_kernel(function: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    return any("triton.jit" in ast.unparse(x) for x in function.decorator_list)


def _quantile(values: list[int], share: float) -> int:
    return sorted(values)[int(share * (len(values) - 1))] if values else 0


def measure(folder: Path, modules: Mapping[str, Path], arrows: set[Arrow]) -> Record:
    """The row of the table of a folder.

    modules: its files. arrows: imports between all modules, as of `import_arrows`.
    """
    texts = [file.read_text() for file in modules.values()]
    lines = [text.count("\n") for text in texts]
    nodes = [node for text in texts for node in ast.walk(ast.parse(text))]
    functions = [node for node in nodes if isinstance(node, FUNCTIONS)]
    # kernels take each pointer, size and stride as a parameter of its own
    parameters = [_parameters(node) for node in functions if not _is_kernel(node)]
    classes = [node for node in nodes if isinstance(node, ast.ClassDef)]
    class_lines = [(node.end_lineno or 0) - node.lineno + 1 for node in classes]
    blocks = [block for text in texts for block in cc_visit(text)]
    # of functions and methods, not of classes
    complexities = [block.complexity for block in blocks if block.letter != "C"]
    from_here = [arrow for arrow in arrows if arrow[0] in modules]
    circles = import_circles(arrows)
    return {
        "package": folder.name,
        "lines": sum(lines),
        "files": len(modules),
        f"over_{MAXIMUM_LINES}": sum(n > MAXIMUM_LINES for n in lines),
        "median_file": int(median(lines)),
        "functions_100": round(100 * len(functions) / sum(lines), 1),
        "par_p90": _quantile(parameters, 0.9),
        "par_max": max(parameters, default=0),
        "cc_p90": _quantile(complexities, 0.9),
        "class_max": max(class_lines, default=0),
        "circles": sum(any(name in modules for name in circle) for circle in circles),
        "forbidden": len(forbidden_arrows(from_here)),
    }


def print_structure() -> None:
    """Prints a row per package, then circles and forbidden imports."""
    parts = [(ROOT / name, modules_in(ROOT / name, ROOT)) for name in PACKAGES]
    arrows = import_arrows(ChainMap(*(files for _, files in parts)))
    print(table([measure(folder, files, arrows) for folder, files in parts]))
    for circle in import_circles(arrows):
        print("circle:", *circle)
    for module, target in forbidden_arrows(arrows):
        print(f"forbidden: {module} imports {target}")


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
    optimizer = NGOptimizer(network.named_parameters(), total_steps=100)
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
        if path.is_relative_to(ROOT / "ngopt") and code.co_name not in COMPREHENSIONS:
            functions.append((str(path.relative_to(ROOT)), code.co_qualname))
    return functions


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--walk", action="store_true", help="functions of one step")
    arguments = parser.parse_args()
    if arguments.walk:
        functions = functions_of_a_step()
        for file, name in functions:
            print(file, name)
        files = {file for file, _ in functions}
        print(f"{len(files)} files, {len(functions)} functions")
        return
    print_structure()


if __name__ == "__main__":
    main()
