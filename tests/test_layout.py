import ast
import re
import tomllib
from pathlib import Path

import pytest

from benchmarks.house import functions_of_a_step
from benchmarks.imports import (
    MAY_IMPORT,
    Arrow,
    forbidden_arrows,
    import_arrows,
    import_circles,
    modules_in,
    package_of,
)
from tests.interpreters import printed

ROOT = Path(__file__).parent.parent
FOLDERS = "ngopt", "harness", "tasks", "meta_train", "benchmarks", "examples"
DEPENDENCIES = {"torch", "numpy", "safetensors"}
COMPILER = {"torch._dynamo", "torch._inductor", "torch._functorch.aot_autograd"}
# Of packages in the extra "train": what is imported where that has another name.
IMPORTED_AS = {
    "pillow": "PIL",
    "cmaes": "optuna",
    "tensorboard": "torch.utils.tensorboard",
    "scikit-learn": "sklearn",
}


@pytest.fixture(scope="module")
def arrows() -> set[Arrow]:
    modules = {}
    for folder in FOLDERS:
        modules |= modules_in(ROOT / folder, ROOT)
    assert {package_of(module) for module in modules} <= MAY_IMPORT.keys()
    return import_arrows(modules)


def test_imports_go_one_way(arrows):
    assert forbidden_arrows(arrows) == []


def test_modules_do_not_import_in_a_circle(arrows):
    assert import_circles(arrows) == []


@pytest.mark.parametrize("package", FOLDERS)
def test_folders_do_not_import_in_a_circle(arrows, package):
    between_folders = set()
    for arrow in arrows:
        folders = [".".join(module.split(".")[:2]) for module in arrow]
        if all((ROOT / folder.replace(".", "/")).is_dir() for folder in folders):
            between_folders.add(tuple(folders))
    assert import_circles(between_folders) == []


@pytest.mark.parametrize(
    "text",
    [
        "from ngopt.low import g",
        "import ngopt.low",
        "def f():\n    from ngopt.low import g",
        "if TYPE_CHECKING:\n    from ngopt import low",
        "module = import_module('ngopt.low')",
        "load_object('ngopt.low:g')",
        "NAMES = {'g': 'ngopt.low.g'}",
    ],
)
def test_every_kind_of_import_is_an_arrow(tmp_path, text):
    (tmp_path / "ngopt").mkdir()
    (tmp_path / "ngopt" / "low.py").write_text("import ngopt.high")
    (tmp_path / "ngopt" / "high.py").write_text(text)
    arrows = import_arrows(modules_in(tmp_path, tmp_path))
    assert arrows == {("ngopt.high", "ngopt.low"), ("ngopt.low", "ngopt.high")}
    assert import_circles(arrows) == [["ngopt.high", "ngopt.low"]]


@pytest.mark.parametrize(
    ("module", "target", "is_allowed"),
    [
        ("ngopt.devices", "ngopt.chunking", True),
        ("ngopt.devices", "ngopt.graph.kinds", False),
        ("ngopt.soap.update", "ngopt.soap.config", True),
        ("ngopt.soap.update", "ngopt.roles.matrices", True),
        ("ngopt.soap.update", "ngopt.graph.neural_graph", True),
        ("ngopt.soap.update", "ngopt.graph.tracing.capture", False),
        ("ngopt.soap.update", "ngopt.accelerator", False),
        ("ngopt.soap.update", "ngopt", False),
        ("ngopt.accelerator.graphs", "ngopt.soap.update", True),
        ("ngopt", "ngopt.optimizer", True),
        ("harness.files", "meta_train.training", False),
    ],
)
def test_rules_of_imports(module, target, is_allowed):
    expected = [] if is_allowed else [(module, target)]
    assert forbidden_arrows([(module, target)]) == expected


def test_packages_of_the_extra_train_are_imported():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    requirements = project["optional-dependencies"]["train"]
    names = {re.split("[<>=]", requirement)[0] for requirement in requirements}
    text = ""
    for folder in ("ngopt", "harness", "meta_train", "tasks"):
        text += "".join(file.read_text() for file in (ROOT / folder).rglob("*.py"))
    for name in names:
        module = re.escape(IMPORTED_AS.get(name, name))
        pattern = rf"(\bimport |\bfrom |import_module\(\"){module}\b"
        assert re.search(pattern, text), f"{name} is not imported"


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
import ngopt.graph.drawing.draw, ngopt.graph.command
imported = {{name for name, module in sys.modules.items() if module is not None}}
print(*{{"matplotlib", "networkx", "torch_geometric", "tqdm"}} & imported)
"""
    name, compiler, others = printed(code).splitlines()
    assert (name, compiler, others) == ("NGOptimizer", "", "")


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


def test_a_step_calls_functions_of_ngopt_in_order():
    functions = functions_of_a_step()
    assert functions[0] == ("ngopt/optimizer/optimizer.py", "NGOptimizer.step")
    assert all((ROOT / file).is_file() for file, _ in functions)
    assert len(functions) == len(set(functions)) <= 60
    assert len({file for file, _ in functions}) <= 15
