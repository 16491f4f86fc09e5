"""Numbers of nodes while a network is traced, and which of them are unified."""

from enum import IntFlag

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


class Nodes:
    """Node numbers, from 1 and group after group, and which of them are the same node.

    Labels are int64 tensors of node numbers, 0 or less for no neuron.
    names, kinds: of the groups. starts: their first numbers, and the next free number.
    step: the number of the function that is being traced.
    """

    def __init__(self) -> None:
        self.names: list[str] = []
        self.kinds: list[str] = []
        self.starts = [0]
        self.step = 0
        self._facts = torch.empty(5, 1024, dtype=torch.long)  # grows by doubling
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
        self._identity[start:] = identity
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
        self._alias, self._group, self._step, self._identity, self._marks = facts

    def _identity_of(self, labels: Tensor) -> Tensor:
        """The identities of the nodes, -1 for free nodes."""
        identities = self._identity
        # unified nodes are free if all of them are
        identity = identities.scatter_reduce(0, self.find_each(), identities, "amax")
        return identity[self.find(labels)]

    def are_free(self, labels: Tensor) -> bool:
        """Whether all nodes can be unified: inputs of the network, and functions
        without weights of such."""
        return bool((self._identity_of(labels) < 0).all())

    def mark(self, labels: Tensor, mark: Mark) -> None:
        """Marks all nodes among labels."""
        self._marks[nodes_among(labels)] |= int(mark)

    def marked(self, mark: Mark) -> Tensor:
        """The nodes that have a mark, sorted."""
        return self.find((self._marks & int(mark)).nonzero().flatten()).unique()

    def find(self, labels: Tensor) -> Tensor:
        """The present number of each node, with the same strides of 0; may be the same
        tensor."""
        shape = labels.shape
        # labels of a batch have stride 0: each is looked up once
        (labels,) = without_repeats([labels])
        while True:
            further = lookup(labels, self._alias)
            if torch.equal(further, labels):
                return labels.expand(shape)
            labels = further

    def find_each(self) -> Tensor:
        """The present number (count,) of every node."""
        return self.find(torch.arange(self.count))

    def find_all(self, *labels: Tensor) -> list[Tensor]:
        """Present labels of tensors of one shape, of length 1 where all repeat."""
        return list(map(self.find, without_repeats(labels)))

    def unify(self, a: Tensor, b: Tensor) -> None:
        """Makes a[i] and b[i] the same node, for all i; the lower number stays."""
        a, b = a.flatten(), b.flatten()
        while True:
            a, b = self.find(a), self.find(b)
            differ = a != b
            if not differ.any():
                return
            a, b = a[differ], b[differ]
            # lower numbers are older, and no alias is higher than its node: chains end
            low, high = torch.minimum(a, b), torch.maximum(a, b)
            # a node of several pairs gets the lowest; the next round does the others
            self._alias.scatter_reduce_(0, high, low, "amin")

    def try_unify(self, rows: Tensor) -> bool:
        """Unifies the nodes of each column of rows (r, n), if possible.

        Returns False, and changes nothing, if that would unify nodes of one row or two
        targets of a weight. Neurons of different heads stay different, even if a norm
        has the same scale for all heads.
        """
        aliases = self._alias.clone()
        first = rows[0]
        before = self.find(first).unique()
        self.unify(first.expand_as(rows), rows)
        now = self.find(first).unique()
        present = self.find_each()
        is_fixed = torch.isin(present, now) & (self._identity >= 0)
        facts = torch.stack([present, self._step, self._identity])
        different = facts[:, is_fixed].unique(dim=1)
        # one node, one step, but two identities
        clash = different.shape[1] > different[:2].unique(dim=1).shape[1]
        # fewer: nodes of one row are unified, as by a row and the same row rolled
        if len(now) == len(before) and not clash:
            return True
        self._alias.copy_(aliases)
        return False

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
