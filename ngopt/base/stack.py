"""Matrices of one layout, of one parameter or of several: one set of calls for all."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from ngopt.base.basis import first_basis
from ngopt.base.flat import Flat, Number, concatenated
from ngopt.base.joined import Joined, replaced, times
from ngopt.base.layout import MatrixLayout
from ngopt.base.modes import Mode, factor_shape
from ngopt.base.renewal import by_part, renew, renewed
from ngopt.base.step import Shared, Turn
from ngopt.functional import Record


class Stack:
    """Where the matrices are: in which parameters of a batch,
    and under which keys of their records.

    members: number of a parameter in its batch, and of the layout among the parameter's own. Those
    of several members are further groups: (members * groups, rows, kernel, channels).
    """

    def __init__(
        self,
        layout: MatrixLayout,
        members: Sequence[tuple[int, int]],
        device: torch.device,
    ):
        self.layout, self.modes, self.members = layout, layout.modes, members
        self.groups, *rest = layout.shape
        self.shape = (len(members) * self.groups, *rest)
        self.owners = [owner for owner, _ in members]
        owners = [owner for owner in self.owners for _ in range(self.groups)]
        self.device, self._group_owners = (
            device,
            torch.tensor(owners, device=device),
        )
        self.factors = [self._joined(mode, "{}_{}") for mode in self.modes]
        self.bases = [self._joined(mode, "{}_basis_{}") for mode in self.modes]

    def _joined(self, mode: Mode, key: str) -> Joined:
        """Factors or bases of all members: (members * groups * parts, size, size)."""
        places = [
            (owner, key.format(mode.name, number))
            for owner, number in self.members
        ]
        shape = factor_shape(mode, self.groups)
        return Joined(places, Flat([shape] * len(places)), (-1, *shape[1:]))

    def of_groups(self, number: Number) -> Number:
        """Numbers of all parameters of the batch (n,) -> of the groups; one for all as it is."""
        if not isinstance(number, Tensor) or not number.dim():
            return number
        return number.index_select(0, self._group_owners)

    def read(self, flat: Sequence[Tensor]) -> Tensor:
        """Flat values (2, numel) of all parameters of the batch -> matrices,
        first ones and second ones.

        (2 * members * groups, rows, kernel, channels).
        """
        found = [self.layout.read(flat[owner]) for owner in self.owners]
        return concatenated(found, 1).flatten(0, 1)

    def split(self, joined: Tensor) -> Sequence[Tensor]:
        """What all members have -> what each has."""
        return (
            (joined,)
            if len(self.owners) == 1
            else joined.chunk(len(self.owners))
        )


class StackStep:
    """One step of a stack.

    factors, bases: of each mode, all members'. turns: of all parameters of the batch. numbers:
    theirs. in_place: factors and bases are written where they are.
    """

    def __init__(
        self,
        stack: Stack,
        factors: Sequence[Tensor],
        bases: Sequence[Tensor],
        turns: Sequence[Turn],
        numbers: Shared,
        in_place: bool,
    ):
        self.stack = stack
        self.factors = factors
        self.bases = bases
        self.in_place = in_place
        self.turns = [turns[owner] for owner in stack.owners]
        self.active = stack.of_groups(numbers.active)
        if numbers.recall is not None:
            recall = stack.of_groups(numbers.recall)
            rows = zip(stack.modes, factors, strict=True)
            self.factors = [
                times(old, _of_parts(recall, mode) ** 2, in_place)
                for mode, old in rows
            ]

    def observe(self, grads: Iterable[Tensor], decay: float) -> None:
        """Puts the gradient, in pieces of the layout's shape, into the factors,
        which decay first."""
        modes, kept = self.stack.modes, decay
        for grad in grads:
            rows = zip(self.factors, modes, strict=True)
            self.factors = [
                self._squared(old, mode, grad, kept, 1 - decay)
                for old, mode in rows
            ]
            kept = 1.0
        if any(turn.is_first for turn in self.turns):
            self._begin()

    def _squared(
        self, old: Tensor, mode: Mode, grad: Tensor, kept: float, weight: float
    ) -> Tensor:
        """kept * old + weight * X X^T of the unfolded gradient;
        as it is where the step is left out."""
        x = mode.unfolded(grad)
        active = _of_parts(self.active, mode)
        if isinstance(active, Tensor):
            new = torch.baddbmm(old, x, x.mT, beta=kept, alpha=weight)
            return torch.where(active > 0, new, old)
        if not active:
            return old
        out = old if self.in_place else None
        return torch.baddbmm(old, x, x.mT, beta=kept, alpha=weight, out=out)

    def rotated(self, values: Tensor) -> Tensor:
        """Matrices, once or several times as many, in the eigenbases."""
        count = values.shape[0] // self.stack.shape[0]
        for mode, basis in zip(self.stack.modes, self.bases, strict=True):
            values = mode.rotate(values, _repeated(basis, count))
        return values

    def rotated_back(self, values: Tensor) -> Tensor:
        """What `rotated` was given."""
        for mode, basis in zip(self.stack.modes, self.bases, strict=True):
            values = mode.rotate(values, basis.mT)
        return values

    def renew(self, records: Sequence[Record]) -> None:
        """Takes those bases that are due, in new records, one step nearer to the eigenvectors."""
        due = [
            i for i, turn in enumerate(self.turns) if turn.is_due is not False
        ]
        if not due:
            return
        is_active = self.stack.split(self._is_active())
        for i in due:
            owner, number = self.stack.members[i]
            self._renew(
                records[owner], number, is_active[i], self.turns[i].is_due
            )

    def _is_active(self) -> Tensor:
        """Of each group whether its step is not left out, (members * groups,)."""
        return torch.as_tensor(
            self.active > 0, device=self.stack.device
        ).expand(self.stack.shape[0])

    def _begin(self) -> None:
        """Makes first bases: constants to autograd,
        as eigenvectors may have infinite derivatives."""
        is_active = self._is_active()
        is_first = [
            turn.is_first
            for turn in self.turns
            for _ in range(self.stack.groups)
        ]
        due = is_active & torch.tensor(is_first, device=is_active.device)
        rows = zip(self.stack.modes, self.factors, self.bases, strict=True)
        self.bases = [
            replaced(
                basis,
                torch.where(
                    by_part(due, mode), first_basis(factor.detach()), basis
                ),
                self.in_place,
            )
            for mode, factor, basis in rows
        ]

    def _renew(
        self,
        record: Record,
        number: int,
        is_active: Tensor,
        is_due: bool | Tensor,
    ) -> None:
        """Replaces a member's bases unless its step is left out;
        its second moments in their order."""
        second_key = f"exp_avg_sq_{number}"
        for mode in self.stack.modes:
            key = f"{mode.name}_basis_{number}"
            factor, basis, second = (
                record[k] for k in (f"{mode.name}_{number}", key, second_key)
            )
            if self.in_place:
                renew(mode, factor, basis, second, is_active, is_due)
            else:
                record[key], record[second_key] = renewed(
                    mode, factor, basis, second, is_active
                )


def _of_parts(number: Number, mode: Mode) -> Number:
    """What groups have -> what meets their factors; one for all as it is."""
    if not isinstance(number, Tensor) or not number.dim():
        return number
    return by_part(number, mode)


def _repeated(basis: Tensor, count: int) -> Tensor:
    """Bases for several times as many matrices; a copy only where there is more than one."""
    if count == 1:
        return basis
    return basis.expand(count, *basis.shape).flatten(0, 1)
