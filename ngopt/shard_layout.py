"""Which piece of every parameter each process stores, and DTensor helpers."""

import sys
from collections.abc import Iterable, Sequence
from math import prod
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, distributed
from torch.nn import Parameter

Ranks = list[int]


class Piece(NamedTuple):
    """A box of elements of a parameter, or the whole parameter."""

    offset: tuple[int, ...]
    shape: tuple[int, ...]

    @classmethod
    def full(cls, shape: tuple[int, ...]) -> "Piece":
        return cls((0,) * len(shape), shape)

    @property
    def numel(self) -> int:
        return prod(self.shape)

    def select(self, values: Tensor) -> Tensor:
        """The piece's elements of a parameter's values, as a view."""
        if values.shape == self.shape:
            return values
        for dim, (start, size) in enumerate(zip(*self, strict=True)):
            values = values.narrow(dim, start, size)
        return values

    def overlap(self, other: "Piece") -> "Piece":
        """The common elements; a piece without elements if there are none."""
        offset, shape = [], []
        for a, m, b, n in zip(*self, *other, strict=True):
            start, end = max(a, b), min(a + m, b + n)
            offset.append(start)
            shape.append(max(end - start, 0))
        return Piece(tuple(offset), tuple(shape))

    def within(self, other: "Piece") -> "Piece":
        """The same elements, relative to a piece that contains them."""
        pairs = zip(self.offset, other.offset, strict=True)
        return Piece(tuple(start - first for start, first in pairs), self.shape)

    def chunk(self, dim: int, index: int, chunks: int) -> "Piece":
        """One of the chunks that `torch.chunk` makes along a dimension."""
        length = -(-self.shape[dim] // chunks)
        start = min(index * length, self.shape[dim])
        offset = list(self.offset)
        shape = list(self.shape)
        offset[dim] += start
        shape[dim] = min(length, self.shape[dim] - start)
        return Piece(tuple(offset), tuple(shape))


class LocalParameter(NamedTuple):
    """A parameter as one process has it."""

    name: str
    shape: tuple[int, ...]  # of the whole parameter
    dtype: str
    piece: Piece  # that the process stores
    is_local_only: bool  # whether every process has a parameter of its own


def is_dtensor(x: Any) -> bool:
    """Whether a tensor is sharded over, or replicated on, the processes of a mesh."""
    if type(x) in (Tensor, Parameter):  # torch.compile can trace up to here
        return False
    # not imported: programs with DTensors have imported it
    tensors = sys.modules.get("torch.distributed.tensor")
    return tensors is not None and isinstance(x, tensors.DTensor)


def as_dtensor(
    part: Tensor, mesh: Any, placements: Sequence[Any], whole: Tensor
) -> Tensor:
    """A DTensor of this process' part, with the shape and strides of `whole`."""
    from torch.distributed.tensor import DTensor

    shape, stride = whole.shape, whole.stride()
    return DTensor.from_local(
        part.contiguous(), mesh, placements, run_check=False, shape=shape, stride=stride
    )


def real(x: Tensor) -> Tensor:
    """A view of complex numbers as pairs on a last axis; real tensors unchanged."""
    return torch.view_as_real(x) if x.is_complex() else x


def local(x: Any) -> Tensor:
    """The local part of a DTensor, which shares its memory; else the tensor."""
    return x.to_local() if is_dtensor(x) else x


def local_gradient(p: Any) -> Tensor | None:
    """The local part of a gradient, in the placements of its parameter."""
    grad = p.grad
    if not is_dtensor(grad):
        return grad
    if grad.placements != p.placements:
        grad = grad.redistribute(p.device_mesh, p.placements)
    grad = grad.to_local()
    # waits for an asynchronous collective
    return grad.wait() if hasattr(grad, "wait") else grad


def are_divided(params: Sequence[Any]) -> bool:
    """Whether any parameter is a DTensor."""
    return any(map(is_dtensor, params))


def local_piece(name: str, p: Any) -> Piece:
    """The piece of a parameter that this process stores.

    Raises ValueError if it is not a box of elements.
    """
    if not is_dtensor(p):
        return Piece.full(tuple(real(p).shape))
    from torch.distributed.tensor import Partial
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

    if p.is_complex() or any(isinstance(x, Partial) for x in p.placements):
        raise ValueError(
            f"NGOptimizer: '{name}': expected a DTensor of real numbers that is "
            f"sharded or replicated; got {p.dtype} with placements {p.placements}"
        )
    shape, offset = compute_local_shape_and_global_offset(
        p.shape, p.device_mesh, p.placements
    )
    if tuple(shape) != tuple(local(p).shape):
        raise ValueError(
            f"NGOptimizer: '{name}': expected a local part of shape {tuple(shape)}, by "
            f"the placements {p.placements}; got {tuple(local(p).shape)}"
        )
    if prod(shape) == 0:
        offset = (0,) * len(shape)
    return Piece(tuple(offset), tuple(shape))


def ranks_of(group: Any) -> Ranks | None:
    """The ranks of a process group, which, unlike the group, can be copied.

    None without a group, and after torch.distributed was shut down.
    """
    if group is None or isinstance(group, list):
        return group
    is_there = distributed.is_initialized()
    return distributed.get_process_group_ranks(group) if is_there else None


def mesh_ranks(
    params: Sequence[Any], group: Any
) -> tuple[Ranks, list[tuple[int, ...]]]:
    """All processes that have parts of the same parameters, by whatever meshes.

    group: of the processes, if no parameter is a DTensor.

    Returns ranks of the default group, sorted, as in the groups that torch makes; and
    the coordinates of each in the root of the first mesh.

    Raises ValueError if these are not the processes of `group`, where it is given.
    """
    meshes = list(dict.fromkeys(p.device_mesh for p in params if is_dtensor(p)))
    if not meshes:
        ranks = sorted(distributed.get_process_group_ranks(group))
        return ranks, [(i,) for i in range(len(ranks))]
    ranks = _connected(meshes)
    if group is not None:
        group_ranks = distributed.get_process_group_ranks(group)
        if sorted(group_ranks) != ranks:
            raise ValueError(
                "NGOptimizer: process_group: expected the ranks of the parameters' "
                f"mesh, {ranks}; got {group_ranks}. Leave process_group out."
            )
    root = _root(meshes[0]).mesh.numpy()
    coordinates = {int(rank): place for place, rank in np.ndenumerate(root)}
    return ranks, [coordinates.get(rank, ()) for rank in ranks]


def _connected(meshes: Iterable[Any]) -> Ranks:
    """Ranks that are connected to this one by meshes, also through others."""
    rows = [set(row) for mesh in meshes for row in _rows(mesh)]
    connected = {distributed.get_rank()}
    count = 0
    while len(connected) > count:
        count = len(connected)
        connected.update(*(row for row in rows if row & connected))
    return sorted(connected)


def _rows(mesh: Any) -> list[Ranks]:
    """Ranks of a mesh, and of those like it that other processes of its root have."""
    if hasattr(mesh, "_rank_map"):
        rows = mesh._layout.remap_to_tensor(mesh._rank_map)
        return rows.view(-1, mesh.mesh.numel()).tolist()
    # torch before 2.10: a mesh has some dimensions of its root
    root = _root(mesh)
    places = torch.isin(root.mesh, mesh.mesh).nonzero()
    dims = range(root.mesh.dim())
    used = [d for d in dims if places[:, d].unique().numel() > 1]
    rows = root.mesh.permute([d for d in dims if d not in used] + used)
    return rows.reshape(-1, mesh.mesh.numel()).tolist()


def _root(mesh: Any) -> Any:
    if hasattr(mesh, "_get_root_mesh"):
        return mesh._get_root_mesh()
    from torch.distributed.device_mesh import _mesh_resources

    return _mesh_resources.get_root_mesh(mesh)
