"""The arithmetic of a batch in buffers that stay from step to step.

Beside a small network a step is bound by the number of its calls, not by what they compute: here
every view is made once, and nothing is allocated.
"""

from __future__ import annotations

from collections.abc import Sequence
from operator import itemgetter

import torch
from torch import (
    Tensor,
    _foreach_add_,  # pyright: ignore[reportPrivateImportUsage]
    _foreach_copy_,  # pyright: ignore[reportPrivateImportUsage]
    _foreach_mul_,  # pyright: ignore[reportPrivateImportUsage]
)

from ngopt.base.config import DirectionConfig
from ngopt.base.direction import EXACT
from ngopt.base.flat import Flat, Number
from ngopt.base.layout import MatrixLayout
from ngopt.base.modes import Mode, Rows
from ngopt.base.step import Shared

Product = tuple[Tensor, Tensor, Tensor]
"""Where a product is put or added, and what is multiplied."""


def fits_a_room(layout: MatrixLayout) -> bool:
    """Whether it is one matrix, as its parameter has it, with one factor for each mode."""
    groups, _, kernel, _ = layout.shape
    is_whole = layout.view is None and groups == kernel == 1
    return is_whole and all(
        mode.parts == 1 and mode.size <= EXACT for mode in layout.modes
    )


class Room:
    """Buffers for parameters of one matrix each, and the products of which a step consists.

    A row of them holds the matrices, the plain parameters, and the matrices in their eigenbases:
    plain ones have none, and are the same place whether rotated or not. What the parameters share
    multiplies each part for itself: a call for all parts is sooner in the cache than one that
    spreads numbers over elements.

    layouts, held: of the matrices, with the factors and bases of their modes; factors are written
    where they are. flat: of matrices and plain parameters, in this order. rotated: of plain
    parameters and matrices in their eigenbases. like: has the dtype and the device.
    """

    def __init__(
        self,
        layouts: Sequence[MatrixLayout],
        held: Sequence[tuple[Sequence[Tensor], Sequence[Tensor]]],
        flat: Flat,
        rotated: Flat,
        like: Tensor,
    ):
        self.flat, self.rotated = flat, rotated
        sizes = flat.sizes[: len(layouts)]
        total = sum(flat.sizes)
        count = sum(sizes)
        whole = like.new_empty(2, count + total)
        between = like.new_empty(2, count)
        matrices = whole[:, :count]
        eigen = whole[:, total:]
        self.grad, self.ahead = whole[:, :total].unbind()
        self.value, self.leading = whole[:, count:].unbind()
        self.other = like.new_empty(total)
        self.parts, self._other_parts = map(flat.split, (self.grad, self.other))
        rows = zip(rotated.owners, rotated.split(self.value), strict=True)
        self._value_parts = [x for _, x in sorted(rows, key=itemgetter(0))]
        self._observed: list[Product] = []
        self._rotated: list[Product] = []
        self._rotated_back: list[Product] = []
        places = [x.split(sizes, 1) for x in (matrices, between, eigen)]
        back = [x[0].split(sizes) for x in (eigen, between, matrices)]
        rows = zip(layouts, held, *places, *back, strict=True)
        for layout, (factors, bases), *own_places in rows:
            shape = layout.shape[1], layout.shape[3]
            forth = [x.unflatten(-1, shape) for x in own_places[:3]]
            home = [x.view(1, *shape) for x in own_places[3:]]
            self._observed += _squares(layout.modes, factors, home[-1])
            self._rotated += _chain(layout.modes, bases, forth)
            self._rotated_back += _chain(
                layout.modes, [x.mT for x in bases], home
            )

    def direction(
        self,
        grads: Sequence[Tensor],
        momentum: Tensor,
        second: Tensor,
        numbers: Shared,
        config: DirectionConfig,
    ) -> Tensor:
        """As `Batch.directions`; valid until the next step.

        momentum, second: written where they are. numbers: of a step that is left out nowhere.
        """
        value, grad = self.value, self.grad
        _foreach_copy_(self.parts, list(grads))
        _scale(grad, self.parts, numbers.multiplier)
        momentum.lerp_(grad, numbers.momentum)
        torch.lerp(momentum, grad, config.ahead, out=self.ahead)
        for factor, x, y in self._observed:
            factor.baddbmm_(
                x, y, beta=config.beta_factor, alpha=1 - config.beta_factor
            )

        # few different operations, as each is some time in coming from memory
        _multiply(self._rotated)
        second.lerp_(value.mul_(value), numbers.second)
        torch.mul(second, self.rotated.spread(numbers.shrink), out=value)
        if isinstance(numbers.damping, Tensor):
            _foreach_add_(self._value_parts, numbers.damping.unbind())
        else:
            value.add_(numbers.damping)
        value.rsqrt_().mul_(self.leading)
        _multiply(self._rotated_back)
        sign = torch.sign(momentum, out=self.other)
        return grad.mul_(sign).mul_(sign)

    def delta(
        self, params: Sequence[Tensor], numbers: Shared, average: Tensor | None
    ) -> Tensor:
        """As `Batch.delta`, where the direction of this step is; valid until the next.

        average: of the weights, written where it is.
        """
        delta, weights = self.grad, self.other
        _scale(delta, self.parts, numbers.size)
        _foreach_copy_(self._other_parts, list(params))
        if isinstance(numbers.decay, Tensor):
            decays = numbers.decay.tolist()
            rows = zip(self.parts, self._other_parts, decays, strict=True)
            for part, weight, decay in rows:
                if decay:
                    part.add_(weight, alpha=-decay)
        else:
            delta.add_(weights, alpha=-numbers.decay)
        if average is not None:
            average.lerp_(weights.add_(delta), self.flat.spread(numbers.newest))
        return delta


def _squares(
    modes: Sequence[Mode], factors: Sequence[Tensor], x: Tensor
) -> list[Product]:
    """What is added to each mode's factor: X X^T of the unfolded values."""
    unfolded = [mode.unfolded(x) for mode in modes]
    return [
        (factor, own, own.mT)
        for factor, own in zip(factors, unfolded, strict=True)
    ]


def _chain(
    modes: Sequence[Mode], bases: Sequence[Tensor], places: Sequence[Tensor]
) -> list[Product]:
    """The way of values from the first place to the last,
    with each mode multiplied by its basis."""
    way = [*places[: len(modes)], places[-1]]
    found = []
    for mode, basis, x, out in zip(
        modes, bases, way[:-1], way[1:], strict=True
    ):
        basis = basis.expand(len(x), -1, -1)
        is_left = isinstance(mode, Rows)
        found.append((out, basis.mT, x) if is_left else (out, x, basis))
    return found


def _scale(whole: Tensor, parts: list[Tensor], factor: Number) -> None:
    """Multiplies a whole, or each of its parts by its own number."""
    if isinstance(factor, Tensor):
        _foreach_mul_(parts, factor.unbind())
    else:
        whole.mul_(factor)


def _multiply(products: Sequence[Product]) -> None:
    for out, x, y in products:
        torch.bmm(x, y, out=out)
