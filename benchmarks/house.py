"""Size and complexity of the sources: `python -m benchmarks.house`.

Prints one row per package: lines, files, tokens per statement, comprehensions per 100
statements, parameters per function, cyclomatic complexity (radon), import circles and
the longest class. Other files and folders can be given instead. Takes 20 seconds.
"""

import argparse
import ast
import io
import os
import subprocess
import sys
import time
import tokenize
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

import networkx as nx
from radon.complexity import cc_visit

from benchmarks.records import Record, table, write

ROOT = Path(__file__).parent.parent
PACKAGES = "ngopt harness tasks meta_train benchmarks examples tests".split()
MAXIMUM_LINES = 400
IMPORTS = 5  # of which the median counts
LAYOUT_TOKENS = {
    tokenize.COMMENT,
    tokenize.DEDENT,
    tokenize.ENCODING,
    tokenize.ENDMARKER,
    tokenize.INDENT,
    tokenize.NEWLINE,
    tokenize.NL,
}
COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


@dataclass
class Source:
    """Counts of one or several files."""

    lines: list[int] = field(default_factory=list)
    statements: int = 0
    tokens: int = 0
    comprehensions: int = 0
    parameters: list[int] = field(default_factory=list)
    complexities: list[int] = field(default_factory=list)
    class_lines: list[int] = field(default_factory=list)

    def add(self, text: str) -> None:
        tree = ast.parse(text)
        self.lines.append(text.count("\n"))
        docstrings = set(_docstrings(tree))
        for node in ast.walk(tree):
            if isinstance(node, ast.stmt):
                self.statements += node not in docstrings
            elif isinstance(node, COMPREHENSIONS):
                self.comprehensions += 1
            if isinstance(node, FUNCTIONS) and not _is_triton_kernel(node):
                self.parameters.append(_parameters(node))
            if isinstance(node, ast.ClassDef):
                end = node.end_lineno or node.lineno
                self.class_lines.append(end - node.lineno + 1)
        self.tokens += _tokens(text, {node.lineno for node in docstrings})
        for block in cc_visit(text):
            if block.letter != "C":  # functions and methods, no classes
                self.complexities.append(block.complexity)


def _is_triton_kernel(function: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    """Kernels take each pointer, size and stride as a parameter of its own."""
    return any("triton.jit" in ast.unparse(x) for x in function.decorator_list)


def _docstrings(tree: ast.AST) -> Iterator[ast.Expr]:
    """Statements that are strings: docstrings, also those of variables."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Expr) or not isinstance(node.value, ast.Constant):
            continue
        if isinstance(node.value.value, str):
            yield node


def _tokens(text: str, docstring_lines: set[int]) -> int:
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    counted = 0
    for token in tokens:
        is_docstring = (
            token.type == tokenize.STRING and token.start[0] in docstring_lines
        )
        counted += token.type not in LAYOUT_TOKENS and not is_docstring
    return counted


def _parameters(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """The number of parameters, without `self` and `cls`."""
    arguments = function.args
    named = arguments.posonlyargs + arguments.args + arguments.kwonlyargs
    count = bool(arguments.vararg) + bool(arguments.kwarg)
    for argument in named:
        count += argument.arg not in ("self", "cls")
    return count


def import_circles(files: Iterable[Path], root: Path) -> list[list[str]]:
    """Groups of modules that import each other at import time.

    Imports inside of functions and under `TYPE_CHECKING` are not followed.
    """
    trees = {}
    for file in files:
        name = ".".join(file.relative_to(root).with_suffix("").parts)
        trees[name.removesuffix(".__init__")] = ast.parse(file.read_text())
    graph = nx.DiGraph()
    for name, tree in trees.items():
        for module in _imported_modules(tree):
            target = module if module in trees else module.rpartition(".")[0]
            if target in trees and target != name:
                graph.add_edge(name, target)
    components = nx.strongly_connected_components(graph)
    return [sorted(component) for component in components if len(component) > 1]


def _imported_modules(tree: ast.Module) -> Iterator[str]:
    for node in tree.body:
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name
        elif isinstance(node, ast.ImportFrom) and not node.level:
            for alias in node.names:
                yield f"{node.module}.{alias.name}"


def _quantile(values: list[int], share: float) -> int:
    return sorted(values)[int(share * (len(values) - 1))] if values else 0


def measure(folder: Path) -> Record:
    """The row of the table of a folder or a file."""
    files = sorted(folder.rglob("*.py")) if folder.is_dir() else [folder]
    if not files:
        raise ValueError(f"{folder}: expected Python files; got none.")
    source = Source()
    for file in files:
        source.add(file.read_text())
    circles = import_circles(files, folder.parent)
    statements = max(source.statements, 1)
    return {
        "package": folder.name,
        "lines": sum(source.lines),
        "files": len(files),
        f"over_{MAXIMUM_LINES}": sum(n > MAXIMUM_LINES for n in source.lines),
        "median_file": int(median(source.lines)),
        "tokens": round(source.tokens / statements, 1),
        "compr": round(100 * source.comprehensions / statements, 1),
        "par_p90": _quantile(source.parameters, 0.9),
        "par_max": max(source.parameters, default=0),
        "cc_p90": _quantile(source.complexities, 0.9),
        "class_max": max(source.class_lines, default=0),
        "circles": len(circles),
    }


def import_seconds() -> Record:
    """Median seconds of `import ngopt` after `import torch`."""
    code = (
        "import time; begin = time.perf_counter(); import torch; "
        "middle = time.perf_counter(); import ngopt; end = time.perf_counter(); "
        "print(middle - begin, end - middle)"
    )
    env = dict(os.environ)
    env.pop("PYTHONDONTWRITEBYTECODE", None)  # users have compiled modules
    torch_seconds, own_seconds = [], []
    for _ in range(IMPORTS):
        output = subprocess.check_output(
            [sys.executable, "-c", code], cwd=ROOT, env=env
        )
        first, second = map(float, output.split())
        torch_seconds.append(first)
        own_seconds.append(second)
    return {
        "import": "ngopt",
        "torch_s": round(median(torch_seconds), 2),
        "beyond_torch_s": round(median(own_seconds), 2),
    }


def main() -> None:
    description = (__doc__ or "").split("\n\n")[0]
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument(
        "folders",
        nargs="*",
        type=Path,
        default=[ROOT / name for name in PACKAGES],
        help="files or folders; the packages of this checkout by default",
    )
    parser.add_argument("--json", type=Path, help="writes the rows to this file")
    arguments = parser.parse_args()
    begin = time.perf_counter()
    rows = [measure(folder) for folder in arguments.folders]
    print(table(rows))
    imports = [import_seconds()]
    print(table(imports))
    print(f"{time.perf_counter() - begin:.0f} s")
    write(arguments.json, sources=rows, imports=imports)


if __name__ == "__main__":
    main()
