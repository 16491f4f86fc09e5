"""Matrices of one layout, of one parameter or of several: one set of calls for all."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from ngopt.base.basis import first_basis, renewed_basis
from ngopt.base.direction import kept_dtype
from ngopt.base.layout import MatrixLayout
from ngopt.base.modes import Mode
from ngopt.functional import Record


class Stack:
    """Where the matrices are: in which parameters of a batch, and under which keys of their records.

    members: number of a parameter in its batch, and of the layout among the parameter's own. Those
    of several members are further groups: (members * groups, rows, kernel, channels).
    """

    def __init__(
        self,
        layout: MatrixLayout,
        members: Sequence[tuple[int, int]],
        device: torch.device,
    ):
        self.layout, self.modes = layout, layout.modes
        self.groups, *rest = layout.shape
        self.shape = (len(members) * self.groups, *rest)
        self.owners = [owner for owner, _ in members]
        owners = [owner for owner in self.owners for _ in range(self.groups)]
        self._group_owners = torch.tensor(owners, device=device)
        self.is_single = len(members) == 1
        self.second_keys = [f"exp_avg_sq_{number}" for _, number in members]
        self.factor_keys = [[f"{mode.name}_{n}" for _, n in members] for mode in self.modes]
        self.basis_keys = [[f"{mode.name}_basis_{n}" for _, n in members] for mode in self.modes]

    def join(self, values: Sequence[Tensor], axis: int = 0) -> Tensor:
        """One tensor of each member -> all of them."""
        return values[0] if self.is_single else torch.cat(list(values), axis)

    def split(self, joined: Tensor) -> Sequence[Tensor]:
        """The inverse of `join`."""
        return (joined,) if self.is_single else joined.chunk(len(self.owners))

    def of_groups(self, numbers: Tensor) -> Tensor:
        """Numbers of all parameters of the batch (n,) -> of the groups; () as it is."""
        if not numbers.dim():
            return numbers
        return numbers.index_select(0, self._group_owners)

    def read(self, flat: Sequence[Tensor]) -> Tensor:
        """Flat values (2, numel) of all parameters of the batch -> matrices, first ones and second ones.

        (2 * members * groups, rows, kernel, channels).
        """
        found = self.join([self.layout.read(flat[owner]) for owner in self.owners], 1)
        return found.flatten(0, 1)


class StackStep:
    """One step of a stack.

    members: of each the parameter's record, how many gradients it had before this one, and whether
    bases are renewed, after they were used. weight: of what is new in the factors, for all
    parameters of the batch, (n,) or (); 0 where the step is left out.
    """

    def __init__(
        self,
        stack: Stack,
        members: Sequence[tuple[Record, int, bool]],
        weight: Tensor,
    ):
        self.stack = stack
        self.records = [record for record, _, _ in members]
        self.steps = [step for _, step, _ in members]
        self.due = [i for i, (_, step, is_due) in enumerate(members) if is_due and step > 0]
        self.weight = stack.of_groups(weight)
        self.factors = [self._joined(keys, weight.dtype) for keys in stack.factor_keys]
        self.bases = [self._joined(keys, weight.dtype) for keys in stack.basis_keys]

    def _joined(self, keys: Sequence[str], dtype: torch.dtype) -> Tensor:
        rows = zip(self.records, keys, strict=True)
        return _cast(self.stack.join([record[key] for record, key in rows]), dtype)

    def observe(self, grads: Iterable[Tensor]) -> None:
        """Puts the gradient, in pieces of the layout's shape, into the factors."""
        modes = self.stack.modes
        found: list[Tensor] = []
        for grad in grads:
            own = [mode.factor(grad) for mode in modes]
            found = [a + b for a, b in zip(found, own, strict=True)] if found else own
        rows = zip(modes, self.factors, found, strict=True)
        self.factors = [old.lerp(new, _of_parts(self.weight, mode)) for mode, old, new in rows]
        if 0 in self.steps:
            self._begin()

    def rotated(self, values: Tensor) -> Tensor:
        """Matrices, once or several times as many, in the eigenbases."""
        times = values.shape[0] // self.stack.shape[0]
        for mode, basis in zip(self.stack.modes, self.bases, strict=True):
            values = mode.rotate(values, _repeated(basis, times))
        return values

    def rotated_back(self, values: Tensor) -> Tensor:
        """What `rotated` was given."""
        for mode, basis in zip(self.stack.modes, self.bases, strict=True):
            values = mode.rotate(values, basis.mT)
        return values

    def states(self, seconds: Sequence[Tensor]) -> list[Record]:
        """What each member keeps; bases that are due, one step nearer to the eigenvectors.

        seconds: new second moments of the members, (groups, rows, kernel, channels).
        """
        stack, seconds = self.stack, list(seconds)
        factors = [stack.split(factor) for factor in self.factors]
        bases = [list(stack.split(basis)) for basis in self.bases]
        for i in self.due:
            seconds[i] = self._renew(i, seconds[i], factors, bases)
        dtypes = [kept_dtype(mode, seconds[0].dtype) for mode in stack.modes]
        found = []
        for i, key in enumerate(stack.second_keys):
            record = {key: seconds[i]}
            for m, dtype in enumerate(dtypes):
                record[stack.factor_keys[m][i]] = _cast(factors[m][i], dtype)
                record[stack.basis_keys[m][i]] = _cast(bases[m][i], dtype)
            found.append(record)
        return found

    def _is_active(self) -> Tensor:
        """Of each group whether its step is not left out, (members * groups,)."""
        return (self.weight > 0).expand(self.stack.shape[0])

    def _begin(self) -> None:
        """Makes first bases: constants to autograd, as eigenvectors may have infinite derivatives."""
        is_first = [step == 0 for step in self.steps for _ in range(self.stack.groups)]
        is_active = self._is_active()
        due = is_active & torch.tensor(is_first, device=is_active.device)
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
            permuted = mode.permute(second, order)
            second = torch.where(is_active.view(-1, 1, 1, 1), permuted, second)
        return second


def _of_parts(groups: Tensor, mode: Mode) -> Tensor:
    """What groups have (n,) -> what meets their factors (n * parts, 1, 1); () as it is."""
    if not groups.dim():
        return groups
    return groups.repeat_interleave(mode.parts).view(-1, 1, 1)


def _repeated(basis: Tensor, times: int) -> Tensor:
    """Bases for several times as many matrices; a copy only where there is more than one."""
    if times == 1:
        return basis
    return basis.expand(times, *basis.shape).flatten(0, 1)


def _cast(values: Tensor, dtype: torch.dtype) -> Tensor:
    """Cheaper than `to` where nothing is to be done."""
    return values if values.dtype == dtype else values.to(dtype)
