"""Parameters as another optimizer has them: as they are, or as several matrices."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from ngopt.roles import MatrixStack
from ngopt.shard_layout import is_dtensor

State = Mapping[Any, Any]
"""Of one parameter of an optimizer."""


class LinkedParameter:
    """A parameter of the model, which another optimizer has as it is.

    Attributes:
        inner: what the other optimizer has.
    """

    def __init__(self, parameter: Tensor):
        self.inner = [parameter]

    def refresh(self) -> None:
        """Gives the inner parameters the values of the parameter."""

    def before_step(self) -> None:
        """Gives the inner parameters their values and gradients."""

    def after_step(self) -> None:
        """Gives the parameter the values of the inner ones."""

    def joined_state(self, states: Sequence[State]) -> State:
        """What is stored for the parameter. states: of the inner ones."""
        (state,) = states
        return state

    def inner_states(self, state: State) -> Sequence[State]:
        """The inverse of `joined_state`. Raises ValueError if `state` does not fit."""
        return [state]


class SplitParameter(LinkedParameter):
    """A parameter whose matrices another optimizer has in its place.

    They share memory with it where strides allow. Elsewhere, and if the parameter is a
    DTensor, their values are copied before and after each step.

    Attributes:
        inner: matrices (rows, columns), or stacks of them, (k, rows, columns).
    """

    def __init__(
        self,
        name: str,
        parameter: Tensor,
        stacks: Sequence[MatrixStack],
        keeps_stacks: bool,
    ):
        """keeps_stacks: whether inner parameters are stacks."""
        self._name = name
        self._parameter = parameter
        self._stacks = stacks
        self._keeps_stacks = keeps_stacks
        self.inner = [nn.Parameter(x) for x in self._matrices(parameter.detach())]

    def refresh(self) -> None:
        """Gives the inner parameters the values of the parameter, whose memory, type or
        device may be another since the last time."""
        values = self._matrices(self._parameter.detach())
        for matrix, value in zip(self.inner, values, strict=True):
            matrix.grad = None
            matrix.data = value

    def before_step(self) -> None:
        gradient = self._parameter.grad
        if gradient is None:
            for matrix in self.inner:
                matrix.grad = None
            return
        self.refresh()
        for matrix, part in zip(self.inner, self._matrices(gradient), strict=True):
            matrix.grad = part

    def after_step(self) -> None:
        p = self._parameter
        if p.grad is None:
            return
        for matrix in self.inner:
            matrix.grad = None
        if is_dtensor(p):
            whole = torch.empty(p.shape, dtype=p.dtype, device=p.device)
            self._write(whole)
            _scatter(whole, p)
        elif not all(_share_memory(matrix, p) for matrix in self.inner):
            self._write(p.detach())

    def joined_state(self, states: Sequence[State]) -> State:
        return dict(enumerate(states)) if any(states) else {}

    def inner_states(self, state: State) -> Sequence[State]:
        numbered = {str(key): value for key, value in state.items()}  # "0" in files
        keys = [str(i) for i in range(len(self.inner))]
        if numbered and set(numbered) != set(keys):
            raise ValueError(
                f"BlockwiseOptimizer: state of '{self._name}': expected one of "
                f"{len(self.inner)} matrices; got {len(state)} entries. Load it into "
                "an optimizer with the same `heads` and `takes_stacks`."
            )
        return [numbered.get(key, {}) for key in keys]

    def _matrices(self, tensor: Any) -> list[Tensor]:
        """Of a tensor of the parameter's shape; collective for a DTensor."""
        whole = tensor.full_tensor() if is_dtensor(tensor) else tensor
        stacks = [stack.read(whole) for stack in self._stacks]
        if self._keeps_stacks:
            return stacks
        return [matrix for stack in stacks for matrix in stack]

    def _write(self, whole: Tensor) -> None:
        """Copies the inner parameters into a tensor of the parameter's shape."""
        inner: Iterator[Tensor] = iter(self.inner)
        for stack in self._stacks:
            if self._keeps_stacks:
                stack.write(whole, next(inner))
            else:
                stack.write(whole, torch.stack(list(islice(inner, stack.shape[0]))))


def is_whole(parameter: Tensor, stacks: Sequence[MatrixStack]) -> bool:
    """Whether a parameter is one matrix, with rows and columns in their places, or has
    no matrices."""
    if not stacks:
        return True
    if len(stacks) > 1 or parameter.dim() != 2 or parameter.is_complex():
        return False
    places = torch.empty(parameter.shape, device="meta")
    matrix = stacks[0].read(places)[0]
    return (matrix.shape, matrix.stride()) == (places.shape, places.stride())


def _scatter(whole: Tensor, parameter: Any) -> None:
    """Copies values that all processes have into a DTensor."""
    from torch.distributed.tensor import DTensor, Replicate

    mesh = parameter.device_mesh
    everywhere = DTensor.from_local(whole, mesh, [Replicate()] * mesh.ndim)
    part = everywhere.redistribute(mesh, parameter.placements)
    parameter.to_local().copy_(part.to_local())


def _share_memory(matrix: Tensor, parameter: Tensor) -> bool:
    storages = matrix.untyped_storage(), parameter.untyped_storage()
    return storages[0].data_ptr() == storages[1].data_ptr()
