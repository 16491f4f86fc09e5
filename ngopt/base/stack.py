"""Matrices of one layout, of one parameter or of several: one set of calls for all."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from ngopt.base.basis import first_basis, renewed_basis
from ngopt.base.direction import StepNumbers, kept_dtype, normalised
from ngopt.base.layout import MatrixLayout
from ngopt.base.modes import Mode
from ngopt.functional import Record


class Stack:
    """Where the matrices are: in which parameters of a batch, and under which keys of their records.

    members: number of a parameter in its batch, and of the layout among the parameter's own. Those
    of several members are further groups: (members * groups, rows, kernel, channels).
    """

    def __init__(self, layout: MatrixLayout, members: Sequence[tuple[int, int]]):
        self.layout, self.modes, self.groups = layout, layout.modes, layout.shape[0]
        self.owners = [owner for owner, _ in members]
        self.is_single = len(members) == 1
        self.second_keys = [f"exp_avg_sq_{number}" for _, number in members]
        self.factor_keys = [[f"{mode.name}_{n}" for _, n in members] for mode in self.modes]
        self.basis_keys = [[f"{mode.name}_basis_{n}" for _, n in members] for mode in self.modes]

    def join(self, values: Sequence[Tensor]) -> Tensor:
        """One tensor of each member -> all of them."""
        return values[0] if self.is_single else torch.cat(list(values))

    def split(self, joined: Tensor) -> Sequence[Tensor]:
        """The inverse of `join`."""
        return (joined,) if self.is_single else joined.chunk(len(self.owners))

    def read(self, values: Sequence[Tensor]) -> Tensor:
        """Values of all parameters of the batch, in their shapes -> those of the matrices."""
        return self.join([self.layout.read(values[owner]) for owner in self.owners])

    def spread(self, numbers: Tensor) -> StepNumbers:
        """Numbers of all parameters (6, n) -> for matrices: () each, or (members * groups, 1, 1, 1)."""
        if self.is_single:
            return StepNumbers(*numbers[:, self.owners[0]].unbind())
        columns = numbers[:, self.owners].repeat_interleave(self.groups, 1)
        return StepNumbers(*columns[..., None, None, None].unbind())


class StackStep:
    """One step of a stack.

    members: of each the parameter's record, how many gradients it had before this one, and whether
    bases are renewed, after they were used. numbers: of `step_numbers`, of all parameters of the
    batch, (6, n), in the dtype of the state.
    """

    def __init__(self, stack: Stack, members: Sequence[tuple[Record, int, bool]], numbers: Tensor):
        self.stack, self.numbers = stack, stack.spread(numbers)
        self.records = [record for record, _, _ in members]
        self.steps = [step for _, step, _ in members]
        self.due = [i for i, (_, step, is_due) in enumerate(members) if is_due and step > 0]
        self.second = self._joined(stack.second_keys)
        self.factors = [self._joined(keys).to(self.second.dtype) for keys in stack.factor_keys]
        self.bases = [self._joined(keys).to(self.second.dtype) for keys in stack.basis_keys]

    def _joined(self, keys: Sequence[str]) -> Tensor:
        return self.stack.join([record[key] for record, key in zip(self.records, keys, strict=True)])

    def observe(self, grads: Iterable[Tensor]) -> None:
        """Puts the gradient, in pieces of the layout's shape, into the factors."""
        modes, weight = self.stack.modes, self.numbers.factor
        found: list[Tensor] = []
        for grad in grads:
            own = [mode.factor(grad) for mode in modes]
            found = [a + b for a, b in zip(found, own, strict=True)] if found else own
        rows = zip(modes, self.factors, found, strict=True)
        self.factors = [old.lerp(new, _of_parts(weight, mode)) for mode, old, new in rows]
        if 0 in self.steps:
            self._begin()

    def direction(self, grad: Tensor, ahead: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
        """Direction and new second moments: gradient, momentum and second moments, or a piece."""
        rotations = list(zip(self.stack.modes, self.bases, strict=True))
        pair = torch.stack((grad, ahead), 2)
        shape = pair.shape
        for mode, basis in rotations:
            pair = mode.rotate(pair, basis, shape)
        grad, ahead = pair.view(shape).unbind(2)
        value, second = normalised(ahead, grad, second, self.numbers[2:5])
        for mode, basis in rotations:
            value = mode.rotate(value, basis.mT, shape)
        return value.view(second.shape), second

    def states(self) -> list[Record]:
        """What each member keeps; bases that are due, one step nearer to the eigenvectors."""
        stack = self.stack
        seconds = list(stack.split(self.second))
        factors = [stack.split(factor) for factor in self.factors]
        bases = [list(stack.split(basis)) for basis in self.bases]
        for i in self.due:
            seconds[i] = self._renew(i, seconds[i], factors, bases)
        found = []
        for i, key in enumerate(stack.second_keys):
            record = {key: seconds[i]}
            for m, mode in enumerate(stack.modes):
                dtype = kept_dtype(mode, self.second.dtype)
                record[stack.factor_keys[m][i]] = factors[m][i].to(dtype)
                record[stack.basis_keys[m][i]] = bases[m][i].to(dtype)
            found.append(record)
        return found

    def _is_active(self) -> Tensor:
        """Of each group whether its step is not left out, (members * groups, 1, 1, 1)."""
        return (self.numbers.factor > 0).expand(len(self.second), 1, 1, 1)

    def _begin(self) -> None:
        """Makes first bases: constants to autograd, as eigenvectors may have infinite derivatives."""
        is_first = [step == 0 for step in self.steps for _ in range(self.stack.groups)]
        due = self._is_active() & torch.tensor(is_first, device=self.second.device).view(-1, 1, 1, 1)
        rows = zip(self.stack.modes, self.factors, self.bases, strict=True)
        self.bases = [
            torch.where(_of_parts(due, mode), first_basis(factor.detach()), basis) for mode, factor, basis in rows
        ]

    def _renew(
        self,
        i: int,
        second: Tensor,
        factors: Sequence[Sequence[Tensor]],
        bases: Sequence[list[Tensor]],
    ) -> Tensor:
        """Replaces a member's bases unless its step is left out; its second moments in their order."""
        is_active = self.stack.split(self._is_active())[i]
        for mode, some, own in zip(self.stack.modes, factors, bases, strict=True):
            basis, order = renewed_basis(some[i].detach(), own[i].detach())
            own[i] = torch.where(_of_parts(is_active, mode), basis, own[i])
            second = torch.where(is_active, mode.permute(second, order), second)
        return second


def _of_parts(groups: Tensor, mode: Mode) -> Tensor:
    """What meets values of groups (n, 1, 1, 1) -> what meets factors (n * parts, 1, 1); () as it is."""
    if not groups.dim():
        return groups
    return groups.view(-1, 1, 1).repeat_interleave(mode.parts, 0)
