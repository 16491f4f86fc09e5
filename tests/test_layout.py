import ast
import re
import tomllib
from pathlib import Path

import pytest

from tests.interpreters import printed

ROOT = Path(__file__).parent.parent
MAY_IMPORT = {
    "ngopt": {"ngopt"},
    "tasks": {"ngopt", "tasks"},
    "meta_train": {"ngopt", "tasks", "meta_train"},
    "examples": {"ngopt"},
}
DEPENDENCIES = {"torch", "numpy", "safetensors"}
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
        for folder in ("meta_train", "tasks")
        for file in (ROOT / folder).rglob("*.py")
    ]
    found = set()
    for file in files:
        found |= imported(file) | modules(file) | named(file)
    assert {IMPORTED_AS.get(name, name) for name in names} <= found


def test_importing_ngopt_needs_its_dependencies_alone():
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
import ngopt
print(ngopt.NGOptimizer.__name__, sys.modules.get("tqdm"), sys.modules.get("matplotlib"))
"""
    assert printed(code).split() == ["NGOptimizer", "None", "None"]


GRAPH = ROOT / "ngopt" / "graph"
LAYERS = """
pieces summary core topology edge_list order flattened_maps interop usage
matrices activation_symmetry labels parameter_graph named_layers infer sequential grid
layout figure draw
tracing tracing.copies sharding tracing.isolation tracing.capture tracing.values tracing.nodes
tracing.edges tracing.stars
tracing.blocks tracing.tracer tracing.unused_rows tracing.finish
rules.registry rules.pairs rules.complex_numbers rules.parameters rules.entrywise
rules.entries rules.reductions
rules.products rules.layers rules.maps rules.norms rules.picked rules.writes rules.einsum
rules.recurrent rules
walk build __init__ __main__
""".split()
"""The files of `ngopt.graph`: each imports from those before it alone."""


def imported_files(file: Path) -> dict[str, bool]:
    """Files of `ngopt.graph` that a file imports from;
    whether it always does so where it begins, not in a function."""
    tree = ast.parse(file.read_text())
    found = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):  # of a package, files; of a file, names
            modules = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for module in modules:
            if f"{module}.".startswith("ngopt.graph."):
                path = (
                    module.removeprefix("ngopt.graph").removeprefix(".") or "__init__"
                )
                name = path if path in LAYERS else path.rpartition(".")[0] or "__init__"
                found[name] = found.get(name, True) and node in tree.body
    return found


def test_every_file_of_the_graph_imports_from_those_before_it_alone():
    files = {
        file: ".".join(file.relative_to(GRAPH).with_suffix("").parts)
        for file in GRAPH.rglob("*.py")
    }
    names = {file: name.removesuffix(".__init__") for file, name in files.items()}
    assert sorted(names.values()) == sorted(LAYERS)
    for file, name in names.items():
        before = LAYERS[: LAYERS.index(name)]
        late = [other for other in imported_files(file) if other not in before]
        assert not late, f"ngopt.graph.{name} imports {late}, which come after it"


def test_files_of_the_graph_are_imported_where_a_file_begins():
    deferred = {
        (file.name, name)
        for file in GRAPH.rglob("*.py")
        for name, first in imported_files(file).items()
        if not first
    }
    assert deferred == {("draw.py", "figure")}, "which needs matplotlib"


TASKS = """
common dataset_sources datasets shards networks models baselines sources learning
inr zoo published classify edit predict represent table_rows table
""".split()
"""What `tasks` consists of: each imports from itself and those before it."""


def test_every_part_of_the_tasks_imports_from_those_before_it_alone():
    root = ROOT / "tasks"
    parts = {
        path.stem: path for path in root.iterdir() if not path.stem.startswith("__")
    }
    assert sorted(parts) == sorted(TASKS)
    for name, path in parts.items():
        known = TASKS[: TASKS.index(name) + 1]
        for file in path.rglob("*.py") if path.is_dir() else [path]:
            late = imported_parts(file) - {*known}
            assert not late, (
                f"{file.relative_to(ROOT)} imports {late}, which come after it"
            )


def imported_parts(file: Path) -> set[str]:
    """Parts of `tasks` that a file imports from."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if (
            isinstance(node, ast.ImportFrom)
            and (node.module or "").split(".")[0] == "tasks"
        ):
            deeper = (node.module or "").split(".")[1:2]
            found |= set(deeper) or {alias.name for alias in node.names}
    return found
