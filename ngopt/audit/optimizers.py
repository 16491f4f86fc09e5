"""What an optimizer of any library does with each of its parameters."""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from typing import Any

from torch import Tensor

ORTHOGONALIZING = re.compile(r"muon|dion|scion|spectral|ortho", re.IGNORECASE)
"""Names of classes whose updates are orthogonal matrices."""
PRECONDITIONING = re.compile(r"soap|shampoo|kron|psgd|solp|lather", re.IGNORECASE)
"""Names of classes with factors for the sides of matrices; other parameters have an
elementwise update."""
BY_ROLE = "NGOptimizer", "BlockwiseOptimizer"
"""Classes that read the graph themselves."""
WITH_FALLBACK = "timm", "heavyball", "pytorch_optimizer"
"""Packages whose optimizers of matrices treat vectors elementwise."""


@dataclass(frozen=True)
class Treatment:
    """What happens to a parameter.

    Attributes:
        optimizer: name of the class. group: number of its group there.
        method: "orthogonalizing", "preconditioning", "by role" or "elementwise".
        is_vector_safe: whether a vector may be there, too.
        weight_decay: of the group.
    """

    optimizer: str
    group: int
    method: str
    is_vector_safe: bool
    weight_decay: float


def flat_optimizers(optimizers: Any) -> list[Any]:
    """The optimizers in lists, dicts, containers and wrappers, each once.

    Raises ValueError if there is none, or something without `param_groups`.
    """
    by_id = {id(optimizer): optimizer for optimizer in _flat(optimizers)}
    if not by_id:
        raise ValueError("audit: expected an optimizer; got none")
    return list(by_id.values())


def _flat(value: Any) -> Iterator[Any]:
    is_collection = isinstance(value, Mapping | list | tuple)
    parts = _items(value) if is_collection else _inner(value)
    if is_collection or parts:
        yield from chain.from_iterable(map(_flat, parts))
    elif hasattr(value, "param_groups"):
        yield value
    else:
        raise ValueError(
            "audit: expected an optimizer with param_groups, or a list of these; got "
            f"{type(value).__name__}"
        )


def _items(value: Any) -> Iterable[Any]:
    """What a collection contains; of anything else the value itself."""
    if isinstance(value, Mapping):
        return value.values()
    return value if isinstance(value, list | tuple) else [value]


def _inner(value: Any) -> list[Any]:
    """The optimizers that a container or a wrapper has in its attributes."""
    if type(value).__name__ in BY_ROLE or not hasattr(value, "__dict__"):
        return []
    items = chain.from_iterable(map(_items, vars(value).values()))
    return [x for x in items if x is not value and hasattr(x, "param_groups")]


def treatments(optimizers: Iterable[Any]) -> dict[int, list[Treatment]]:
    """id of each parameter -> what its optimizers do with it."""
    of_parameters: dict[int, list[Treatment]] = {}
    for optimizer in optimizers:
        for number, group in enumerate(optimizer.param_groups):
            for p in group["params"]:
                treatment = _treatment(optimizer, number, group, p)
                of_parameters.setdefault(id(p), []).append(treatment)
    return of_parameters


def is_of_matrices(optimizer: Any) -> bool:
    """Whether an optimizer has another update for matrices, by the name of its class or
    the settings of a group."""
    name = type(optimizer).__name__
    if name in BY_ROLE or ORTHOGONALIZING.search(name) or PRECONDITIONING.search(name):
        return True
    groups = optimizer.param_groups
    return any(_flag(group, p) for group in groups for p in group["params"])


def _treatment(
    optimizer: Any, number: int, group: Mapping[str, Any], p: Tensor
) -> Treatment:
    name, package = type(optimizer).__name__, type(optimizer).__module__.split(".")[0]
    flag = _flag(group, p)
    if name in BY_ROLE:
        method = "by role"
    elif flag is not None:
        method = "orthogonalizing" if flag else "elementwise"
    elif ORTHOGONALIZING.search(name):
        method = "orthogonalizing"
    elif PRECONDITIONING.search(name):
        method = "preconditioning"
    else:
        method = "elementwise"
    is_vector_safe = flag is None and package in WITH_FALLBACK
    if method == "orthogonalizing" and is_vector_safe and p.dim() < 2:
        method = "elementwise"
    decay = group.get("weight_decay") or 0.0
    return Treatment(name, number, method, is_vector_safe, float(decay))


def _flag(group: Mapping[str, Any], p: Tensor) -> bool | None:
    """Whether a group, or a parameter, says that it is orthogonalized; None if neither
    says anything."""
    if group.get("use_fallback") is not None:
        return not group["use_fallback"]
    if group.get("use_muon") is not None:
        return bool(group["use_muon"])
    algorithm = group.get("algorithm")
    if isinstance(algorithm, str):
        return bool(ORTHOGONALIZING.search(algorithm))
    return getattr(p, "use_muon", None)
