"""The direction of descent: Adam in eigenbases of the Kronecker factors of every matrix."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ngopt.base.basis import first_basis, renewed_basis
from ngopt.base.layout import MatrixLayout
from ngopt.base.measure import Measured
from ngopt.base.modes import Mode, Rotation
from ngopt.functional import Record

# Numbers of a long matrix that are worked on at once; 16 MB in float32.
CHUNK = 1 << 22
# Factors and bases of more rows are kept in bfloat16: what rounding adds is far below their noise.
EXACT = 512


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
    factors `rows_i` and their eigenvectors `rows_basis_i`, long ones in bfloat16.
    """
    device = param.device
    record = {"exp_avg": torch.zeros_like(param, dtype=dtype, requires_grad=False)}
    for i, layout in enumerate(layouts):
        record[f"exp_avg_sq_{i}"] = torch.zeros(layout.shape, dtype=dtype, device=device)
        for mode in layout.modes:
            like = {"dtype": _kept_dtype(mode, dtype), "device": device}
            shape = mode.factor_shape(layout.shape[0])
            record[f"{mode.name}_{i}"] = torch.zeros(shape, **like)
            eye = torch.eye(mode.size, **like)
            record[f"{mode.name}_basis_{i}"] = eye.expand(shape).contiguous()
    return record


def _kept_dtype(mode: Mode, dtype: torch.dtype) -> torch.dtype:
    """Of a mode's factors and bases."""
    is_exact = mode.size <= EXACT or dtype == torch.float64
    return dtype if is_exact else torch.bfloat16


def recalled(record: Record, layouts: Sequence[MatrixLayout], factor: Tensor) -> Record:
    """The state as if all gradients so far had been `factor`, (), times as large."""
    factor = factor.to(record["exp_avg"])
    new = record | {"exp_avg": record["exp_avg"] * factor}
    squares = [f"exp_avg_sq_{i}" for i in range(len(layouts))]
    squares += [f"{mode.name}_{i}" for i, layout in enumerate(layouts) for mode in layout.modes]
    square = factor.square()
    return new | {key: (record[key] * square).to(record[key].dtype) for key in squares}


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
    numbers = step_numbers(measured, step, config, record["exp_avg"].dtype)
    renew = renew and step > 0
    if len(layouts) == 1 and layouts[0].is_long(CHUNK):
        matrices = _Matrices(layouts[0], 0, record, step, numbers)
        return _long_direction(grad, record["exp_avg"], matrices, renew)
    grad = numbers.scaled(grad)
    momentum, ahead = numbers.momenta(record["exp_avg"], grad)
    new = {"exp_avg": momentum}
    value = momentum if _is_whole(layouts) else contiguous_like(momentum)
    for number, layout in enumerate(layouts):
        matrices = _Matrices(layout, number, record, step, numbers)
        own = layout.read(grad)
        matrices.observe([own])
        found, matrices.second = matrices.direction(own, layout.read(ahead), matrices.second)
        value = layout.write(value, found)
        new |= matrices.renewed() if renew else matrices.state()
    return moved(value, momentum), new


def _long_direction(grad: Tensor, exp_avg: Tensor, matrices: _Matrices, renew: bool) -> tuple[Tensor, Record]:
    """`direction` in pieces along an axis that nothing joins, so that little is in memory at once."""
    numbers, layout = matrices.numbers, matrices.layout
    matrices.observe(numbers.scaled(x).contiguous() for x in layout.pieces(grad, CHUNK))
    results = [contiguous_like(x) for x in (exp_avg, exp_avg, matrices.second)]
    values = (grad, exp_avg, matrices.second, *results)
    pieces = [layout.pieces(x, CHUNK) for x in values]
    for piece, old, second, *outs in zip(*pieces, strict=True):
        own = numbers.scaled(piece).contiguous()
        momentum, ahead = numbers.momenta(old, own)
        found, second = matrices.direction(own, ahead.contiguous(), second)
        for out, new in zip(outs, (moved(found, momentum), momentum, second), strict=True):
            out.copy_(new)
    value, momentum, matrices.second = results
    state = matrices.renewed() if renew else matrices.state()
    return value, {"exp_avg": momentum} | state


