"""Elements of labelled networks that published rules give to Muon in another matrix.

    python -m tests.ngopt.roles.labelled.rules --output results/labelled_matrices.json

An element is wrong if it is of a hidden matrix, and the rule gives it to another
optimizer or in a matrix that is not labelled, whole or by head; or if it is of no
hidden matrix and the rule gives it to Muon. Output matrices are not counted, and a
transposed matrix is right.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from math import prod
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from benchmarks.records import Record, parser_of, table, write
from ngopt import build_graph
from ngopt.roles.from_graph import roles_of
from ngopt.roles.logical_matrices import matrices_of_graph
from tests.ngopt.roles.labelled.check import network
from tests.ngopt.roles.labelled.expand import (
    LABELS,
    Label,
    elements_of,
    labels_of,
    wrong_elements,
)

Matrices = Sequence[np.ndarray]
"""Numbers of elements, (rows, columns)."""
Rule = Callable[[str, np.ndarray, Label], Matrices]
"""(name, numbers of the elements, label) -> what Muon gets."""

TORCHTITAN = re.compile(
    r"(?:attention\.(?:wq|wq_a|wq_b|wkv_a|wkv_b|wo)\.weight"
    r"|experts\.(?:inner_experts\.)?w[123](?:_EFD|_EDF)?"
    r"|feed_forward\.w[123]\.weight|router\.gate\.weight"
    r"|shared_experts\.w[123]\.weight)$"
)
"""Names in torchtitan b5bcd76c, models/kimi_k2_7/config_registry.py."""
BY_HEAD = re.compile(r"attention\.(?:wq|wq_b|wkv_b)\.weight$")


def two_dimensions(name: str, numbers: np.ndarray, label: Label) -> Matrices:
    """K. Jordan's Muon on `ndim >= 2`: kernels are flattened, others are stacks."""
    if numbers.ndim < 2:
        return ()
    if numbers.ndim == 4:
        numbers = numbers.reshape(len(numbers), -1)
    return list(numbers.reshape(-1, *numbers.shape[-2:]))


def deepspeed(name: str, numbers: np.ndarray, label: Label) -> Matrices:
    """`set_optimizer_flags` of DeepSpeed edaa7221, and its Muon."""
    if any(keyword in name.lower() for keyword in ("embed", "lm_head")):
        return ()
    return two_dimensions(name, numbers, label)


def torchtitan(name: str, numbers: np.ndarray, label: Label) -> Matrices:
    if not TORCHTITAN.search(name):
        return ()
    if BY_HEAD.search(name):  # the number of heads is in its configuration
        heads = label["matrices"][0].get("sizes", {}).get("head", 1)
        return np.split(numbers, heads)
    return two_dimensions(name, numbers, label)


RULES: dict[str, Rule] = {
    "ndim >= 2": two_dimensions,
    "DeepSpeed": deepspeed,
    "torchtitan": torchtitan,
}


def wrong_counts(name: str) -> Record:
    """Elements of a network without output matrices, and those that rules get wrong."""
    model, example = network(name)
    shapes = {key: tuple(p.shape) for key, p in model.named_parameters()}
    labels = labels_of(name, shapes)
    graph = build_graph(model, example)
    roles = roles_of(graph)
    stacks = matrices_of_graph(graph, roles)
    hidden = {role.name for role in roles if role.role == "matrix"}

    def of_graph(key: str, numbers: np.ndarray, label: Label) -> Matrices:
        places = torch.from_numpy(numbers)
        chosen = stacks[key] if key in hidden else ()
        return [x.numpy() for stack in chosen for x in stack.read(places)]

    rules: Mapping[str, Rule] = {"graph": of_graph, **RULES}
    record: dict[str, Any] = {"network": name, "elements": 0, **dict.fromkeys(rules, 0)}
    for key, shape in shapes.items():
        label = labels[key]
        if label["role"] == "output":
            continue
        record["elements"] += prod(shape)
        numbers = np.arange(prod(shape)).reshape(shape)
        for rule, function in rules.items():
            got = function(key, numbers, label)
            record[rule] += _wrong(label, shape, got)
    return record


def _wrong(label: Label, shape: Sequence[int], got: Matrices) -> int:
    if label["role"] != "matrix":
        return sum(x.size for x in got)
    got = [*got, *(x.T for x in got)]
    wrong = [
        wrong_elements(elements_of(label, shape, heads_apart), got)
        for heads_apart in (False, True)
    ]
    return len(np.intersect1d(*wrong))


def main() -> None:
    parser = parser_of(__doc__)
    arguments = parser.parse_args()
    records = []
    for name in tqdm(sorted(path.stem for path in LABELS.glob("*.json"))):
        try:
            records.append(wrong_counts(name))
        except ImportError as error:
            print(f"{name}: skipped: {error}")
    print(table(records))
    write(arguments.output, networks=records)


if __name__ == "__main__":
    main()
