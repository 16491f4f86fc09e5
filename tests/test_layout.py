import ast
import re
import tomllib
from pathlib import Path

import networkx as nx
import pytest

from benchmarks.house import import_circles
from tests.interpreters import printed

ROOT = Path(__file__).parent.parent
MAY_IMPORT = {
    "ngopt": {"ngopt"},
    "harness": {"ngopt", "harness"},
    "tasks": {"ngopt", "harness", "tasks"},
    "meta_train": {"ngopt", "harness", "tasks", "meta_train"},
    "examples": {"ngopt", "harness", "examples"},
}
DEPENDENCIES = {"torch", "numpy", "safetensors"}
COMPILER = {"torch._dynamo", "torch._inductor", "torch._functorch.aot_autograd"}
# Of packages in the extra "train": what is imported where that has another name.
IMPORTED_AS = {
    "pillow": "PIL",
    "cmaes": "optuna",
    "tensorboard": "torch.utils.tensorboard",
    "scikit-learn": "sklearn.datasets",
}


def modules(file: Path) -> set[str]:
    """All modules that a file imports, anywhere in it."""
    names = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names.add(node.module or "")
    return names


def imported(file: Path) -> set[str]:
    """Their top-level names."""
    return {name.split(".")[0] for name in modules(file)}


def named(file: Path) -> set[str]:
    """What `import_module("name")` imports."""
    calls = [
        node
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.Call)
    ]
    arguments = [argument for call in calls for argument in call.args]
    return {
        a.value
        for a in arguments
        if isinstance(a, ast.Constant) and isinstance(a.value, str)
    }


@pytest.mark.parametrize("package", sorted(MAY_IMPORT))
def test_imports_go_one_way(package):
    files = list((ROOT / package).rglob("*.py"))
    assert files
    for file in files:
        found = imported(file) & MAY_IMPORT.keys()
        assert found <= MAY_IMPORT[package], (
            f"{file.relative_to(ROOT)} imports {found - MAY_IMPORT[package]}"
        )


def test_what_the_demo_installs_is_imported_somewhere():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    requirements = project["optional-dependencies"]["train"]
    names = {re.split("[<>=]", requirement)[0] for requirement in requirements}
    files = [
        file
        for folder in ("ngopt", "harness", "meta_train", "tasks")
        for file in (ROOT / folder).rglob("*.py")
    ]
    found = set()
    for file in files:
        found |= imported(file) | modules(file) | named(file)
    assert {IMPORTED_AS.get(name, name) for name in names} <= found


def test_importing_ngopt_imports_its_dependencies_alone():
    """And neither torch's compiler, which takes seconds, nor what views draw with."""
    # every other third-party module is made unimportable
    code = f"""
import importlib.metadata, sys
allowed = {DEPENDENCIES!r}
tops = importlib.metadata.packages_distributions()
needed, todo = set(), ["torch", "numpy", "safetensors"]
import re
while todo:  # what the dependencies need themselves
    name = re.split(r"[^A-Za-z0-9._-]", todo.pop())[0].lower().replace("_", "-")
    if name in needed:
        continue
    needed.add(name)
    try:
        todo += [r for r in importlib.metadata.requires(name) or [] if "extra" not in r]
    except importlib.metadata.PackageNotFoundError:
        pass
needed |= {{"ngopt", "setuptools", "pip"}}
for top, distributions in tops.items():
    if not any(d.lower().replace("_", "-") in needed for d in distributions):
        sys.modules[top] = None
import torch
before = {{*sys.modules}}
import ngopt
print(ngopt.NGOptimizer.__name__)
print(*{COMPILER!r} & {{*sys.modules}} - before)
import ngopt.graph.views.networkx_and_pyg
import ngopt.graph.drawing.draw, ngopt.graph.__main__
imported = {{name for name, module in sys.modules.items() if module is not None}}
print(*{{"matplotlib", "networkx", "torch_geometric", "tqdm"}} & imported)
"""
    name, compiler, others = printed(code).splitlines()
    assert (name, compiler, others) == ("NGOptimizer", "", "")


def packages_imported(file: Path) -> set[str]:
    """Packages `ngopt.graph`, `tasks.models` ... that a file imports anywhere."""
    found = set()
    for module in modules(file):
        names = module.split(".")
        if (ROOT.joinpath(*names[:2])).is_dir():
            found.add(".".join(names[:2]))
    return found


@pytest.mark.parametrize("package", sorted(MAY_IMPORT))
def test_folders_do_not_import_in_a_circle(package):
    arrows = nx.DiGraph()
    for folder in (ROOT / package).iterdir():
        for file in folder.rglob("*.py") if folder.is_dir() else ():
            name = f"{package}.{folder.name}"
            arrows.add_edges_from((name, other) for other in packages_imported(file))
    arrows.remove_edges_from(list(nx.selfloop_edges(arrows)))
    assert list(nx.simple_cycles(arrows)) == []


def test_modules_do_not_import_in_a_circle():
    files = [file for package in MAY_IMPORT for file in (ROOT / package).rglob("*.py")]
    assert import_circles(files, ROOT) == []


def test_files_of_the_graph_import_where_they_begin():
    deferred = set()
    for file in (ROOT / "ngopt" / "graph").rglob("*.py"):
        tree = ast.parse(file.read_text())
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and node not in tree.body:
                module = node.module or ""
                if module.startswith("ngopt"):
                    deferred.add((file.name, module))
    assert deferred == {("draw.py", "ngopt.graph.drawing.figure")}, "needs matplotlib"
