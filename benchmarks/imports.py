"""Which modules of this checkout import which, and which must not.

Every import counts: at the top of a file, in a function, under `TYPE_CHECKING`, and by
a string that is the dotted path of a module (`import_module("ngopt.race.run")`).
"""

import ast
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import networkx as nx

Arrow = tuple[str, str]
"""A module, and one that it imports."""

GROUND_FLOOR = (
    "ngopt.chunking",
    "ngopt.devices",
    "ngopt.functional",
    "ngopt.importing",
    "ngopt.newton_schulz",
    "ngopt.packing",
    "ngopt.schedule",
    "ngopt.shard_layout",
    "ngopt.user_warnings",
)
GRAPH_DATA = (
    "ngopt.graph.groups_and_blocks",
    "ngopt.graph.kinds",
    "ngopt.graph.neural_graph",
)
RULES = (
    *("ngopt.soap", "ngopt.learned_step", "ngopt.specialized"),
    *("ngopt.metanets", "ngopt.pretrained"),
)
EXECUTION = "ngopt.accelerator", "ngopt.distributed"
MAY_IMPORT: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(GROUND_FLOOR, ()),
    "ngopt.graph": (),
    "ngopt.roles": ("ngopt.graph",),
    "ngopt.soap": ("ngopt.roles", *GRAPH_DATA),
    "ngopt.accelerator": ("ngopt.soap", "ngopt.roles"),
    "ngopt.distributed": ("ngopt.soap", "ngopt.accelerator", "ngopt.roles"),
    "ngopt.learned_step": ("ngopt.soap", "ngopt.roles"),
    "ngopt.specialized": ("ngopt.soap", "ngopt.roles", *GRAPH_DATA),
    "ngopt.metanets": ("ngopt.graph", "ngopt.roles"),
    "ngopt.pretrained": (*RULES, *GRAPH_DATA),
    "ngopt.optimizer": ("ngopt.graph", "ngopt.roles", *RULES, *EXECUTION),
    "ngopt.audit": ("ngopt.graph", "ngopt.roles"),
    "ngopt.blockwise": ("ngopt.graph", "ngopt.roles"),
    "ngopt.race": ("ngopt",),
    "ngopt.integrations": ("ngopt",),
    "ngopt.cli": ("ngopt", "meta_train.specialize"),
    "ngopt": ("ngopt",),
    "harness": ("ngopt",),
    "tasks": ("ngopt", "harness"),
    "meta_train": ("ngopt", "harness", "tasks"),
    "benchmarks": ("ngopt", "harness", "tasks", "meta_train"),
    "examples": ("ngopt", "harness", "meta_train", "benchmarks"),
}
"""Packages, lowest first, and what each may import beside itself and the ground floor.
"ngopt" as a key is `ngopt/__init__.py` alone."""

_DOTTED = re.compile(r"\w+(\.\w+)+")


def package_of(module: str) -> str:
    """The package whose rule in `MAY_IMPORT` holds: "ngopt.graph", "harness" ..."""
    depth = 2 if module.startswith("ngopt.") else 1
    return ".".join(module.split(".")[:depth])


def modules_in(folder: Path, root: Path) -> dict[str, Path]:
    """The files of a folder by their dotted path from the folder root."""
    modules = {}
    for file in sorted(folder.rglob("*.py")):
        parts = file.relative_to(root).with_suffix("").parts
        modules[".".join(parts).removesuffix(".__init__")] = file
    return modules


def import_arrows(modules: Mapping[str, Path]) -> set[Arrow]:
    """All imports between some modules, given with their files."""
    arrows = set()
    for module, file in modules.items():
        for name in imported_names(ast.parse(file.read_text())):
            # the last part may be an object in a module
            target = name if name in modules else name.rpartition(".")[0]
            if target in modules and target != module:
                arrows.add((module, target))
    return arrows


def imported_names(tree: ast.Module) -> Iterator[str]:
    """Dotted paths of modules, and of objects in them, that a file may import."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                yield f"{node.module}.{alias.name}"
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            # "module:object", and the beginning of f"package.{module}"
            path = node.value.partition(":")[0].removesuffix(".")
            if _DOTTED.fullmatch(path):
                yield path


def import_circles(arrows: Iterable[Arrow]) -> list[list[str]]:
    """Groups of modules that import each other."""
    components = nx.strongly_connected_components(nx.DiGraph(list(arrows)))
    return sorted(sorted(component) for component in components if len(component) > 1)


def forbidden_arrows(arrows: Iterable[Arrow]) -> list[Arrow]:
    """Imports that `MAY_IMPORT` does not allow; packages without a row are free."""
    forbidden = []
    for module, target in sorted(arrows):
        package = package_of(module)
        if package in MAY_IMPORT:
            allowed = package, *GROUND_FLOOR, *MAY_IMPORT[package]
            if not any(f"{target}.".startswith(f"{name}.") for name in allowed):
                forbidden.append((module, target))
    return forbidden
