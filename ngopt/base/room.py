"""The arithmetic of a batch in buffers that stay from step to step.

Beside a small network a step is bound by the number of its calls, not by what they compute: here
every view is made once, and nothing is allocated.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ngopt.base.config import DirectionConfig
from ngopt.base.direction import EXACT
from ngopt.base.flat import Flat
from ngopt.base.layout import MatrixLayout
from ngopt.base.modes import Mode, Rows
from ngopt.base.step import Shared

Product = tuple[Tensor, Tensor, Tensor]
"""Where a product is put or added, and what is multiplied."""


def fits_a_room(layout: MatrixLayout) -> bool:
    """Whether it is one matrix, as its parameter has it, with one factor for each mode."""
    groups, _, kernel, _ = layout.shape
    is_whole = layout.view is None and groups == kernel == 1
    return is_whole and all(mode.parts == 1 and mode.size <= EXACT for mode in layout.modes)


class Room:
    """Buffers for parameters of one matrix each, and the products of which a step consists.

    flat, layouts: of the parameters, the plain ones last. held: of each parameter the factors and
    bases of its modes; factors are written where they are. like: has the dtype and the device.
    """

    def __init__(
        self,
        flat: Flat,
        layouts: Sequence[MatrixLayout],
        held: Sequence[tuple[Sequence[Tensor], Sequence[Tensor]]],
        like: Tensor,
    ):
        self.flat = flat
        whole = like.new_empty(3, 2, sum(flat.sizes))
        self.pair, between, self.rotated = whole.unbind()
        self.grad, self.ahead = self.pair.unbind()
        self.rotated_pair = self.rotated.unbind()
        self.parts = flat.split(self.grad)
        self.value, unfinished = between.unbind()
        self._observed: list[Product] = []
        self._rotated: list[Product] = []
        self._rotated_back: list[Product] = []
        places = [x.split(flat.sizes, 1) for x in (self.pair, between, self.rotated)]
        back = [x.split(flat.sizes) for x in (self.value, unfinished, self.grad)]
        rows = zip(layouts, held, *places, *back, strict=True)
        for layout, (factors, bases), *own_places in rows:
            if not layout.modes:
                continue
            shape = layout.shape[1], layout.shape[3]
            forth = [x.unflatten(-1, shape) for x in own_places[:3]]
            home = [x.view(1, *shape) for x in own_places[3:]]
            self._observed += _squares(layout.modes, factors, home[-1])
            self._rotated += _chain(layout.modes, bases, forth)
            self._rotated_back += _chain(layout.modes, [x.mT for x in bases], home)
        matrices = [size for size, layout in zip(flat.sizes, layouts, strict=True) if layout.modes]
        start = sum(matrices)
        self._rest = self.rotated[:, start:], self.pair[:, start:]
        self._rest_back = self.grad[start:], self.value[start:]

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
        spread = self.flat.spread
        rotated, leading = self.rotated_pair
        grad, value = self.flat.join(grads, self.grad), self.value
        grad.mul_(spread(numbers.multiplier))
        momentum.lerp_(grad, numbers.momentum)
        torch.lerp(momentum, grad, config.ahead, out=self.ahead)
        for factor, x, y in self._observed:
            factor.baddbmm_(x, y, beta=config.beta_factor, alpha=1 - config.beta_factor)

        _multiply(self._rotated)
        _copy(*self._rest)
        second.lerp_(rotated.square_(), numbers.second)
        torch.mul(second, spread(numbers.shrink), out=value)
        value.add_(spread(numbers.damping)).rsqrt_().mul_(leading)
        _multiply(self._rotated_back)
        _copy(*self._rest_back)
        return grad.mul_(torch.sign(momentum, out=value).abs_())


def _squares(modes: Sequence[Mode], factors: Sequence[Tensor], x: Tensor) -> list[Product]:
    """What is added to each mode's factor: X X^T of the unfolded values."""
    unfolded = [mode.unfolded(x) for mode in modes]
    return [(factor, own, own.mT) for factor, own in zip(factors, unfolded, strict=True)]


def _chain(
    modes: Sequence[Mode], bases: Sequence[Tensor], places: Sequence[Tensor]
) -> list[Product]:
    """The way of values from the first place to the last,
    with each mode multiplied by its basis."""
    way = [*places[: len(modes)], places[-1]]
    found = []
    for mode, basis, x, out in zip(modes, bases, way[:-1], way[1:], strict=True):
        basis = basis.expand(len(x), -1, -1)
        is_left = isinstance(mode, Rows)
        found.append((out, basis.mT, x) if is_left else (out, x, basis))
    return found


def _copy(out: Tensor, x: Tensor) -> None:
    if len(x):
        out.copy_(x)


def _multiply(products: Sequence[Product]) -> None:
    for out, x, y in products:
        torch.bmm(x, y, out=out)