class StepNumbers(NamedTuple):
    """What all elements of a parameter share in one step; () tensors in the dtype of the state.

    multiplier: of the gradient. weights: of what is new in momentum, second moments and factors.
    Direction is rotated momentum / sqrt(shrink * second + damping): with both corrections.
    """

    multiplier: Tensor
    momentum: Tensor
    second: Tensor
    factor: Tensor
    damping: Tensor
    shrink: float
    ahead: float

    def scaled(self, grad: Tensor) -> Tensor:
        """A gradient in the scale of its parameter; zeros if the step is left out."""
        return grad.to(self.multiplier.dtype).nan_to_num(0.0, 0.0, 0.0) * self.multiplier

    def momenta(self, old: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
        """The new momentum, and Nesterov's."""
        momentum = old.lerp(grad, self.momentum)
        return momentum, momentum.lerp(grad, self.ahead)


def step_numbers(measured: Measured, step: int, config: DirectionConfig, dtype: torch.dtype) -> StepNumbers:
    active = measured.active.to(dtype)
    shrink, damping = corrections(step, config)
    return StepNumbers(
        multiplier=measured.multiplier.to(dtype),
        momentum=active * (1 - config.beta1),
        second=active * (1 - config.beta2),
        factor=active * (1 - config.beta_factor),
        damping=measured.mean_square.to(dtype) * damping + torch.finfo().tiny,
        shrink=shrink,
        ahead=(1 - config.beta1) * config.nesterov,
    )


def corrections(step: int, config: DirectionConfig) -> tuple[float, float]:
    """Factors of second moments and of the mean square under the root of the direction.

    v and Nesterov's momentum are divided by the sums of their weights, with both under the root:
    so the first direction, too, is about 1 in size.
    """
    ahead = (1 - config.beta1) * config.nesterov
    first = (1 - config.beta1 ** (step + 1)) * (1 - ahead) + ahead
    second = 1 - config.beta2 ** (step + 1)
    return first**2 / second, (config.epsilon * first) ** 2


def moved(value: Tensor, momentum: Tensor) -> Tensor:
    """Values where there is momentum, else 0; several times as fast as `where`."""
    return value * momentum.sign().abs()


def contiguous_like(values: Tensor) -> Tensor:
    return torch.empty_like(values, memory_format=torch.contiguous_format)


def _is_whole(layouts: Sequence[MatrixLayout]) -> bool:
    return len(layouts) == 1 and layouts[0].view is None


class _Matrices:
    """The matrices of one layout during one step; what they keep is `key_number` of a record."""

    def __init__(self, layout: MatrixLayout, number: int, record: Record, step: int, numbers: StepNumbers):
        self.layout, self.number, self.step, self.numbers = layout, number, step, numbers
        self.second = record[f"exp_avg_sq_{number}"]
        dtype = self.second.dtype
        self.factors = {mode.name: record[f"{mode.name}_{number}"].to(dtype) for mode in layout.modes}
        self.bases = {mode.name: record[f"{mode.name}_basis_{number}"].to(dtype) for mode in layout.modes}

    def observe(self, grads: Iterable[Tensor]) -> None:
        """Puts the gradient, in pieces of the layout's shape, into the factors."""
        sums: dict[str, Tensor] = {}
        for grad in grads:
            for mode in self.layout.modes:
                found = mode.factor(grad)
                sums[mode.name] = sums[mode.name] + found if mode.name in sums else found
        for name, found in sums.items():
            self.factors[name] = self.factors[name].lerp(found, self.numbers.factor)
        if self.step == 0:
            # constants to autograd: derivatives of eigenvectors are infinite where values are equal
            for name, factor in self.factors.items():
                found = first_basis(factor.detach())
                self.bases[name] = self._if_active(found, self.bases[name])

    def direction(self, grad: Tensor, ahead: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
        """Direction and new second moments of a piece: gradient, momentum and second moments."""
        numbers, shape = self.numbers, second.shape
        rotation = Rotation(self.layout.modes, shape[2], self.bases)
        if rotation.is_plain:
            grad, ahead, second = grad.squeeze(2), ahead.squeeze(2), second.squeeze(2)
        second = second.lerp(rotation.forward(grad).square(), numbers.second)
        root = torch.add(numbers.damping, second, alpha=numbers.shrink).rsqrt()
        value = rotation.back(rotation.forward(ahead) * root)
        return value.view(shape), second.view(shape)

    def state(self) -> Record:
        found = {f"exp_avg_sq_{self.number}": self.second}
        for mode in self.layout.modes:
            dtype = _kept_dtype(mode, self.second.dtype)
            found[f"{mode.name}_{self.number}"] = self.factors[mode.name].to(dtype)
            found[f"{mode.name}_basis_{self.number}"] = self.bases[mode.name].to(dtype)
        return found

    def renewed(self) -> Record:
        """The state with bases one step nearer to the eigenvectors of the factors."""
        for mode in self.layout.modes:
            factor, old = self.factors[mode.name].detach(), self.bases[mode.name].detach()
            basis, order = renewed_basis(factor, old)
            self.bases[mode.name] = self._if_active(basis, old)
            permuted = mode.permute(self.second, order)
            self.second = self._if_active(permuted, self.second)
        return self.state()

    def _if_active(self, new: Tensor, old: Tensor) -> Tensor:
        """What is new, unless the step is left out."""
        return torch.where(self.numbers.factor > 0, new, old)
