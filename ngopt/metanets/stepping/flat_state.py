"""State and features of a small network's parameters as a few tensors, for steps in
place.

Records hold views of them. A step makes as many calls for all parameters as for one,
and allocates almost nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Size, Tensor

from ngopt.functional import Record
from ngopt.metanets.features import (
    LERP_WEIGHTS,
    MAX_GRADIENT,
    MOMENTA,
    STEP,
    preprocess_in_place,
)
from ngopt.packing import PackedState, Packing, scalar_packing


class FlatState:
    """State of parameters of these shapes, in the dtype and on the device of `like`.

    context: key of the stored context of a parameter, (*shape, d); None if none is
    stored.
    """

    def __init__(
        self,
        shapes: Sequence[Size],
        like: Tensor,
        context: str | None,
        d_context: int,
    ):
        numbers = range(len(shapes))
        momenta = [(i, key) for key in MOMENTA for i in numbers]
        count = len(MOMENTA)
        of_momenta = _flat(momenta, [*shapes] * count, (count, -1))
        of_steps = scalar_packing(len(shapes), [STEP], torch.device("cpu"))
        packings = [of_momenta, of_steps]
        if context is not None:
            own = [Size((*shape, d_context)) for shape in shapes]
            places = [(i, context) for i in numbers]
            packings.append(_flat(places, own, (-1, d_context)))
        self._state = PackedState(packings)
        self._lerp_weights = like.new_tensor(LERP_WEIGHTS).unsqueeze(1)
        numel = sum(shape.numel() for shape in shapes)
        self._clipped = like.new_empty(numel)

    def update(
        self,
        params: Sequence[Tensor],
        grads: Sequence[Tensor],
        records: Sequence[Record],
        out: Tensor,
    ) -> Tensor | None:
        """Updates steps and momenta, in the records; writes features to `out`, (14, n).

        Returns the stored context of all elements, (n, d), of which the records hold
        views; None if none is stored.
        """
        momenta, steps, *context = self._state.open(records, in_place=True)
        steps.add_(1)
        columns = out.chunk(2)[0]
        _concatenated(params, columns[0])
        gradient = _concatenated(grads, columns[1])
        torch.clamp(gradient, -MAX_GRADIENT, MAX_GRADIENT, out=self._clipped)
        momenta.lerp_(self._clipped, self._lerp_weights)
        columns[2:] = momenta
        preprocess_in_place(out)
        return context[0] if context else None


def _flat(
    places: Sequence[tuple[int, str]], shapes: Sequence[Size], shape: tuple[int, int]
) -> Packing:
    """Tensors of these shapes one after the other, as a tensor of another shape."""
    sizes = [own.numel() for own in shapes]

    def split(tensor: Tensor) -> list[Tensor]:
        pieces = tensor.reshape(-1).split(sizes)
        return [x.view(own) for x, own in zip(pieces, shapes, strict=True)]

    def join(values: Sequence[Tensor]) -> Tensor:
        return _concatenated(values).view(shape)

    return Packing(places, join, split)


def _concatenated(values: Sequence[Tensor], out: Tensor | None = None) -> Tensor:
    """All elements of some tensors, (n,)."""
    flat = [x.reshape(-1) for x in values]
    return torch.cat(flat, out=out)
