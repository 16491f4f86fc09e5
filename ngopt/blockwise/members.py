"""Parameters as another optimizer has them: as they are, or as several matrices."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ngopt.roles import MatrixStack
from ngopt.shard_layout import is_dtensor

State = Mapping[Any, Any]
"""Of one parameter of an optimizer."""


class WholeParameter:
    """A parameter that another optimizer has as it is.

    Attributes:
        pieces: what the other optimizer has.
    """

    def __init__(self, parameter: Tensor):
        self.pieces = [parameter]

    def before_step(self) -> None:
        """Gives the pieces their values and gradients."""

    def after_step(self) -> None:
        """Gives the parameter the values of the pieces."""

    def joined_state(self, states: Sequence[State]) -> State:
        """What is stored for a parameter. states: of its pieces."""
        (state,) = states
        return state

    def states_of_pieces(self, state: State) -> Sequence[State]:
        """The inverse of `joined_state`. Raises ValueError if `state` does not fit."""
        return [state]


class SplitParameter:
    """A parameter whose matrices are parameters of another optimizer.

    Pieces share memory with the parameter where strides allow; else, and if the
    parameter is a DTensor, they are copies of the whole for the time of a step.

    Attributes:
        pieces: matrices (rows, columns), or stacks of them, (k, rows, columns).
    """

    def __init__(
        self,
        name: str,
        parameter: Tensor,
        stacks: Sequence[MatrixStack],
        keeps_stacks: bool,
    ):
        """keeps_stacks: whether pieces are stacks."""
        self._name = name
        self._parameter = parameter
        self._stacks = stacks
        self._keeps_stacks = keeps_stacks
        values = self._matrices(parameter.detach())
        self.pieces = [nn.Parameter(x) for x in values]

    def before_step(self) -> None:
        """Gives the pieces their values and gradients."""
        p = self._parameter
        if p.grad is None:
            return
        # the memory of the parameter can be another since the last step
        values = self._matrices(p.detach())
        gradients = self._matrices(p.grad)
        for piece, value, gradient in zip(self.pieces, values, gradients, strict=True):
            piece.data = value
            piece.grad = gradient

    def after_step(self) -> None:
        """Gives the parameter the values of the pieces."""
        p = self._parameter
        if p.grad is None:
            return
        for piece in self.pieces:
            piece.grad = None
        if all(_share_memory(piece, p) for piece in self.pieces):
            return
        whole = _whole(p.detach())
        pieces = iter(self.pieces)
        for stack in self._stacks:
            k, *_ = stack.shape
            if self._keeps_stacks:
                matrices: Tensor = next(pieces)
            else:
                matrices = torch.stack([next(pieces) for _ in range(k)])
            stack.write(whole, matrices)
        if is_dtensor(p):
            _scatter(whole, p)

    def joined_state(self, states: Sequence[State]) -> State:
        """What is stored for a parameter. states: of its pieces."""
        return dict(enumerate(states)) if any(states) else {}

    def states_of_pieces(self, state: State) -> Sequence[State]:
        """The inverse of `joined_state`. Raises ValueError if `state` does not fit."""
        if state and set(state) != set(range(len(self.pieces))):
            raise ValueError(
                f"BlockwiseOptimizer: state of '{self._name}': expected one of "
                f"{len(self.pieces)} matrices; got {len(state)} entries. Load it into "
                "an optimizer with the same `heads` and `takes_stacks`."
            )
        return [state[i] for i in range(len(state))]

    def _matrices(self, tensor: Tensor) -> list[Tensor]:
        """Of a tensor of the parameter's shape, one for each piece."""
        whole = _whole(tensor)
        stacks = [stack.read(whole) for stack in self._stacks]
        if self._keeps_stacks:
            return stacks
        return [matrix for stack in stacks for matrix in stack]


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


def _whole(tensor: Any) -> Tensor:
    """All elements; collective for a DTensor."""
    return tensor.full_tensor() if is_dtensor(tensor) else tensor


def _scatter(whole: Tensor, parameter: Any) -> None:
    """Copies values that all processes have into a DTensor."""
    from torch.distributed.tensor import DTensor, Replicate

    mesh = parameter.device_mesh
    everywhere = DTensor.from_local(whole, mesh, [Replicate()] * mesh.ndim)
    part = everywhere.redistribute(mesh, parameter.placements)
    parameter.to_local().copy_(part.to_local())


def _share_memory(piece: Tensor, parameter: Tensor) -> bool:
    if is_dtensor(parameter):
        return False
    storages = piece.untyped_storage(), parameter.untyped_storage()
    return storages[0].data_ptr() == storages[1].data_ptr()
