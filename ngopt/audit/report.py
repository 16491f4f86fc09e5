"""`audit`: the parameters of a network, who optimizes them, and what is wrong."""

import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from torch import nn

from ngopt.audit.optimizers import (
    Treatment,
    flat_optimizers,
    is_of_matrices,
    treatments,
)
from ngopt.graph.build import build_graph
from ngopt.graph.summary import table_lines
from ngopt.roles.from_graph import check_module, roles_of
from ngopt.roles.logical_matrices import matrices_of_graph
from ngopt.roles.optimizer_groups import kind_of

HIDDEN = "matrix", "stack"
MOST_NAMES = 3  # of equal parameters in a row
HEADER = "parameter", "shape", "role", "matrices", "optimizer", "group", "wrong"
# parts of the texts of problems
DECAY, FUSED = "weight decay", "matrices, orthogonalized as one"
NO_MATRIX_METHOD = "no optimizer of matrices is there, such as Muon or SOAP"
NUMBERS = re.compile(r"(?<=\.)\d+(?=\.)")


@dataclass(frozen=True)
class AuditedParameter:
    """A parameter of the network.

    Attributes:
        role: as of `optimizer_groups`.
        matrices: number of matrices inside it; 0 for vectors.
        optimizer: name of the class that optimizes it, None if there is none. group:
            number of its group there.
        problems: what is wrong, in words.
    """

    name: str
    shape: tuple[int, ...]
    role: str
    matrices: int
    optimizer: str | None
    group: int | None
    problems: tuple[str, ...] = ()


