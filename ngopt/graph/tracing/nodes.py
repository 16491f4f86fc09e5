"""Numbers for neurons while a network is traced: groups of them, and which turn out to be the same."""

from __future__ import annotations

import torch
from torch import Tensor


class Nodes:
    """Hands out node numbers, group after group, and keeps track of nodes that are one and the same.

    Labels are int64 tensors of node numbers; -1 stands for "no neuron" (constants, padding).
    """

    def __init__(self) -> None:
        self.names: list[str] = []
        self.kinds: list[str] = []
        self.starts: list[int] = [0]
        self._alias = torch.empty(0, dtype=torch.long)

    def new(self, name: str, size: int, kind: str = "neuron") -> Tensor:
        """Numbers of a new group of nodes, (size,)."""
        start = self.starts[-1]
        self.names.append(name)
        self.kinds.append(kind)
        self.starts.append(start + size)
        numbers = torch.arange(start, start + size)
        self._alias = torch.cat([self._alias, numbers])
        return numbers

    def find(self, labels: Tensor) -> Tensor:
        """The number that now stands for each node."""
        found = torch.where(labels >= 0, self._alias[labels.clamp(min=0)], labels)
        while True:
            further = torch.where(found >= 0, self._alias[found.clamp(min=0)], found)
            if torch.equal(further, found):
                return found
            found = further

    def unify(self, a: Tensor, b: Tensor) -> None:
        """Makes a[i] and b[i] the same node, for all i; the older number stands for both."""
        a, b = a.flatten(), b.flatten()
        while True:
            a, b = self.find(a), self.find(b)
            differ = a != b
            if not differ.any():
                return
            low, high = torch.minimum(a, b)[differ], torch.maximum(a, b)[differ]
            self._alias = self._alias.scatter_reduce(0, high, low, "amin")

    def can_unify(self, rows: Tensor) -> bool:
        """Whether making the columns of all rows (r, n) the same keeps the nodes of a row apart."""
        kept = self._alias.clone()
        self.unify(rows[:1].expand_as(rows), rows)
        now = self.find(rows[0])
        fine = now.unique().numel() == self.count(rows[0], kept)
        if not fine:
            self._alias = kept
        return fine

    def count(self, labels: Tensor, alias: Tensor) -> int:
        """Number of different nodes among labels, as they stood at an earlier time."""
        now, self._alias = self._alias, alias
        number = self.find(labels).unique().numel()
        self._alias = now
        return number

    def group_of(self, labels: Tensor) -> Tensor:
        """The group in which each node was made."""
        return torch.searchsorted(torch.tensor(self.starts), labels, right=True) - 1

    def compact(self) -> tuple[list[int], Tensor, Tensor]:
        """After all is known: sizes of the groups, and for every number ever given its group and place there."""
        numbers = torch.arange(len(self._alias))
        found = self.find(numbers)
        stands = found == numbers
        group = self.group_of(numbers)
        before = stands.long().cumsum(0) - stands.long()
        first = before[torch.tensor(self.starts[:-1], dtype=torch.long).clamp(max=max(len(numbers) - 1, 0))]
        place = before - first[group]
        sizes = torch.zeros(len(self.names), dtype=torch.long).index_add(0, group, stands.long())
        return sizes.tolist(), group[found], place[found]
