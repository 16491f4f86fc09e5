"""What belongs to rows of nodes, however many rows there are."""

from collections.abc import Hashable
from typing import Any

from torch import Tensor

from ngopt.graph.tracing.nodes import Nodes


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
