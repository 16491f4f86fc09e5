"""Parameters that are updated together: one set of calls for many small ones."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Size, Tensor

from ngopt.base.config import DirectionConfig
from ngopt.base.direction import moved, normalised
from ngopt.base.flat import Flat, Number, concatenated
from ngopt.base.joined import Held, Joined, cast, times, towards
from ngopt.base.layout import MatrixLayout
from ngopt.base.room import Room, fits_a_room
from ngopt.base.stack import Stack, StackStep
from ngopt.base.step import Shared, Turn
from ngopt.functional import AVERAGE, Record

# Parameters of so many numbers are updated together, up to as many as stay in a cache.
TOGETHER, IN_CACHE = 1 << 16, 1 << 18
# Numbers of a long matrix that are worked on at once; 16 MB in float32.
CHUNK = 1 << 22


class Batch:
    """Parameters on one device whose states have one dtype.

    shapes, layouts: of the parameters, the plain ones (see `is_plain`) last.
    """

    def __init__(
        self,
        shapes: Sequence[Size],
        layouts: Sequence[Sequence[MatrixLayout]],
        device: torch.device,
    ):
        self.layouts, self.flat = layouts, Flat(shapes, device=device)
        every = [layout for some in layouts for layout in some]
        self.is_long = len(every) == 1 and every[0].is_long(CHUNK)
        plain = [
            i
            for i, some in enumerate(layouts)
            if is_plain(some) and not self.is_long
        ]
        self.rest = sum(self.flat.sizes[i] for i in plain)
        self.stacks = _stacks(layouts[: len(layouts) - len(plain)], device)
        self.lengths = [Size(stack.shape).numel() for stack in self.stacks]

        # as they follow each other in the eigenbases: the plain ones first, then matrices
        members = [(i, 0, layouts[i][0]) for i in plain]
        members += [
            (i, n, stack.layout)
            for stack in self.stacks
            for i, n in stack.members
        ]
        owners, numbers, own = zip(*members, strict=True)
        self.matrices = Flat([layout.shape for layout in own], owners, device)

        keys = [f"exp_avg_sq_{number}" for number in numbers]
        second = Joined(list(zip(owners, keys, strict=True)), self.matrices)
        momentum = Joined(
            [(i, "exp_avg") for i in range(len(shapes))], self.flat
        )
        kept = [
            joined
            for stack in self.stacks
            for joined in (*stack.factors, *stack.bases)
        ]
        self.held = Held([momentum, second, *kept])
        is_each_alone = all(len(stack.members) == 1 for stack in self.stacks)
        is_small = sum(self.flat.sizes) <= IN_CACHE
        self._is_roomy = (
            is_each_alone and is_small and all(map(fits_a_room, every))
        )
        # and what it was made for
        self._room: tuple[list[Tensor], Room] | None = None
        self.average = Held(
            [Joined([(i, AVERAGE) for i in range(len(shapes))], self.flat)]
        )

    def directions(
        self,
        grads: Sequence[Tensor],
        turns: Sequence[Turn],
        records: Sequence[Record],
        numbers: Shared,
        config: DirectionConfig,
        in_place: bool = False,
    ) -> Tensor:
        """Directions of all, about 1 in size, in one tensor as `flat` has them.

        records: new ones, where the new state is put; in place, those of the turns. numbers: of the
        n parameters, in the dtype of their states. What never had a gradient has direction 0.
        """
        old = [turn.record for turn in turns]
        opened = self.held.open(old, in_place)
        momentum, second, *kept = opened
        if in_place and self._has_room(turns, numbers):
            value = self._room_with(opened).direction(
                grads, momentum, second, numbers, config
            )
            if any(turn.is_due for turn in turns):
                _renew(self._begun(kept, turns, numbers, in_place), records)
            return value
        if numbers.recall is not None:
            momentum = times(
                momentum, self.flat.spread(numbers.recall), in_place
            )
            second = times(
                second, self.matrices.spread(numbers.recall) ** 2, in_place
            )
        steps = self._begun(
            [cast(x, second.dtype) for x in kept], turns, numbers, in_place
        )
        find = self._long_direction if self.is_long else self._all_directions
        value, momentum, second = find(
            grads, momentum, second, steps, numbers, config, in_place
        )
        new = [x for step in steps for x in (*step.factors, *step.bases)]
        new = [
            cast(x, before.dtype) for x, before in zip(new, kept, strict=True)
        ]
        self.held.close(records, [momentum, second, *new], in_place)
        _renew(steps, records)
        return value

    def delta(
        self,
        value: Tensor,
        params: Sequence[Tensor],
        turns: Sequence[Turn],
        records: Sequence[Record],
        numbers: Shared,
        in_place: bool = False,
    ) -> Tensor:
        """What is added to the parameters, written over their directions;
        puts averages of weights into new records."""
        flat, newest, average = self.flat, numbers.newest, None
        if newest is not None:
            (average,) = self.average.open(
                [turn.record for turn in turns], in_place
            )
        room = self._room_of(value)
        if room is not None:
            return room.delta(params, numbers, average)
        delta = value.mul_(flat.spread(numbers.size))
        has_decay = isinstance(numbers.decay, Tensor) or numbers.decay != 0
        if average is None and not has_decay:
            return delta
        weights = flat.join(params).to(delta.dtype)
        if isinstance(numbers.decay, Tensor):
            delta.addcmul_(weights, flat.spread(numbers.decay), value=-1)
        else:
            delta.add_(weights, alpha=-numbers.decay)
        if average is not None:
            new = towards(
                average, weights + delta, flat.spread(newest), in_place
            )
            self.average.close(records, [new], in_place)
        return delta

    def split(self, delta: Tensor) -> Sequence[Tensor]:
        """What belongs to all parameters, in their shapes."""
        room = self._room_of(delta)
        return self.flat.split(delta) if room is None else room.parts

    def _room_of(self, value: Tensor) -> Room | None:
        """The room where a direction was found."""
        room = None if self._room is None else self._room[1]
        return room if room is not None and value is room.grad else None

    def _has_room(self, turns: Sequence[Turn], numbers: Shared) -> bool:
        """Whether a step in place is like most: nothing is left out, corrected or compiled."""
        if torch.compiler.is_compiling() or not self._is_roomy:
            return False
        return (
            numbers.is_finite
            and numbers.recall is None
            and not any(turn.is_first for turn in turns)
        )

    def _room_with(self, opened: list[Tensor]) -> Room:
        """The room on what records hold; the one before, if they still do."""
        if self._room is None or self._room[0] is not opened:
            momentum, _, *kept = opened
            layouts = [some[0] for some in self.layouts if some[0].modes]
            room = Room(
                layouts, self._split(kept), self.flat, self.matrices, momentum
            )
            self._room = opened, room
        return self._room[1]

    def _split(
        self, kept: Sequence[Tensor]
    ) -> list[tuple[list[Tensor], list[Tensor]]]:
        """Factors and bases of one stack after the other -> those of each."""
        rest = iter(kept)
        return [
            (
                [next(rest) for _ in stack.modes],
                [next(rest) for _ in stack.modes],
            )
            for stack in self.stacks
        ]

    def _begun(
        self,
        kept: Sequence[Tensor],
        turns: Sequence[Turn],
        numbers: Shared,
        in_place: bool,
    ) -> list[StackStep]:
        """The steps of all stacks. kept: factors and bases of one stack after the other."""
        rows = zip(self.stacks, self._split(kept), strict=True)
        return [
            StackStep(stack, *own, turns, numbers, in_place)
            for stack, own in rows
        ]

    def _all_directions(
        self,
        grads: Sequence[Tensor],
        momentum: Tensor,
        second: Tensor,
        steps: Sequence[StackStep],
        numbers: Shared,
        config: DirectionConfig,
        in_place: bool,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Direction, momentum and second moments, flat."""
        flat = self.flat
        grad = _scaled(
            flat.join(grads),
            flat.spread(numbers.multiplier),
            numbers.is_finite,
            momentum.dtype,
        )
        momentum = towards(
            momentum, grad, flat.spread(numbers.momentum), in_place
        )
        pair = torch.stack((grad, momentum.lerp(grad, config.ahead)))
        grad, leading = self._rotated(pair, steps, config).unbind()
        second = towards(
            second,
            grad.square(),
            self.matrices.spread(numbers.second),
            in_place,
        )
        shrink = self.matrices.spread(numbers.shrink)
        damping = self.matrices.spread(numbers.damping)
        value = self._rotated_back(
            normalised(leading, second, shrink, damping), steps
        )
        return moved(value, momentum), momentum, second

    def _rotated(
        self, pair: Tensor, steps: Sequence[StackStep], config: DirectionConfig
    ) -> Tensor:
        """Two values of the parameters (2, total) -> those of the matrices in their eigenbases.

        The first are gradients, which the factors see before.
        """
        if not steps:
            return pair
        own = pair.split_with_sizes(self.flat.sizes, 1)
        found = [pair[:, -self.rest :]] if self.rest else []
        for step in steps:
            values = step.stack.read(own)
            step.observe([values[: step.stack.shape[0]]], config.beta_factor)
            found.append(step.rotated(values).view(2, -1))
        return concatenated(found, 1)

    def _rotated_back(
        self, values: Tensor, steps: Sequence[StackStep]
    ) -> Tensor:
        """Values of the matrices in their eigenbases -> those of the parameters, (total,)."""
        if not steps:
            return values
        plain, *pieces = values.split_with_sizes([self.rest, *self.lengths])
        found: dict[int, Tensor] = {}
        for step, piece in zip(steps, pieces, strict=True):
            stack = step.stack
            own = step.rotated_back(piece.view(stack.shape))
            for i, part in zip(stack.owners, stack.split(own), strict=True):
                if stack.layout.view is not None and i not in found:
                    found[i] = values.new_empty(self.flat.sizes[i])
                found[i] = stack.layout.write(found.get(i), part)
        ordered = [found[i] for i in range(len(found))]
        if self.rest:
            ordered.append(plain)
        return concatenated(ordered)

    def _long_direction(
        self,
        grads: Sequence[Tensor],
        momentum: Tensor,
        second: Tensor,
        steps: Sequence[StackStep],
        numbers: Shared,
        config: DirectionConfig,
        in_place: bool,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """`_all_directions` in pieces along an axis that nothing joins,
        so that little is in memory at once."""
        (grad,), (step,), (layout,) = grads, steps, self.layouts[0]

        def scaled() -> Iterator[Tensor]:
            for piece in layout.pieces(grad, CHUNK):
                yield _scaled(
                    piece, numbers.multiplier, numbers.is_finite, momentum.dtype
                ).contiguous()

        step.observe(scaled(), config.beta_factor)
        value = momentum.new_empty(momentum.shape)
        results = [
            value,
            *(
                x if in_place else torch.empty_like(x)
                for x in (momentum, second)
            ),
        ]
        pieces = [layout.pieces(x, CHUNK) for x in (momentum, second, *results)]
        for piece, old, older, *outs in zip(scaled(), *pieces, strict=True):
            new = towards(old, piece, numbers.momentum, in_place)
            leading = step.rotated(new.lerp(piece, config.ahead).contiguous())
            newer = towards(
                older, step.rotated(piece).square(), numbers.second, in_place
            )
            found = step.rotated_back(
                normalised(leading, newer, numbers.shrink, numbers.damping)
            )
            found = (
                (moved(found, new),)
                if in_place
                else (moved(found, new), new, newer)
            )
            for out, result in zip(outs, found, strict=False):
                out.copy_(result)
        value, momentum, second = results
        return value, momentum, second


def batches(
    shapes: Sequence[Size],
    layouts: Sequence[Sequence[MatrixLayout]],
    kinds: Sequence[tuple[torch.dtype, torch.device]],
) -> list[tuple[list[int], Batch]]:
    """Batches for parameters of these shapes, dtypes and devices, each with their positions."""
    found: list[list[int]] = []
    latest: dict[tuple, list[int]] = {}
    room: dict[tuple, int] = {}
    # the plain ones last, as a batch has them
    for i in sorted(range(len(shapes)), key=lambda i: is_plain(layouts[i])):
        size, kind = shapes[i].numel(), kinds[i]
        if size > TOGETHER:
            found.append([i])
            continue
        if size > room.get(kind, 0):
            latest[kind], room[kind] = [], IN_CACHE
            found.append(latest[kind])
        latest[kind].append(i)
        room[kind] -= size
    return [
        (
            some,
            Batch(
                [shapes[i] for i in some],
                [layouts[i] for i in some],
                kinds[some[0]][1],
            ),
        )
        for some in found
    ]


def is_plain(layouts: Sequence[MatrixLayout]) -> bool:
    """Whether a parameter is one row of numbers, each for itself."""
    return (
        len(layouts) == 1 and not layouts[0].modes and layouts[0].view is None
    )


def _stacks(
    layouts: Sequence[Sequence[MatrixLayout]],
    device: torch.device,
) -> list[Stack]:
    """The matrices of all parameters, those of one layout together."""
    found: dict[MatrixLayout, list[tuple[int, int]]] = {}
    for owner, some in enumerate(layouts):
        for number, layout in enumerate(some):
            found.setdefault(layout, []).append((owner, number))
    return [Stack(layout, members, device) for layout, members in found.items()]


def _renew(steps: Sequence[StackStep], records: Sequence[Record]) -> None:
    for step in steps:
        step.renew(records)


def _scaled(
    grad: Tensor, multiplier: Number, is_finite: bool, dtype: torch.dtype
) -> Tensor:
    """A gradient in the scale of its parameter; zeros where the step is left out."""
    grad = grad.to(dtype)
    return (grad if is_finite else grad.nan_to_num(0.0, 0.0, 0.0)) * multiplier
