"""The order of a network's parameters from several lists of names, such as those of
param groups."""

import re
from collections.abc import Sequence
from math import floor


def merged_order(lists: Sequence[Sequence[str]]) -> list[str]:
    """All names, in the order in which one module would list them.

    A module lists its own parameters before those of its children, and all of one child
    before the next. Each list is in the order of the network. Names that share no list,
    such as those of a convolution without bias and of its norm, are sorted by the
    numbers in them (`conv1`, `bn1`, `conv2`), then by the order of the lists.
    """
    if len(lists) == 1:
        return list(lists[0])
    top_level = [[name for name in names if "." not in name] for names in lists]
    children: list[list[str]] = []
    inside: dict[str, list[list[str]]] = {}  # child -> lists of names in it
    for names in lists:
        here: dict[str, list[str]] = {}
        for name in names:
            child, dot, rest = name.partition(".")
            if dot:
                here.setdefault(child, []).append(rest)
        children.append(list(here))
        for child, inner in here.items():
            inside.setdefault(child, []).append(inner)
    order = _merged(top_level)
    for child in _merged(children):
        for name in merged_order(inside[child]):
            order.append(f"{child}.{name}")
    return order


def _merged(lists: Sequence[Sequence[str]]) -> list[str]:
    """One order of all labels that agrees with every list, as far as possible."""
    keys: dict[str, tuple[float, int]] = {}
    before: dict[str, set[str]] = {}
    for labels in lists:
        number = -1.0
        for i, label in enumerate(labels):
            digits = re.findall(r"\d+", label)
            # labels without a number come after those with the number before them
            number = float(digits[-1]) if digits else floor(number) + 0.5
            keys.setdefault(label, (number, len(keys)))
            before.setdefault(label, set()).update(labels[max(i - 1, 0) : i])
    order: list[str] = []
    while before:
        ready = [label for label, others in before.items() if not others]
        label = min(ready or before, key=keys.__getitem__)
        del before[label]
        for others in before.values():
            others.discard(label)
        order.append(label)
    return order
