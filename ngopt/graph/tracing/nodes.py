"""Numbers for neurons while a network is traced: groups of them, and which turn out to be the same."""

from __future__ import annotations

import torch
from torch import Tensor

from ngopt.graph.tracing.values import without_repeats


class Nodes:
    """Hands out node numbers, group after group, and keeps track of nodes that are one and the same.

    Labels are int64 tensors of node numbers; -1 stands for "no neuron" (constants, padding). `call` is
    the number of the function that is being traced.
    """

    def __init__(self) -> None:
        self.names: list[str] = []
        self.kinds: list[str] = []
        self.starts: list[int] = [0]
        self.call = 0
        self._facts = torch.empty(4, 1024, dtype=torch.long)  # grows by doubling
        # views of it; nodes of one call whose identities differ stay apart, -1: free
        self._alias, self._group, self._call, self._identity = self._facts[:, :0]

    @property
    def count(self) -> int:
        """How many nodes there are, those that turned out to be others among them."""
        return self.starts[-1]

    def new(
        self, name: str, size: int, kind: str = "neuron", made_of: Tensor | None = None
    ) -> Tensor:
        """Numbers of a new group of nodes, (size,).

        made_of: (k, size), the nodes which each is a function of without weights; what is made of
        nodes that may be unified may be as well, and so may all that is made of none (k = 0). By
        default nodes are the targets of a weight, which keeps each apart from the others.
        """
        start, capacity = self.starts[-1], self._facts.shape[1]
        if start + size > capacity:
            more = torch.empty(4, max(size, capacity), dtype=torch.long)
            self._facts = torch.cat([self._facts, more], dim=1)
        numbers = torch.arange(start, start + size)
        identity = numbers if made_of is None else self._identities(numbers, made_of)
        self.names.append(name)
        self.kinds.append(kind)
        self.starts.append(start + size)
        self._alias, self._group, self._call, self._identity = facts = self._facts[
            :, : start + size
        ]
        for row, values in zip(
            facts, (numbers, len(self.names) - 1, self.call, identity), strict=True
        ):
            row[start:] = values
        return numbers

    def _identities(self, numbers: Tensor, made_of: Tensor) -> Tensor:
        """One of the new numbers for all that are made of the same, -1 where nothing of it is kept apart."""
        if not made_of.numel():
            return torch.full_like(numbers, -1)
        parts = self._identity_of(made_of)
        which = parts.unique(dim=1, return_inverse=True)[1]
        first = torch.full_like(numbers, torch.iinfo(torch.long).max).scatter_reduce(
            0, which, numbers, "amin"
        )[which]
        return torch.where((parts < 0).all(0), -1, first)

    def _identity_of(self, labels: Tensor) -> Tensor:
        """The identities of the nodes that these stand for, -1 where nothing keeps them apart from others."""
        found = self.find(torch.arange(len(self._identity)))
        return self._identity.scatter_reduce(0, found, self._identity, "amax")[self.find(labels)]

    def are_free(self, labels: Tensor) -> bool:
        """Whether no weight keeps these nodes apart: entries of the network's input, and what is made of such."""
        return bool((self._identity_of(labels) < 0).all())

    def find(self, labels: Tensor) -> Tensor:
        """The number that now stands for each node; may be the same tensor, and repeats (stride 0) as it does."""
        return _found(labels, self._alias)

    def find_all(self, *labels: Tensor) -> list[Tensor]:
        """Present labels of tensors of one shape, where all of them only repeat cut to length 1."""
        return [self.find(x) for x in without_repeats(labels)]

    def unify(self, a: Tensor, b: Tensor) -> None:
        """Makes a[i] and b[i] the same node, for all i; the older number stands for both."""
        a, b = a.flatten(), b.flatten()
        while True:
            a, b = self.find(a), self.find(b)
            differ = a != b
            if not differ.any():
                return
            low, high = torch.minimum(a, b)[differ], torch.maximum(a, b)[differ]
            self._alias.scatter_reduce_(0, high, low, "amin")

    def try_unify(self, rows: Tensor) -> bool:
        """Makes the columns of all rows (r, n) the same, if that keeps apart what is; returns whether it did.

        The nodes of a row are kept apart, and so are the targets of a weight: the neurons of different
        heads, say, are different neurons, even if a norm has the same scale for all heads.
        """
        kept = self._alias.clone()
        self.unify(rows[:1].expand_as(rows), rows)
        now = self.find(rows[0])
        fine = now.unique().numel() == _found(rows[0], kept).unique().numel() and not self._clash(
            now
        )
        if not fine:
            self._alias.copy_(kept)
        return fine

    def _clash(self, labels: Tensor) -> bool:
        """Whether one of the nodes now stands for several of one call that are to be kept apart."""
        found = self.find(torch.arange(len(self._alias)))
        members = torch.isin(found, labels) & (self._identity >= 0)
        places = torch.stack([found, self._call, self._identity])[:, members]
        return places.unique(dim=1).shape[1] > places[:2].unique(dim=1).shape[1]

    def group_of(self, labels: Tensor) -> Tensor:
        """The group in which each node was made."""
        return self._group[labels]

    def compact(self) -> tuple[list[int], Tensor, Tensor]:
        """After all is known: sizes of the groups, and for every number ever given its group and place there."""
        numbers = torch.arange(len(self._alias))
        found = self.find(numbers)
        stands = found == numbers
        group = self.group_of(numbers)
        before = stands.long().cumsum(0) - stands.long()
        first = before[
            torch.tensor(self.starts[:-1], dtype=torch.long).clamp(max=max(len(numbers) - 1, 0))
        ]
        place = before - first[group]
        sizes = torch.zeros(len(self.names), dtype=torch.long).index_add(0, group, stands.long())
        return sizes.tolist(), group[found], place[found]


def _found(labels: Tensor, alias: Tensor) -> Tensor:
    """The numbers at the ends of the chains of aliases that begin at these labels."""
    if not len(alias):
        return labels
    shape = labels.shape
    (labels,) = without_repeats([labels])
    while True:
        further = torch.where(labels >= 0, alias[labels.clamp(min=0)], labels)
        if torch.equal(further, labels):
            return labels.expand(shape)
        labels = further
