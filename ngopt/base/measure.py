"""Sizes of gradients: what makes the rule free of the loss's scale, and lets it survive bad ones."""

from __future__ import annotations

from collections.abc import Sequence
from math import sqrt
from typing import NamedTuple

import torch
from torch import Tensor, _foreach_norm  # pyright: ignore[reportPrivateImportUsage]

from ngopt.functional import Record

# Decay of the running size of a gradient.
SIZE_DECAY = 0.95
# Gradients in the beginning whose size is judged by the next: before, there is none to compare with.
EARLY = 3
# Numbers of a gradient whose norm is found at once: in float64, of which torch makes a copy.
CHUNK = 1 << 18
# Below this a running size is none: mean squares of float32 end there.
TINY = 1e-30
# Relative size that gradients do not reach; finite, so that its derivatives are numbers.
NO_LIMIT = 1e18


class Measured(NamedTuple):
    """Of one gradient, () each, on the gradient's device.

    active: 1, or 0 where the gradient is not finite, and the step is left out.
    multiplier: brings the gradient to its scale, and cuts it where it is out of all proportion; 0
        where it is not finite.
    recall: brings what the state holds of the first gradients to what they would be in proportion.
    scale: size of the first gradient that was not zero, a power of two; 0 before.
    size: running mean square of the gradient in that scale, without correction of its beginning.
    mean_square: the same with it.
    """

    active: Tensor
    multiplier: Tensor
    recall: Tensor
    scale: Tensor
    size: Tensor
    mean_square: Tensor


def measure(grads: Sequence[Tensor], state: Sequence[Record], clip: float) -> list[Measured]:
    """Measures all gradients together, without a word to the host.

    state: records with `step`, `scale` and `size`. clip: a gradient may be this many times as large
        as its running size; and the first ones as many times as large as the next.
    """
    rms = root_mean_squares(grads)
    device, exact = rms.device, rms.dtype
    scale, size = (_column(state, key).to(device, exact) for key in ("scale", "size"))
    steps = _column(state, "step").to(device, exact)
    weight = SIZE_DECAY**steps

    active = (rms < torch.inf).to(exact)
    rms = rms.nan_to_num(0.0, 0.0, 0.0)
    # a power of two that float32 has
    begun = rms.detach().clamp(1e-37, 1e38).log2().round().exp2() * rms.detach().sign()
    scale = torch.where(scale > 0, scale, begun)
    inverse = scale.reciprocal().nan_to_num(0.0, 0.0, 0.0)
    relative = rms * inverse

    mean = size / (1 - weight).clamp(min=TINY)
    usual = mean.clamp(min=TINY).sqrt()
    limit = torch.where(mean > TINY, clip * usual, NO_LIMIT)
    cut = (limit / relative.clamp(min=1 / NO_LIMIT)).clamp(max=1)
    is_early = (steps <= EARLY) & (relative > 0) & (mean > TINY)
    recall = torch.where(is_early, (clip * relative / usual).clamp(max=1), 1.0)
    size = (size * recall.square()).lerp((relative * cut).square(), (1 - SIZE_DECAY) * active)
    mean = size / (1 - SIZE_DECAY * weight)
    columns = torch.stack((active, inverse * cut * active, recall, scale, size, mean)).float()
    rows = columns.T.reshape(-1).unbind()
    width = len(Measured._fields)
    return [Measured(*rows[i : i + width]) for i in range(0, len(rows), width)]


def root_mean_squares(values: Sequence[Tensor]) -> Tensor:
    """Of each tensor, (n,), on the device of the first."""
    device = values[0].device
    # squares of float32 end at 1e38; float64 holds those of all float32
    dtype = torch.float32 if device.type == "mps" else torch.float64
    whole = [x if x.numel() <= CHUNK else _norms(x, dtype) for x in values]
    norms = [norm.to(device) for norm in _foreach_norm(whole, 2, dtype)]
    roots = [sqrt(max(x.numel(), 1)) for x in values]
    return torch.stack(norms) / torch.tensor(roots, dtype=dtype).to(device)


def _norms(values: Tensor, dtype: torch.dtype) -> Tensor:
    """Norms of the pieces of a long tensor."""
    pieces = values.reshape(-1).split(CHUNK)
    return torch.stack(_foreach_norm(pieces, 2, dtype))


def _column(state: Sequence[Record], key: str) -> Tensor:
    return torch.stack([record[key] for record in state])
