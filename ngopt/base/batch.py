"""Parameters that are updated together: one set of calls for many small ones."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Size, Tensor

from ngopt.base.direction import moved, normalised
from ngopt.base.flat import Flat
from ngopt.base.layout import MatrixLayout
from ngopt.base.stack import Stack, StackStep
from ngopt.base.step import Shared
from ngopt.functional import Record

# Parameters of so many numbers are updated together, up to as many as stay in a cache.
TOGETHER, IN_CACHE = 1 << 16, 1 << 18
# Numbers of a long matrix that are worked on at once; 16 MB in float32.
CHUNK = 1 << 22


class Task(NamedTuple):
    """One parameter in one step.

    step: gradients before this one. is_due: whether its bases are renewed, after they were used.
    """

    grad: Tensor
    record: Record
    step: int
    is_due: bool = False


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
        self.layouts, self.flat = layouts, Flat(shapes, device)
        every = [layout for some in layouts for layout in some]
        self.is_long = len(every) == 1 and every[0].is_long(CHUNK)
        self.plain = [i for i, some in enumerate(layouts) if is_plain(some) and not self.is_long]
        self.rest = sum(self.flat.sizes[i] for i in self.plain)
        self.stacks = _stacks(layouts[: len(layouts) - len(self.plain)], device)

        # matrices as they follow each other in the eigenbases
        places = [(i, stack.layout) for stack in self.stacks for i in stack.owners]
        places += [(i, layouts[i][0]) for i in self.plain]
        shapes = [Size(layout.shape) for _, layout in places]
        self.matrices = Flat(shapes, device, [i for i, _ in places])
        self.lengths = [Size(stack.shape).numel() for stack in self.stacks]
        keys = [key for stack in self.stacks for key in stack.second_keys]
        self.second_keys = keys + ["exp_avg_sq_0"] * len(self.plain)

    def directions(
        self,
        tasks: Sequence[Task],
        numbers: Shared,
        ahead: float,
    ) -> tuple[Tensor, list[Record]]:
        """Directions of all, about 1 in size, in one tensor as `flat` has them; and the new states.

        numbers: of the n parameters, in the dtype of their states. ahead: weight of the gradient in
        Nesterov's momentum. What never had a gradient has direction 0.
        """
        steps = [StackStep(stack, [tasks[i][1:] for i in stack.owners], numbers.factor) for stack in self.stacks]
        if self.is_long:
            value, state = self._long_direction(tasks[0], steps[0], numbers, ahead)
            return value.view(-1), [state]
        flat = self.flat
        grad = flat.join([task.grad for task in tasks])
        grad = _scaled(grad, flat.spread(numbers.multiplier))
        old = flat.join([task.record["exp_avg"] for task in tasks])
        momentum = old.lerp(grad, flat.spread(numbers.momentum))
        pair = torch.stack((grad, momentum.lerp(grad, ahead)))

        grad, leading = self._rotated(pair, steps).unbind()
        matrices = self.matrices
        rows = zip(matrices.owners, self.second_keys, strict=True)
        second = matrices.join([tasks[i].record[key] for i, key in rows])
        own = [matrices.spread(x) for x in (numbers.second, numbers.shrink, numbers.damping)]
        value, second = normalised(leading, grad, second, own)
        value = moved(self._rotated_back(value, steps), momentum)

        states: list[Record] = [{"exp_avg": own} for own in flat.split(momentum)]
        seconds = matrices.split(second)
        self._put(states, seconds, tasks, steps)
        return value, states

    def _rotated(self, pair: Tensor, steps: Sequence[StackStep]) -> Tensor:
        """Two values of the parameters (2, total) -> those of the matrices in their eigenbases.

        The first are gradients, which the factors see before.
        """
        if not steps:
            return pair
        own = pair.split_with_sizes(self.flat.sizes, 1)
        found = []
        for step in steps:
            values = step.stack.read(own)
            step.observe([values[: step.stack.shape[0]]])
            found.append(step.rotated(values).view(2, -1))
        if self.rest:
            found.append(pair[:, -self.rest :])
        return found[0] if len(found) == 1 else torch.cat(found, 1)

    def _rotated_back(self, values: Tensor, steps: Sequence[StackStep]) -> Tensor:
        """Values of the matrices in their eigenbases -> those of the parameters, (total,)."""
        if not steps:
            return values
        pieces = values.split_with_sizes([*self.lengths, self.rest])
        found: dict[int, Tensor] = {}
        for step, piece in zip(steps, pieces, strict=False):
            stack = step.stack
            own = step.rotated_back(piece.view(stack.shape))
            for i, part in zip(stack.owners, stack.split(own), strict=True):
                if stack.layout.view is not None and i not in found:
                    found[i] = values.new_empty(self.flat.sizes[i])
                found[i] = stack.layout.write(found.get(i), part)
        ordered = [found[i] for i in range(len(found))]
        if self.rest:
            ordered.append(pieces[-1])
        return ordered[0] if len(ordered) == 1 else torch.cat(ordered)

    def _put(
        self,
        states: Sequence[Record],
        seconds: Sequence[Tensor],
        tasks: Sequence[Task],
        steps: Sequence[StackStep],
    ) -> None:
        """Second moments, factors and bases into new states."""
        start = 0
        for step in steps:
            owners = step.stack.owners
            own = step.states(seconds[start : start + len(owners)])
            start += len(owners)
            for i, state in zip(owners, own, strict=True):
                states[i].update(state)
        for i, second in zip(self.plain, seconds[start:], strict=True):
            states[i]["exp_avg_sq_0"] = second

    def _long_direction(
        self,
        task: Task,
        step: StackStep,
        numbers: Shared,
        ahead: float,
    ) -> tuple[Tensor, Record]:
        """In pieces along an axis that nothing joins, so that little is in memory at once."""
        (layout,), exp_avg = self.layouts[0], task.record["exp_avg"]
        second = task.record[self.second_keys[0]]
        multiplier, momentum_weight, *own = numbers[:5]
        step.observe(_scaled_pieces(layout, task.grad, multiplier))
        results = [_contiguous_like(x) for x in (exp_avg, exp_avg, second)]
        values = (exp_avg, second, *results)
        pieces = [layout.pieces(x, CHUNK) for x in values]
        grads = _scaled_pieces(layout, task.grad, multiplier)
        for grad, old, older, *outs in zip(grads, *pieces, strict=True):
            momentum = old.lerp(grad, momentum_weight)
            leading = step.rotated(momentum.lerp(grad, ahead).contiguous())
            found, newer = normalised(leading, step.rotated(grad), older, own)
            found = moved(step.rotated_back(found), momentum)
            for out, new in zip(outs, (found, momentum, newer), strict=True):
                out.copy_(new)
        value, momentum, second = results
        (state,) = step.states([second])
        return value, {"exp_avg": momentum} | state


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
    return [(some, Batch([shapes[i] for i in some], [layouts[i] for i in some], kinds[some[0]][1])) for some in found]


def is_plain(layouts: Sequence[MatrixLayout]) -> bool:
    """Whether a parameter is one row of numbers, each for itself."""
    return len(layouts) == 1 and not layouts[0].modes and layouts[0].view is None


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


def _scaled(grad: Tensor, multiplier: Tensor) -> Tensor:
    """A gradient in the scale of its parameter; zeros where the step is left out."""
    return grad.to(multiplier.dtype).nan_to_num(0.0, 0.0, 0.0) * multiplier


def _scaled_pieces(layout: MatrixLayout, grad: Tensor, multiplier: Tensor) -> Iterable[Tensor]:
    pieces = layout.pieces(grad, CHUNK)
    return (_scaled(piece, multiplier).contiguous() for piece in pieces)


def _contiguous_like(values: Tensor) -> Tensor:
    return torch.empty_like(values, memory_format=torch.contiguous_format)
