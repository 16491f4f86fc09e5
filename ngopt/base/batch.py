"""Parameters that are updated together: one set of calls for many small ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Size, Tensor

from ngopt.base.direction import StepNumbers, moved, normalised
from ngopt.base.flat import Flat
from ngopt.base.layout import MatrixLayout
from ngopt.base.stack import Stack, StackStep
from ngopt.functional import Record

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
    """Parameters on one device whose states have one dtype, those with preconditioners first.

    shapes, layouts: of the parameters.
    """

    def __init__(self, shapes: Sequence[Size], layouts: Sequence[Sequence[MatrixLayout]], device: torch.device):
        self.layouts, self.flat = layouts, Flat(shapes, device)
        self.count = sum(map(has_modes, layouts))
        self.plain = Flat(shapes[self.count :], device)
        self.is_whole = [len(some) == 1 and some[0].view is None for some in layouts]
        self.is_long = len(layouts) == 1 and self.is_whole[0] and layouts[0][0].is_long(CHUNK)
        self.stacks = _stacks(layouts if self.is_long else layouts[: self.count])

    def directions(self, tasks: Sequence[Task], numbers: Tensor, ahead: float) -> tuple[Tensor, list[Record]]:
        """Directions of all, about 1 in size, in one tensor as `flat` has them; and the new states.

        numbers: of `step_numbers`, (6, n), in the dtype of the state. ahead: weight of the gradient
        in Nesterov's momentum. What never had a gradient has direction 0.
        """
        if self.is_long:
            value, state = self._long_direction(tasks[0], numbers, ahead)
            return value.view(-1), [state]
        multiplier, weight = self.flat.spread(numbers[:2]).unbind()
        grad = _scaled(self.flat.join([task.grad for task in tasks]), multiplier)
        momentum = self.flat.join([task.record["exp_avg"] for task in tasks]).lerp(grad, weight)
        leading = momentum.lerp(grad, ahead)
        states: list[Record] = [{"exp_avg": own} for own in self.flat.split(momentum)]
        values = self._in_eigenbases(tasks, numbers, grad, leading, states)
        if self.plain.shapes:
            values.append(self._plain(tasks, numbers, grad, leading, states))
        value = values[0] if len(values) == 1 else torch.cat(values)
        return moved(value, momentum), states

    def _in_eigenbases(
        self,
        tasks: Sequence[Task],
        numbers: Tensor,
        grad: Tensor,
        leading: Tensor,
        states: Sequence[Record],
    ) -> list[Tensor]:
        """Flat directions of the parameters with preconditioners; puts what is new into the states."""
        if not self.stacks:
            return []
        grads, leads = self.flat.split(grad), self.flat.split(leading)
        values = [
            lead if whole else torch.empty_like(lead)
            for lead, whole in zip(leads[: self.count], self.is_whole, strict=False)
        ]
        for stack in self.stacks:
            step = StackStep(stack, [tasks[owner][1:] for owner in stack.owners], numbers)
            own = stack.read(grads)
            step.observe([own])
            value, step.second = step.direction(own, stack.read(leads), step.second)
            found = zip(stack.owners, stack.split(value), step.states(), strict=True)
            for owner, part, state in found:
                values[owner] = stack.layout.write(values[owner], part)
                states[owner].update(state)
        return [value.reshape(-1) for value in values]

    def _plain(
        self,
        tasks: Sequence[Task],
        numbers: Tensor,
        grad: Tensor,
        leading: Tensor,
        states: Sequence[Record],
    ) -> Tensor:
        """Adam for all elements of norms, biases and scalars; puts second moments into the states."""
        start, key = sum(self.flat.sizes[: self.count]), "exp_avg_sq_0"
        old = [task.record[key] for task in tasks[self.count :]]
        own = self.plain.spread(numbers[2:5, self.count :]).unbind()
        value, second = normalised(leading[start:], grad[start:], self.plain.join(old), own)
        pieces = torch.split_with_sizes(second, self.plain.sizes)
        for state, piece, like in zip(states[self.count :], pieces, old, strict=True):
            state[key] = piece.view(like.shape)
        return value

    def _long_direction(self, task: Task, numbers: Tensor, ahead: float) -> tuple[Tensor, Record]:
        """In pieces along an axis that nothing joins, so that little is in memory at once."""
        (layout,), exp_avg = self.layouts[0], task.record["exp_avg"]
        (stack,) = self.stacks
        own = StepNumbers(*numbers[:, 0].unbind())
        step = StackStep(stack, [task[1:]], numbers)
        step.observe(_scaled(x, own.multiplier).contiguous() for x in layout.pieces(task.grad, CHUNK))
        results = [_contiguous_like(x) for x in (exp_avg, exp_avg, step.second)]
        values = (task.grad, exp_avg, step.second, *results)
        pieces = [layout.pieces(x, CHUNK) for x in values]
        for grad, old, second, *outs in zip(*pieces, strict=True):
            grad = _scaled(grad, own.multiplier).contiguous()
            momentum = old.lerp(grad, own.momentum)
            leading = momentum.lerp(grad, ahead).contiguous()
            found, second = step.direction(grad, leading, second)
            for out, new in zip(outs, (moved(found, momentum), momentum, second), strict=True):
                out.copy_(new)
        value, momentum, step.second = results
        (state,) = step.states()
        return value, {"exp_avg": momentum} | state


def has_modes(layouts: Sequence[MatrixLayout]) -> bool:
    """Whether a parameter has preconditioners."""
    return any(layout.modes for layout in layouts)


def _stacks(layouts: Sequence[Sequence[MatrixLayout]]) -> list[Stack]:
    """The matrices of all parameters, those of one layout together."""
    found: dict[MatrixLayout, list[tuple[int, int]]] = {}
    for owner, some in enumerate(layouts):
        for number, layout in enumerate(some):
            found.setdefault(layout, []).append((owner, number))
    return [Stack(layout, members) for layout, members in found.items()]


def _scaled(grad: Tensor, multiplier: Tensor) -> Tensor:
    """A gradient in the scale of its parameter; zeros where the step is left out."""
    return grad.to(multiplier.dtype).nan_to_num(0.0, 0.0, 0.0) * multiplier


def _contiguous_like(values: Tensor) -> Tensor:
    return torch.empty_like(values, memory_format=torch.contiguous_format)
