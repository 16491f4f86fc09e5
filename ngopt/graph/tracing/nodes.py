"""Numbers of nodes while a network is traced, and which of them are unified; what is
known of rows of nodes."""

from collections.abc import Hashable
from enum import IntFlag
from typing import Any

import torch
from torch import Tensor

from ngopt.graph.tracing.values import (
    first_indices,
    lookup,
    nodes_among,
    without_repeats,
)


class Mark(IntFlag):
    """Properties of a node.

    INPUT, OUTPUT: of the network. LEARNED: no edge leads to it, but it is no input.
    PINNED: it cannot be exchanged with others, for a reason that is not in the graph.
    """

    NONE = 0
    INPUT = 1
    OUTPUT = 2
    LEARNED = 4
    PINNED = 8


def present_numbers(alias: Tensor, labels: Tensor) -> Tensor:
    """The ends of the chains of aliases of nodes, which become short."""
    present = labels
    links = 0
    while True:
        further = lookup(present, alias)
        if torch.equal(further, present):
            break
        present = further
        links += 1
    # loops unify one step after the other: each chain is followed once
    if links > 1:
        alias[labels.clamp(min=0)] = present.clamp(min=0)
    return present


def unify_numbers(alias: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """Gives a[i] and b[i] the same end of their chains; returns the other ends."""
    replaced = [a[:0]]
    while True:
        a, b = present_numbers(alias, a), present_numbers(alias, b)
        differ = a != b
        if not differ.any():
            return torch.cat(replaced)
        a, b = a[differ], b[differ]
        # lower numbers are older, and no alias is higher than its node: chains end
        low, high = torch.minimum(a, b), torch.maximum(a, b)
        # a node of several pairs gets the lowest; the next round does the others
        alias.scatter_reduce_(0, high, low, "amin")
        replaced.append(high)


class Nodes:
    """Node numbers, from 1 and group after group, and which of them are the same node.

    Labels are int64 tensors of node numbers, 0 or less for no neuron.
    names, kinds: of the groups. starts: their first numbers, and the next free number.
    step: the number of the function that is being traced.
    unified: the numbers that others stand for since, in this order.
    """

    def __init__(self) -> None:
        self.names: list[str] = []
        self.kinds: list[str] = []
        self.starts = [0]
        self.step = 0
        self.unified: list[Tensor] = []
        self._facts = torch.empty(6, 1024, dtype=torch.long)  # grows by doubling
        self._grow(0)
        self.new("none", 1)  # label 0 is no neuron, so numbers of neurons begin with 1

    @property
    def count(self) -> int:
        """How many numbers there are, also of unified nodes."""
        return self.starts[-1]

    def new(
        self,
        name: str,
        size: int,
        kind: str = "neuron",
        made_of: Tensor | None = None,
        mark: Mark = Mark.NONE,
    ) -> Tensor:
        """Numbers of a new group of nodes, (size,).

        made_of: (k, size), the operands of each node, if it is a function without
            weights. Nodes can be unified if all their operands can, or without
            operands (k = 0). By default nodes are the targets of a weight, which cannot
            be unified with each other.
        """
        start = self.count
        numbers = identity = torch.arange(start, start + size)
        if made_of is not None and not made_of.numel():
            identity = torch.full_like(numbers, -1)
        elif made_of is not None:
            operands = self._identity_of(made_of)
            # a product of a free factor and another one is not free
            is_free = (operands < 0).all(0)
            different, which = operands.unique(dim=1, return_inverse=True)
            # one of the new numbers for all nodes of the same operands
            first_number = numbers[first_indices(which, different.shape[1])[which]]
            identity = torch.where(is_free, -1, first_number)
        self._grow(size)
        self._alias[start:] = numbers
        self._group[start:] = len(self.names)
        self._step[start:] = self.step
        self._identity[start:] = self._highest[start:] = identity
        self._marks[start:] = int(mark)
        self.names.append(name)
        self.kinds.append(kind)
        self.starts.append(start + size)
        return numbers

    def _grow(self, size: int) -> None:
        capacity = self._facts.shape[1]
        length = self.count + size
        if length > capacity:
            shape = (len(self._facts), max(size, capacity))
            more = torch.empty(shape, dtype=torch.long)
            self._facts = torch.cat([self._facts, more], dim=1)
        facts = self._facts[:, :length]
        # nodes of one step with different identities are never unified; -1: free
        self._alias, self._group, self._step, self._identity, *of_present = facts
        # of present numbers: of all nodes that they stand for
        self._highest, self._marks = of_present

    def _identity_of(self, labels: Tensor) -> Tensor:
        """The highest identities of the nodes, -1 for free nodes."""
        # unified nodes are free if all of them are
        return self._highest[self.find(labels)]

    def are_free(self, labels: Tensor) -> Tensor:
        """Which nodes can be unified: inputs of the network, and functions without
        weights of such."""
        return self._identity_of(labels) < 0

    def mark(self, labels: Tensor, mark: Mark) -> None:
        self._marks[self.find(nodes_among(labels))] |= int(mark)

    def are_marked(self, labels: Tensor, mark: Mark) -> Tensor:
        """Which of the labels are nodes with a mark."""
        return (labels > 0) & ((self._marks[self.find(labels)] & int(mark)) > 0)

    def marked(self, mark: Mark) -> Tensor:
        """The nodes that have a mark, sorted."""
        return self.find((self._marks & int(mark)).nonzero().flatten()).unique()

    def find(self, labels: Tensor) -> Tensor:
        """The present number of each node, with the same strides of 0; may be the same
        tensor."""
        shape = labels.shape
        # labels of a batch have stride 0: each is looked up once
        (labels,) = without_repeats([labels])
        return present_numbers(self._alias, labels).expand(shape)

    def find_each(self) -> Tensor:
        """The present number (count,) of every node."""
        return self.find(torch.arange(self.count))

    def find_all(self, *labels: Tensor) -> list[Tensor]:
        """Present labels of tensors of one shape, of length 1 where all repeat."""
        return list(map(self.find, without_repeats(labels)))

    def unify(self, a: Tensor, b: Tensor) -> None:
        """Makes a[i] and b[i] the same node, for all i; the lower number stays."""
        replaced = unify_numbers(self._alias, a.flatten(), b.flatten())
        if not len(replaced):
            return
        self.unified.append(replaced)
        present = self.find(replaced)
        highest = self._highest[replaced]
        self._highest.scatter_reduce_(0, present, highest, "amax")
        for mark in Mark:
            is_marked = (self._marks[replaced] & int(mark)) > 0
            self._marks[present[is_marked]] |= int(mark)

    def try_unify(self, rows: Tensor) -> bool:
        """Unifies the nodes of each column of rows (r, n), if possible.

        Returns False, and changes nothing, if that would unify nodes of one row or two
        targets of a weight. Neurons of different heads stay different, even if a norm
        has the same scale for all heads.
        """
        # tried on the few nodes of the rows: all others stay
        nodes, which = self.find(rows).unique(return_inverse=True)
        alias = torch.arange(len(nodes))
        unify_numbers(alias, which[:1].expand_as(which).flatten(), which.flatten())
        together = present_numbers(alias, torch.arange(len(nodes)))
        first = which[0].unique()
        # fewer: nodes of one row are unified, as by a row and the same row rolled
        if len(together[first].unique()) < len(first):
            return False
        are_fixed = (nodes > 0) & ~self.are_free(nodes)
        meets_fixed = (together[are_fixed].bincount() > 1).any()
        if meets_fixed and self._would_clash(nodes, together):
            return False
        self.unify(rows[:1].expand_as(rows), rows)
        return True

    def _would_clash(self, nodes: Tensor, together: Tensor) -> bool:
        """Whether targets of one weight are among nodes of the same number."""
        number = torch.full((self.count,), -1)
        number[nodes.clamp(min=0)] = together
        number = number[self.find_each()]
        is_fixed = (number >= 0) & (self._identity >= 0)
        facts = torch.stack([number, self._step, self._identity])
        different = facts[:, is_fixed].unique(dim=1)
        # one node, one step, but two identities
        return different.shape[1] > different[:2].unique(dim=1).shape[1]

    def group_of(self, labels: Tensor) -> Tensor:
        """The group in which each node was made."""
        return self._group[labels]

    def places(self) -> tuple[list[int], Tensor, Tensor]:
        """At the end: the sizes of groups, and of every number its group and place."""
        present = self.find_each()
        stands = present == torch.arange(self.count)
        # how many present numbers are lower
        before = stands.cumsum(0) - stands.long()
        # an empty group at the end has no first number
        starts = torch.tensor(self.starts[:-1]).clamp(max=self.count - 1)
        place = before - before[starts][self._group]
        sizes = self._group[stands].bincount(minlength=len(self.names))
        return sizes.tolist(), self._group[present], place[present]


class KnownRows:
    """Values by rows of labels (n,), which are found by the present numbers of their
    nodes, in a time that does not depend on the number of rows.

    A loop of many steps would otherwise compare each of them with all before.
    """

    def __init__(self, nodes: Nodes):
        self._nodes = nodes
        self._known: dict[tuple, tuple[Tensor, Any]] = {}  # owner and nodes: row, value
        self._members: set[int] = set()
        self._read = 0  # of `nodes.unified`

    def get(self, owner: Hashable, row: Tensor) -> Any:
        """The value of a row, None without one."""
        self._update()
        _, value = self._known.get(self._key(owner, row), (None, None))
        return value

    def put(self, owner: Hashable, row: Tensor, value: Any) -> None:
        self._update()
        key = self._key(owner, row)
        self._known.setdefault(key, (row, value))
        self._members.update(key[1:])

    def _key(self, owner: Hashable, row: Tensor) -> tuple:
        return (owner, *self._nodes.find(row).tolist())

    def _update(self) -> None:
        """Finds all rows anew if some of their nodes were unified."""
        new = self._nodes.unified[self._read :]
        self._read += len(new)
        if all(self._members.isdisjoint(replaced.tolist()) for replaced in new):
            return
        old, self._known, self._members = self._known, {}, set()
        for (owner, *_), (row, value) in old.items():
            self.put(owner, row, value)
