"""Numbers for neurons while a network is traced, and which turn out to be the same."""

from __future__ import annotations

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
    """What is known of a node beside its group.

    INPUT, OUTPUT: of the network. LEARNED: nothing leads to it, but it is no input.
    PINNED: something tells it apart from others of which no more is known.
    """

    NONE = 0
    INPUT = 1
    OUTPUT = 2
    LEARNED = 4
    PINNED = 8


class Nodes:
    """Hands out node numbers, from 1 and group after group, and knows which are one and
    the same.

    Labels are int64 tensors of node numbers; what is not positive stands for no neuron.
    names, kinds: of the groups. starts: their first nodes, and how many numbers were
    given.
    step: the number of the function that is being traced.
    """

    def __init__(self) -> None:
        self.names: list[str] = []
        self.kinds: list[str] = []
        self.starts = [0]
        self.step = 0
        self._facts = torch.empty(5, 1024, dtype=torch.long)  # grows by doubling
        self._make_room(0)
        self.new("none", 1)  # label 0 is no neuron, so numbers of neurons begin with 1

    @property
    def count(self) -> int:
        """How many numbers were given, those of nodes that turned out to be others
        among them."""
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

        made_of: (k, size), the nodes which each is a function of without weights; what
        is made of
            nodes that may be unified may be as well, and so may all that is made of
            none (k = 0). By default nodes are the targets of a weight, which keeps each
            apart from the others.
        """
        start = self.count
        stop = start + size
        numbers = torch.arange(start, stop)
        identity = numbers
        if made_of is not None:
            identity = self._identities(numbers, made_of)
        self._make_room(size)
        self._alias[start:] = numbers
        self._group[start:] = len(self.names)
        self._step[start:] = self.step
        self._identity[start:] = identity
        self._marks[start:] = int(mark)
        self.names.append(name)
        self.kinds.append(kind)
        self.starts.append(stop)
        return numbers

    def _make_room(self, size: int) -> None:
        """Makes what is known of nodes longer by so many."""
        capacity = self._facts.shape[1]
        length = self.count + size
        if length > capacity:
            wider = max(size, capacity)
            more = torch.empty(len(self._facts), wider, dtype=torch.long)
            self._facts = torch.cat([self._facts, more], dim=1)
        facts = self._facts[:, :length]
        # nodes of one step whose identities differ stay apart, -1: free
        self._alias, self._group, self._step, self._identity, self._marks = facts

    def _identities(self, numbers: Tensor, made_of: Tensor) -> Tensor:
        """One of the new numbers for all that are made of the same, -1 where that is
        free."""
        if not made_of.numel():
            return torch.full_like(numbers, -1)
        parts = self._identity_of(made_of)
        # one part that is kept apart is enough: a product with a free factor is not
        # free
        is_free = (parts < 0).all(0)
        different, which = parts.unique(dim=1, return_inverse=True)
        first = first_indices(which, different.shape[1])
        own = numbers[first[which]]
        return torch.where(is_free, -1, own)

    def _identity_of(self, labels: Tensor) -> Tensor:
        """The identities of the nodes that these stand for, -1 where nothing keeps them
        apart."""
        own = self._identity
        found = self.find_each()
        # of nodes that were unified one that is kept apart decides, as free ones have
        # -1
        identity = own.scatter_reduce(0, found, own, "amax")
        return identity[self.find(labels)]

    def are_free(self, labels: Tensor) -> bool:
        """Whether no weight keeps nodes apart: the network's inputs, and what is made
        of such."""
        identity = self._identity_of(labels)
        return bool((identity < 0).all())

    def mark(self, labels: Tensor, mark: Mark) -> None:
        """Marks all nodes among labels."""
        nodes = nodes_among(labels)
        self._marks[nodes] |= int(mark)

    def marked(self, mark: Mark) -> Tensor:
        """The nodes that have a mark, or any of several, sorted."""
        marks = self._marks & int(mark)
        numbers = marks.nonzero().flatten()
        return self.find(numbers).unique()

    def find(self, labels: Tensor) -> Tensor:
        """The number that now stands for each node.

        May be the same tensor, and repeats (stride 0) as it does.
        """
        return _found(labels, self._alias)

    def find_each(self) -> Tensor:
        """For every number the one that now stands for its node, (count,)."""
        numbers = torch.arange(self.count)
        return self.find(numbers)

    def find_all(self, *labels: Tensor) -> list[Tensor]:
        """Present labels of tensors of one shape, of length 1 where all of them only
        repeat."""
        return [self.find(x) for x in without_repeats(labels)]

    def unify(self, a: Tensor, b: Tensor) -> None:
        """Makes a[i] and b[i] the same node, for all i; the older number stands for
        both."""
        a, b = a.flatten(), b.flatten()
        while True:
            a = self.find(a)
            b = self.find(b)
            differ = a != b
            if not differ.any():
                return
            a, b = a[differ], b[differ]
            # lower numbers are older, and no alias is higher than its node: chains end
            low = torch.minimum(a, b)
            high = torch.maximum(a, b)
            # a node in several pairs takes the lowest; the next round unifies the
            # others with that
            self._alias.scatter_reduce_(0, high, low, "amin")

    def try_unify(self, rows: Tensor) -> bool:
        """Makes the columns of all rows (r, n) the same, if that keeps apart what is.

        Returns whether it did. The nodes of a row are kept apart, and so are the
        targets of a
        weight: the neurons of different heads, say, are different neurons, even if a
        norm has the same scale for all heads.
        """
        aliases = self._alias.clone()
        first = rows[0]
        before = self.find(first).unique()
        self.unify(first.expand_as(rows), rows)
        now = self.find(first).unique()
        # fewer: nodes of one row have become one, as a row and the same row rolled
        # would do
        if len(now) == len(before) and not self._clash(now):
            return True
        self._alias.copy_(aliases)
        return False

    def _clash(self, labels: Tensor) -> bool:
        """Whether a node now stands for several of one step that are to be kept apart."""
        found = self.find_each()
        identity = self._identity
        is_member = torch.isin(found, labels)
        kept_apart = is_member & (identity >= 0)
        facts = torch.stack([found, self._step, identity])
        different = facts[:, kept_apart].unique(dim=1)
        # one node, one step, but two identities
        steps = different[:2].unique(dim=1)
        return different.shape[1] > steps.shape[1]

    def group_of(self, labels: Tensor) -> Tensor:
        """The group in which each node was made."""
        return self._group[labels]

    def places(self) -> tuple[list[int], Tensor, Tensor]:
        """When all is known: sizes of groups, and for every number its group and place
        there."""
        found = self.find_each()
        stands = found == torch.arange(self.count)
        # how many nodes that stand for themselves have lower numbers
        before = stands.cumsum(0) - stands.long()
        # of an empty group at the end the start is no number
        last = self.count - 1
        starts = torch.tensor(self.starts[:-1]).clamp(max=last)
        before_group = before[starts]
        place = before - before_group[self._group]
        groups = self._group[stands]
        sizes = groups.bincount(minlength=len(self.names))
        return sizes.tolist(), self._group[found], place[found]


def _found(labels: Tensor, alias: Tensor) -> Tensor:
    """The numbers at the ends of the chains of aliases that begin at these labels."""
    shape = labels.shape
    # labels of a batch repeat (stride 0): each is looked up once
    (labels,) = without_repeats([labels])
    while True:
        further = lookup(labels, alias)
        if torch.equal(further, labels):
            return labels.expand(shape)
        labels = further
