"""Adam's direction for all parameters without matrices at once: norms, biases, scalars."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ngopt.base.direction import DirectionConfig, corrections, moved
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
    like = records[0]["exp_avg"]
    sizes = [record["exp_avg"].numel() for record in records]
    own = torch.stack([x for m in measured for x in (m.active, m.multiplier, m.mean_square)])
    later = [corrections(int(record["step"]), config) for record in records]
    later = torch.tensor(later, dtype=like.dtype).to(own.device)
    numbers = torch.cat((own.view(-1, 3).to(like.dtype), later), 1)
    owner = torch.tensor(sizes).to(own.device)
    spread = numbers.T.repeat_interleave(owner, 1, output_size=sum(sizes))
    active, multiplier, mean_square, shrink, damping = spread.unbind()

    grad = _flat(grads).to(like.dtype).nan_to_num(0.0, 0.0, 0.0) * multiplier
    momentum = _flat([r["exp_avg"] for r in records]).lerp(grad, (1 - config.beta1) * active)
    second = _flat([r["exp_avg_sq_0"] for r in records])
    second = second.lerp(grad.square(), (1 - config.beta2) * active)
    ahead = momentum.lerp(grad, (1 - config.beta1) * config.nesterov)
    floor = (mean_square * damping).add(torch.finfo().tiny)
    value = moved(ahead * torch.addcmul(floor, second, shrink).rsqrt(), momentum)

    found = []
    pieces = [flat.split(sizes) for flat in (value, momentum, second)]
    for record, v, m, s in zip(records, *pieces, strict=True):
        shape = record["exp_avg"].shape
        new = {"exp_avg": m.view(shape), "exp_avg_sq_0": s.view(record["exp_avg_sq_0"].shape)}
        found.append((v.view(shape), new))
    return found


def _flat(values: Sequence[Tensor]) -> Tensor:
    return torch.cat([value.reshape(-1) for value in values])
