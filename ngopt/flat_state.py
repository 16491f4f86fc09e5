"""State and features of a small network's parameters as a few tensors, for steps in place.

What the records hold are views of them: a step takes as many calls for all parameters as for one,
and allocates next to nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Size, Tensor

from ngopt.base.flat import Flat
from ngopt.base.joined import Held, Joined
from ngopt.features import DECAYS, LARGEST, MOMENTA, preprocess_in_place
from ngopt.functional import Record


class FlatState:
    """Of parameters of these shapes, whose states have the dtype and the device of `like`.

    context: key of what the graph said of every element, (*shape, d) each, None if it says nothing.
    """

    def __init__(
        self,
        shapes: Sequence[Size],
        like: Tensor,
        context: str | None,
        d_context: int,
    ):
        self.flat = Flat(shapes)
        numbers = range(len(shapes))
        momenta = [(i, key) for key in MOMENTA for i in numbers]
        shape = len(MOMENTA), -1
        self._momenta = Held(
            [Joined(momenta, Flat([*shapes] * len(MOMENTA)), shape)]
        )
        self._steps = Held(
            [Joined([(i, "step") for i in numbers], Flat([()] * len(shapes)))]
        )
        self._weights = like.new_tensor([[1 - decay] for decay in DECAYS])
        self._context: Held | None = None
        if context is not None:
            own = Flat([(*shape, d_context) for shape in shapes])
            self._context = Held(
                [Joined([(i, context) for i in numbers], own, (-1, d_context))]
            )
        self._cut = like.new_empty(sum(self.flat.sizes))

    def move(
        self,
        params: Sequence[Tensor],
        grads: Sequence[Tensor],
        records: Sequence[Record],
        out: Tensor,
    ) -> None:
        """Counts a step and moves momenta, in the records; writes features, (14, n)."""
        (momenta,) = self._momenta.open(records, in_place=True)
        self._steps.open(records, in_place=True)[0].add_(1)
        columns = out.chunk(2)[0]
        self.flat.join(params, columns[0])
        gradient = self.flat.join(grads, columns[1])
        torch.clamp(gradient, -LARGEST, LARGEST, out=self._cut)
        momenta.lerp_(self._cut, self._weights)
        columns[2:] = momenta
        preprocess_in_place(out)

    def context(self, records: Sequence[Record]) -> Tensor | None:
        """What the graph said of all elements, (n, d); written to, it is written to the records."""
        return (
            None
            if self._context is None
            else self._context.open(records, in_place=True)[0]
        )
