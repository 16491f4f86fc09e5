"""The direction of descent: Adam in eigenbases of the Kronecker factors of every matrix."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt

import torch
from torch import Tensor

from ngopt.base.basis import first_basis, renewed_basis
from ngopt.base.layout import MatrixLayout
from ngopt.base.measure import Measured
from ngopt.base.modes import Channels, rotate, rotate_back
from ngopt.functional import Record

# Numbers of a long table that are worked on at once; 16 MB in float32.
CHUNK = 1 << 22


@dataclass(frozen=True)
class DirectionConfig:
    """Numbers of the direction.

    beta1, beta2, beta_factor: decays of momentum, second moments and Kronecker factors.
    nesterov: how far to go from momentum, 0, to Nesterov's, 1.
    epsilon: damping, in root mean squares of the parameter's gradients.
    """

    beta1: float = 0.9
    beta2: float = 0.95
    beta_factor: float = 0.95
    nesterov: float = 1.0
    epsilon: float = 1e-4


def init_direction(param: Tensor, layouts: Sequence[MatrixLayout], dtype: torch.dtype) -> Record:
    """The state before the first gradient.

    `exp_avg`: momentum, of the parameter's shape. For the matrices number i: `exp_avg_sq_i`, second
    moments in the eigenbases, (groups, rows, kernel, channels); for each mode, such as "rows", its
    factors `rows_i` and their eigenvectors `rows_basis_i`.
    """
    like = {"dtype": dtype, "device": param.device}
    record = {"exp_avg": torch.zeros_like(param, dtype=dtype, requires_grad=False)}
    for i, layout in enumerate(layouts):
        record[f"exp_avg_sq_{i}"] = torch.zeros(layout.shape, **like)
        for mode in layout.modes:
            shape = mode.factor_shape(layout.shape[0])
            record[f"{mode.name}_{i}"] = torch.zeros(shape, **like)
            eye = torch.eye(mode.size, **like)
            record[f"{mode.name}_basis_{i}"] = eye.expand(shape).contiguous()
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
    old = record["exp_avg"]
    active = measured.active.to(old.dtype)
    grad = scaled(grad, measured, old.dtype)
    momentum = old.lerp(grad, (1 - config.beta1) * active)
    ahead = momentum.lerp(grad, (1 - config.beta1) * config.nesterov)
    new = {"exp_avg": momentum}
    value = torch.empty_like(momentum, memory_format=torch.contiguous_format)
    for number, layout in enumerate(layouts):
        matrices = _Matrices(layout, number, record, step, config)
        found = matrices.direction(layout.read(grad), layout.read(ahead), measured, active)
        value = layout.write(value, found)
        new |= matrices.renewed(active) if renew and step else matrices.state()
    return torch.where(momentum != 0, value, 0), new


def scaled(grad: Tensor, measured: Measured, dtype: torch.dtype) -> Tensor:
    """A gradient in the scale of its parameter; zeros if it is not finite."""
    finite = torch.where(measured.active > 0, grad.to(dtype), 0)
    return finite * measured.multiplier.to(dtype)


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
        self.factors = {mode.name: record[f"{mode.name}_{number}"] for mode in layout.modes}
        self.bases = {mode.name: record[f"{mode.name}_basis_{number}"] for mode in layout.modes}

    def direction(
        self, grad: Tensor, ahead: Tensor, measured: Measured, active: Tensor
    ) -> Tensor:
        """grad, ahead: gradient and momentum, of the layout's shape, as what is returned."""
        for mode in self.layout.modes:
            old = self.factors[mode.name]
            weight = (1 - self.config.beta_factor) * active
            self.factors[mode.name] = old.lerp(mode.factor(grad), weight)
        if self.step == 0:
            found = {name: first_basis(factor) for name, factor in self.factors.items()}
            self.bases = {k: torch.where(active > 0, q, self.bases[k]) for k, q in found.items()}
        pieces = _row_pieces(self.layout, grad, ahead, self.second)
        found = [self._piece(*piece, measured, active) for piece in pieces]
        if len(found) == 1:
            value, self.second = found[0]
            return value
        values, seconds = zip(*found, strict=True)
        self.second = torch.cat(seconds, 1)
        return torch.cat(values, 1)

    def _piece(
        self, grad: Tensor, ahead: Tensor, second: Tensor, measured: Measured, active: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Direction and second moments of some rows."""
        modes, beta2, step = self.layout.modes, self.config.beta2, self.step + 1
        squares = rotate(grad, modes, self.bases).square()
        second = second.lerp(squares, (1 - beta2) * active)
        # v / (1 - beta2^t), and m / (1 - beta1^t), with both corrections in one number
        correction = 1 - beta2**step
        damping = self.config.epsilon**2 * correction * measured.mean_square + torch.finfo().tiny
        root = (second + damping.to(second.dtype)).rsqrt()
        value = rotate_back(rotate(ahead, modes, self.bases) * root, modes, self.bases)
        return value * (sqrt(correction) / (1 - self.config.beta1**step)), second

    def state(self) -> Record:
        found = {f"exp_avg_sq_{self.number}": self.second}
        for name, factor in self.factors.items():
            found[f"{name}_{self.number}"] = factor
            found[f"{name}_basis_{self.number}"] = self.bases[name]
        return found

    def renewed(self, active: Tensor) -> Record:
        """The state with bases one step nearer to the eigenvectors of the factors, if active."""
        for mode in self.layout.modes:
            old = self.bases[mode.name]
            basis, order = renewed_basis(self.factors[mode.name], old)
            self.bases[mode.name] = torch.where(active > 0, basis, old)
            permuted = mode.permute(self.second, order)
            self.second = torch.where(active > 0, permuted, self.second)
        return self.state()


def _row_pieces(layout: MatrixLayout, *values: Tensor) -> list[tuple[Tensor, ...]]:
    """Values in pieces of rows, where the matrix is long and rows have no factor that joins them."""
    _, rows, kernel, channels = layout.shape
    if values[0].numel() <= CHUNK or not all(isinstance(mode, Channels) for mode in layout.modes):
        return [values]
    length = max(1, CHUNK // (kernel * channels))
    return list(zip(*(value.split(length, 1) for value in values), strict=True))
