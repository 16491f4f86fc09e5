"""The direction of descent: Adam in eigenbases of the Kronecker factors of every matrix."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ngopt.base.basis import first_basis, renewed_basis
from ngopt.base.layout import MatrixLayout, by_columns, by_rows, rotate, rotate_back
from ngopt.base.measure import TINY, Measured
from ngopt.functional import Record


@dataclass(frozen=True)
class DirectionConfig:
    """Numbers of the direction.

    beta1, beta2, beta_factor: decays of momentum, second moments and Kronecker factors.
    nesterov: how far to go from momentum, 0, to Nesterov's, 1.
    epsilon: damping, in root mean squares of a matrix's second moments.
    """

    beta1: float = 0.9
    beta2: float = 0.95
    beta_factor: float = 0.95
    nesterov: float = 1.0
    epsilon: float = 1e-4
    shrink: float = 0.0
    rowshrink: float = 0.0
    tenshrink: float = 0.0
    ns: int = 0


def init_direction(param: Tensor, layouts: Sequence[MatrixLayout], dtype: torch.dtype) -> Record:
    """The state before the first gradient.

    `exp_avg`: momentum, of the parameter's shape. For the matrices number i: `exp_avg_sq_i`, second
    moments in the eigenbases, (groups, rows, columns); for each side `left_i` or `right_i`, its
    factors, and `left_basis_i` or `right_basis_i`, their eigenvectors, (groups, parts, size, size).
    """
    like = {"dtype": dtype, "device": param.device}
    record = {"exp_avg": torch.zeros_like(param, dtype=dtype, requires_grad=False)}
    for i, layout in enumerate(layouts):
        record[f"exp_avg_sq_{i}"] = torch.zeros(layout.shape, **like)
        for name, side in layout.sides().items():
            shape = (layout.shape[0], side.parts, side.size, side.size)
            record[f"{name}_{i}"] = torch.zeros(shape, **like)
            record[f"{name}_basis_{i}"] = torch.eye(side.size, **like).expand(shape).contiguous()
    return record


def direction(
    grad: Tensor,
    record: Record,
    layouts: Sequence[MatrixLayout],
    measured: Measured,
    config: DirectionConfig,
    renew: bool,
) -> tuple[Tensor, Record]:
    """The direction for one parameter, about 1 in size, and the state after this gradient.

    renew: whether bases are renewed, after they were used. What never had a gradient has direction 0.
    """
    step = int(record["step"])
    momentum = record["exp_avg"]
    dtype = momentum.dtype
    active = measured.active.to(dtype)
    grad = torch.where(measured.active > 0, grad.to(dtype) * measured.multiplier.to(dtype), 0)
    momentum = momentum.lerp(grad, (1 - config.beta1) * active)
    ahead = momentum.lerp(grad, (1 - config.beta1) * config.nesterov)
    new = {"exp_avg": momentum}
    value = torch.empty_like(momentum, memory_format=torch.contiguous_format)
    for number, layout in enumerate(layouts):
        matrices = _Matrices(layout, number, record, step, config)
        found = matrices.direction(layout.read(grad), layout.read(ahead), active)
        value = layout.write(value, found)
        new |= matrices.renewed() if renew and step else matrices.state()
    value = value / (1 - config.beta1 ** (step + 1))
    return torch.where(momentum != 0, value, 0), new


class _Matrices:
    """The matrices of one layout during one step; what they keep is `key_number` of a record."""

    def __init__(
        self,
        layout: MatrixLayout,
        number: int,
        record: Record,
        step: int,
        config: DirectionConfig,
    ):
        self.layout, self.number, self.step, self.config = layout, number, step, config
        self.second = record[f"exp_avg_sq_{number}"]
        self.factors = {side: record[f"{side}_{number}"] for side in layout.sides()}
        self.bases = {side: record[f"{side}_basis_{number}"] for side in layout.sides()}

    def direction(self, grad: Tensor, ahead: Tensor, active: Tensor) -> Tensor:
        """grad, ahead: gradient and momentum, (groups, rows, columns), the shape of what is returned."""
        self._collect(grad, active)
        if self.step == 0:
            self.bases = {side: first_basis(factor) for side, factor in self.factors.items()}
        bases = self.bases.get("left"), self.bases.get("right")
        squares = rotate(grad, *bases, self.layout).square()
        self.second = self.second.lerp(squares, (1 - self.config.beta2) * active)
        second = self.second / (1 - self.config.beta2 ** (self.step + 1))
        damping = self.config.epsilon**2 * second.mean((1, 2), keepdim=True) + TINY
        value = rotate(ahead, *bases, self.layout) * (second + damping).rsqrt()
        if self.config.shrink:
            value = value * (value.abs() / (0.25 * (1 - self.config.beta1 ** (self.step + 1)))).pow(self.config.shrink).clamp(max=3)
        if self.config.tenshrink:
            value = value * (value.square().mean().sqrt() / (0.25 * (1 - self.config.beta1 ** (self.step + 1)))).pow(self.config.tenshrink).clamp(max=3)
        if self.config.ns and self.factors:
            from proto import zp
            value = zp(value, self.config.ns) * max(value.shape[1:]) ** .5
        return rotate_back(value, *bases, self.layout)

    def state(self) -> Record:
        found = {f"exp_avg_sq_{self.number}": self.second}
        for side, factor in self.factors.items():
            found[f"{side}_{self.number}"] = factor
            found[f"{side}_basis_{self.number}"] = self.bases[side]
        return found

    def renewed(self) -> Record:
        """The state with bases one step nearer to the eigenvectors of the factors."""
        for side, factor in self.factors.items():
            self.bases[side], order = renewed_basis(factor, self.bases[side])
            self.second = _permuted(self.second, order, side, self.layout)
        return self.state()

    def _collect(self, grad: Tensor, active: Tensor) -> None:
        """Takes a gradient into the factors."""
        weight = (1 - self.config.beta_factor) * active
        if "left" in self.factors:
            rows = by_rows(grad, self.layout)
            self.factors["left"] = self.factors["left"].lerp(rows @ rows.mT, weight)
        if "right" in self.factors:
            columns = by_columns(grad, self.layout)
            self.factors["right"] = self.factors["right"].lerp(columns.mT @ columns, weight)


def _permuted(second: Tensor, order: Tensor, side: str, layout: MatrixLayout) -> Tensor:
    """Second moments in the order of a renewed basis, (groups, parts, size)."""
    groups, rows, columns = layout.shape
    if side == "left":
        parts = by_rows(second, layout)
        return parts.gather(2, order.unsqueeze(-1).expand_as(parts)).view(layout.shape)
    parts = second.view(groups, rows, *order.shape[1:])
    return parts.gather(3, order.unsqueeze(1).expand_as(parts)).view(layout.shape)
