"""Adam's direction for all parameters without matrices at once: norms, biases, scalars."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ngopt.base.direction import DirectionConfig
from ngopt.base.measure import Measured
from ngopt.functional import Record


def vector_directions(
    grads: Sequence[Tensor],
    records: Sequence[Record],
    measured: Sequence[Measured],
    config: DirectionConfig,
) -> list[tuple[Tensor, Record]]:
    """What `direction` gives for each, with a number of calls that does not grow with them.

    All are of one state dtype and on one device.
    """
    dtype = records[0]["exp_avg"].dtype
    sizes = torch.tensor([g.numel() for g in grads])
    owner = torch.repeat_interleave(sizes).to(grads[0].device)

    def spread(column: str) -> Tensor:
        """A number of each parameter, at each of its elements."""
        return torch.stack([getattr(m, column) for m in measured]).to(dtype)[owner]

    steps = torch.stack([r["step"] for r in records]).to(dtype) + 1
    correction = 1 - config.beta2**steps
    final = (correction.sqrt() / (1 - config.beta1**steps)).to(owner.device)[owner]
    active = spread("active")
    grad = _flat(grads).to(dtype)
    grad = torch.where(active > 0, grad, 0) * spread("multiplier")
    momentum = _flat([r["exp_avg"] for r in records]).lerp(grad, (1 - config.beta1) * active)
    second = _flat([r["exp_avg_sq_0"] for r in records])
    second = second.lerp(grad.square(), (1 - config.beta2) * active)
    damping = spread("mean_square") * correction.to(owner.device)[owner] * config.epsilon**2
    ahead = momentum.lerp(grad, (1 - config.beta1) * config.nesterov)
    root = (second + damping + torch.finfo().tiny).rsqrt()
    value = torch.where(momentum != 0, ahead * root * final, 0)

    found = []
    pieces = [flat.split(sizes.tolist()) for flat in (value, momentum, second)]
    for record, v, m, s in zip(records, *pieces, strict=True):
        shape = record["exp_avg"].shape
        new = {"exp_avg": m.view(shape), "exp_avg_sq_0": s.view(record["exp_avg_sq_0"].shape)}
        found.append((v.view(shape), new))
    return found


def _flat(values: Sequence[Tensor]) -> Tensor:
    return torch.cat([value.reshape(-1) for value in values])