@dataclass(frozen=True)
class Audit:
    """What `audit` returns; as text a table.

    Attributes:
        parameters: those that need a gradient, in the order of the network.
        problems: that are not of a parameter of the network.
        notes: facts that are no problems.
    """

    parameters: tuple[AuditedParameter, ...]
    problems: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def is_right(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems and not any(p.problems for p in self.parameters)

    def to_json(self) -> dict[str, Any]:
        return {"is_right": self.is_right, **asdict(self)}

    def __str__(self) -> str:
        """Equal parameters of several layers are one row."""
        alike: dict[AuditedParameter, list[str]] = defaultdict(list)
        for p in self.parameters:
            alike[replace(p, name=NUMBERS.sub("*", p.name))].append(p.name)
        patterns = Counter(p.name for p in alike)
        rows: list[Sequence[str]] = [HEADER]
        for p, names in alike.items():
            name = names[0] if len(names) == 1 else f"{p.name} ({len(names)})"
            if patterns[p.name] > 1:  # some layers are right, others wrong
                is_short = len(names) <= MOST_NAMES
                name = ", ".join(names[:MOST_NAMES]) + ("" if is_short else ", ...")
            shape = " x ".join(map(str, p.shape)) or "()"
            group = "" if p.group is None else str(p.group)
            matrices, optimizer = str(p.matrices or ""), p.optimizer or "none"
            wrong = "; ".join(p.problems)
            rows.append((name, shape, p.role, matrices, optimizer, group, wrong))
        return "\n".join([*table_lines(rows), "", *self._conclusions()])

    def _conclusions(self) -> list[str]:
        lines = [f"wrong: {problem}" for problem in self.problems]
        lines += [f"note: {note}" for note in self.notes]
        count = _counted(len(self.parameters))
        if self.is_right:
            return [*lines, f"{count}: nothing is wrong"]
        counts = Counter(problem for p in self.parameters for problem in p.problems)
        wrong = counts.total() + len(self.problems)
        lines.append(f"{count}: {wrong} problem{'s' * (wrong != 1)}")
        # weight decay, which changes least, comes last
        kinds = sorted(counts, key=lambda kind: (kind.startswith(DECAY), -counts[kind]))
        lines += [f"  {counts[kind]} x {kind}" for kind in kinds]
        if any(FUSED in kind for kind in kinds):
            lines.append(
                "ngopt.BlockwiseOptimizer runs an optimizer on each matrix in a "
                "parameter."
            )
        return lines


def audit(
    optimizer: Any, model: nn.Module, example_input: Any = None, splits: bool = False
) -> Audit:
    """Whether an optimizer has the right parameters of a model.

    Problems are: a hidden matrix without the optimizer of matrices that others have;
    an embedding or a vector with one that orthogonalizes; a parameter of several
    matrices that is orthogonalized as one; a parameter that no optimizer has, or more
    than one; weight decay of norms and biases; a parameter that is not of the model.
    Optimizers of matrices are known by names of classes (Muon, Dion, SOAP, Shampoo) and
    by "use_muon", "use_fallback" and "algorithm" of groups.

    Args:
        optimizer: Of any library; a list, dict, container or wrapper of optimizers.
        model, example_input: As for `build_graph`.
        splits: Whether optimizers find several matrices in a parameter by themselves.

    Raises:
        TypeError: If `model` is no module.
        ValueError: As `build_graph`, and if there is no optimizer.

    Examples:
        >>> print(ngopt.audit([muon, adamw], model, example_input))
    """
    check_module("audit", model)
    optimizers = flat_optimizers(optimizer)
    treated = treatments(optimizers)
    has_matrix_method = any(map(is_of_matrices, optimizers))
    graph = build_graph(model, example_input)
    roles = roles_of(graph)
    stacks = matrices_of_graph(graph, roles)
    named = dict(model.named_parameters())
    parameters = []
    for role in roles:
        p = named[role.name]
        if not p.requires_grad:
            continue
        kind, of_it = kind_of(role, p), treated.pop(id(p), [])
        count = sum(stack.shape[0] for stack in stacks[role.name])
        problems = _problems(kind, count, of_it, has_matrix_method, splits)
        first = of_it[0] if of_it else None
        parameters.append(
            AuditedParameter(
                role.name,
                tuple(p.shape),
                kind,
                count,
                first and first.optimizer,
                first and first.group,
                tuple(problems),
            )
        )
    frozen = {id(p) for p in named.values() if not p.requires_grad}
    strangers = [x[0].optimizer for key, x in treated.items() if key not in frozen]
    notes = () if has_matrix_method else (NO_MATRIX_METHOD,)
    return Audit(tuple(parameters), _strange(strangers), notes)


def _problems(
    kind: str,
    count: int,
    of_it: Sequence[Treatment],
    has_matrix_method: bool,
    splits: bool,
) -> list[str]:
    if not of_it:
        return ["no optimizer has it"]
    problems = []
    if len(of_it) > 1:
        names = " and ".join(sorted({x.optimizer for x in of_it}))
        problems.append(f"it is {len(of_it)} times in optimizers: {names}")
    for treatment in of_it:
        name, method = treatment.optimizer, treatment.method
        if kind in HIDDEN and method == "elementwise" and has_matrix_method:
            problems.append(f"a hidden matrix, with an elementwise update of {name}")
        if method == "orthogonalizing":
            if kind == "embedding":
                problems.append(f"an embedding, orthogonalized by {name}")
            elif not count and not treatment.is_vector_safe:
                problems.append(f"no matrix, orthogonalized by {name}")
            elif count > 1 and not splits:
                problems.append(f"{count} {FUSED} by {name}")
        if kind in ("norm", "bias") and treatment.weight_decay:
            problems.append(f"{DECAY} of {treatment.weight_decay:g} on a {kind}")
    return list(dict.fromkeys(problems))


def _strange(optimizers: Sequence[str]) -> tuple[str, ...]:
    """Problems with parameters that the model does not have; optimizers: of each."""
    return tuple(
        f"{name} has {_counted(n)} that the model has not: it was made for another "
        "model, or before parameters were replaced"
        for name, n in Counter(optimizers).items()
    )


def _counted(n: int) -> str:
    return f"{n} parameter{'s' * (n != 1)}"
