"""The order of a network's parameters from several lists of names, such as groups have."""

from __future__ import annotations

import re
from collections.abc import Sequence
from math import floor


def merged_order(lists: Sequence[Sequence[str]]) -> list[str]:
    """All names, in the order in which one module would name them.

    A module names its own parameters before those of its children, and all of one child
    before the next; within each list the order is the network's. Where this leaves a
    choice (a convolution without bias and its norm share no list), numbers decide,
    `conv1` and `bn1` before `conv2`; then the earlier list.
    """
    if len(lists) == 1:
        return list(lists[0])
    own = [[name for name in names if "." not in name] for names in lists]
    children: dict[str, list[list[str]]] = {}
    for k, names in enumerate(lists):
        for name in names:
            child, dot, rest = name.partition(".")
            if dot:
                children.setdefault(child, [[] for _ in lists])[k].append(rest)
    order = _merged(own)
    for child in _merged([_children(names) for names in lists]):
        inner = merged_order([names for names in children[child] if names])
        order += [f"{child}.{name}" for name in inner]
    return order


def _children(names: Sequence[str]) -> list[str]:
    """First parts of dotted names, each once."""
    return list(dict.fromkeys(name.partition(".")[0] for name in names if "." in name))


def _merged(lists: Sequence[Sequence[str]]) -> list[str]:
    """One order of all labels that respects every list, as far as they agree."""
    keys: dict[str, tuple[float, int]] = {}
    before: dict[str, set[str]] = {}
    for labels in lists:
        number = -1.0
        for i, label in enumerate(labels):
            digits = re.findall(r"\d+", label)
            # a label without a number comes behind those with the number before it
            number = float(digits[-1]) if digits else floor(number) + 0.5
            keys.setdefault(label, (number, len(keys)))
            before.setdefault(label, set()).update(labels[max(i - 1, 0) : i])
    order: list[str] = []
    while before:
        ready = [label for label, others in before.items() if not others] or list(
            before
        )
        label = min(ready, key=keys.__getitem__)
        del before[label]
        for others in before.values():
            others.discard(label)
        order.append(label)
    return order
