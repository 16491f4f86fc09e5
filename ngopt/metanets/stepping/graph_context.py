"""A look at the neural graph as one operator, which a compiled step holds whole.

What a metanet does there is made of many small products, which compiling does not make
faster, and whether it is done depends on the number of the step, which only the host
knows.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import count
from typing import Protocol
from weakref import WeakValueDictionary

import torch
from torch import Tensor


class Looker(Protocol):
    def look_if_due(
        self,
        said: Sequence[Tensor],
        columns: Sequence[Tensor],
        present: Sequence[int],
        steps: Sequence[Tensor],
    ) -> None:
        """Writes what the graph says of every parameter, (numel, d) each, if this step
        looks at it.

        columns: weight, gradient and momenta of one parameter after the other, those
        present.
        steps: of these, before this one.
        """
        ...


_numbers = count()
_lookers: WeakValueDictionary[int, Looker] = WeakValueDictionary()


def registered(looker: Looker) -> int:
    """A number by which `look_at_graph` finds it, as an operator takes no objects."""
    number = next(_numbers)
    _lookers[number] = looker
    return number


@torch.library.custom_op("ngopt::look_at_graph", mutates_args=("said",))
def look_at_graph(
    said: Sequence[Tensor],
    columns: Sequence[Tensor],
    present: Sequence[int],
    steps: Sequence[Tensor],
    looker: int,
) -> None:
    """`Looker.look_if_due` of one that is `registered`."""
    _lookers[looker].look_if_due(said, columns, present, steps)
